"""The cost of a training step, counted before and after compilation."""
