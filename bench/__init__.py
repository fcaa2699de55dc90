"""What a step costs: counted anywhere (count), measured on a GPU (gpu), and at start (start)."""
