"""How large trees of arrays are."""

import math

import jax


def size(tree: object) -> str:
    """Number of elements of a tree, with thousands marked."""
    return f"{sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)):,}"


def bytes_of(tree: object) -> int:
    """Bytes of a tree of shapes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
