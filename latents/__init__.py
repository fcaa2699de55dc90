"""Latents, on which networks may train in place of images: their codecs, posteriors and scales."""
