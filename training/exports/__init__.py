"""What --mode=export writes of a run's network: our own layout, published ones, diffusers, ONNX."""
