"""Files of published or foreign weights, read without running code from them."""
