"""A number that tells whether arrays are what they were, whatever devices they lie on.

    fingerprint = sum over elements of mix(bits XOR mix(position))      modulo 2^32

mix is a bijection of 32-bit words (the finaliser of MurmurHash3, public domain), so another value
anywhere gives another sum, and two changes cancel once in 2^32. Sums of integers do not depend on
their order: one device, eight, and another sharding after a restart compute the same number, on the
devices, without gathering anything.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
# Finaliser and constants of MurmurHash3 (Appleby 2011); the golden ratio's spreads leaf numbers.
FACTORS = (0x85EBCA6B, 0xC2B2AE35)
GOLDEN = 0x9E3779B9


def fingerprint(tree: Any) -> int:
    """The fingerprint of all arrays of a tree, in [0, 2^32), the same in every process.

    It depends on values, shapes and the order of the leaves. Raises ValueError for a leaf of more
    than 32 bits per element.
    """
    # Each sum is waited for. On several CPU devices a program that sums over processes holds a
    # thread of the pool until the others come; with dozens under way the pool runs dry, and hangs.
    leaves = enumerate(jax.tree.leaves(tree))
    return sum(int(leaf_fingerprint(leaf, number)) for number, leaf in leaves) % 2**32


@jax.jit
def leaf_fingerprint(leaf: Array, number: Array) -> Array:
    """The fingerprint of one array, uint32 []; number: its place in the tree."""
    leaf = jnp.asarray(leaf)
    if leaf.dtype.itemsize not in WORDS:
        raise ValueError(f"an array of {leaf.dtype} has no fingerprint; use 32 bits or less")
    word = WORDS[leaf.dtype.itemsize]
    bits = leaf if leaf.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(leaf, word)
    seed = mix(jnp.uint32(number) * jnp.uint32(GOLDEN) + jnp.uint32(leaf.size))
    return jnp.sum(mix(bits.astype(jnp.uint32) ^ mix(positions(leaf.shape) ^ seed)))


def positions(shape: tuple[int, ...]) -> Array:
    """The index of every element in row-major order, uint32, modulo 2^32."""
    index = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return index


def mix(word: Array) -> Array:
    """A bijection of 32-bit words that spreads every bit over all of them."""
    word = (word ^ (word >> 16)) * jnp.uint32(FACTORS[0])
    word = (word ^ (word >> 13)) * jnp.uint32(FACTORS[1])
    return word ^ (word >> 16)
