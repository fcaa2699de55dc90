"""Metrics of samples against real images, and the protocol that a number is bound to."""
