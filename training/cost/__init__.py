"""What a training step costs, counted before and after it is compiled."""
