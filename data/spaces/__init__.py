"""Spaces: what a network sees of an example, and how its samples are finished and shown."""
