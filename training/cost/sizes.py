"""Sizes of trees of arrays."""

import math

import jax


def element_count(tree: object) -> str:
    """Number of elements of a tree, as text with commas: 1,234,567."""
    return f"{sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)):,}"


def tree_bytes(tree: object) -> int:
    """Bytes of a tree of shapes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
