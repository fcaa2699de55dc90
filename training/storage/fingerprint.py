"""A checksum of arrays that does not depend on the devices that hold them.

    fingerprint = sum over elements of mix(bits XOR mix(position))      modulo 2^32

mix is a bijection of 32-bit words (the finaliser of MurmurHash3, public domain). So a single
changed value always changes the sum, and two changes cancel once in 2^32. Integer sums do not
depend on their order: one device, eight, and another sharding compute the same number, on the
devices and without gathering arrays.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
# FACTORS: constants of MurmurHash3's finaliser (Appleby 2011). GOLDEN: 2^32 divided by the golden
# ratio, which spreads leaf numbers over all bits.
FACTORS = (0x85EBCA6B, 0xC2B2AE35)
GOLDEN = 0x9E3779B9


def fingerprint(tree: Any) -> int:
    """The fingerprint of all arrays of a tree, in [0, 2^32), equal in all processes.

    It depends on the values, the shapes and the order of the leaves. Raises ValueError for a leaf
    of more than 32 bits per element.
    """
    # Wait for each sum. On several CPU devices, a program that sums over processes holds a thread
    # of the pool until the others arrive; dozens at once would exhaust the pool and hang.
    leaves = enumerate(jax.tree.leaves(tree))
    return sum(int(leaf_fingerprint(leaf, number)) for number, leaf in leaves) % 2**32


@jax.jit
def leaf_fingerprint(leaf: Array, number: Array) -> Array:
    """The fingerprint of one array, uint32 []; number: its place in the tree."""
    leaf = jnp.asarray(leaf)
    if leaf.dtype.itemsize not in WORDS:
        raise ValueError(f"an array of {leaf.dtype} has no fingerprint; use 32 bits or fewer")
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
