"""Layouts of published weight files: their names and shapes, and where each tensor stands in ours.

Converters are pure functions between `{name: array}` and nested dicts of arrays. They know no
network's code; a test compares their trees with the networks'.
"""
