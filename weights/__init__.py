"""Readers of weight files that never run code from them."""
