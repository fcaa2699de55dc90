"""Spaces: what a network sees of an example, and what becomes of its samples."""
