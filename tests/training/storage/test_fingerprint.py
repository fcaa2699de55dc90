import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.training.sharding import tree_shardings
from fewstep.training.storage.fingerprint import fingerprint, mix
from tests.training.test_sharding import mesh_of


def tree():
    return {
        "kernel": jax.random.normal(jax.random.key(0), (64, 128)),
        "half": jnp.arange(12, dtype=jnp.bfloat16).reshape(3, 4),
        "count": jnp.int32(7),
        "mask": jnp.array([True, False, True]),
    }


def transcription(tree):
    """The module's formula in Python integers."""

    def word(value):
        value = (value ^ (value >> 16)) * 0x85EBCA6B % 2**32
        value = (value ^ (value >> 13)) * 0xC2B2AE35 % 2**32
        return value ^ (value >> 16)

    total = 0
    for number, leaf in enumerate(map(np.asarray, jax.tree.leaves(tree))):
        seed = word((number * 0x9E3779B9 + leaf.size) % 2**32)
        words = leaf.reshape(-1).view(f"u{leaf.dtype.itemsize}").tolist()
        total += sum(word(w ^ word(i ^ seed)) for i, w in enumerate(words))
    return total % 2**32


def test_the_formula_on_any_devices():
    assert fingerprint(tree()) == transcription(tree())
    for sizes in ((1, 1), (2, 4), (1, 8)):
        shardings = tree_shardings(tree(), mesh_of(*sizes))
        assert fingerprint(jax.device_put(tree(), shardings)) == transcription(tree())


def test_any_changed_bit_changes_it():
    whole = fingerprint(tree())
    rng = np.random.default_rng(0)
    for name, leaf in jax.device_get(tree()).items():
        for _ in range(8):
            changed = np.array(leaf)
            bits = changed.reshape(-1).view(np.uint8)
            bit = 0 if leaf.dtype == bool else rng.integers(8)
            bits[rng.integers(len(bits))] ^= 1 << bit
            assert fingerprint({**tree(), name: changed}) != whole


def test_two_equal_changes_do_not_cancel():
    # As they would in a sum that is linear in the words: two signs flipped add 2 * 2^31.
    changed = np.array(tree()["kernel"])
    changed[3, 4] *= -1
    changed[5, 6] *= -1
    assert fingerprint({**tree(), "kernel": changed}) != fingerprint(tree())
    swapped = np.array(tree()["kernel"])[::-1]
    assert fingerprint({**tree(), "kernel": swapped}) != fingerprint(tree())
    zeros = jnp.zeros((4, 4))
    assert fingerprint([zeros, zeros]) != fingerprint([zeros.reshape(2, 8)])


def test_mix_is_a_bijection():
    words = jnp.concatenate([jnp.arange(2**16), jnp.arange(2**16) << 16]).astype(jnp.uint32)
    assert len(np.unique(mix(words))) == len(np.unique(words))


def test_wide_numbers_are_refused():
    with pytest.raises(ValueError, match="complex64"):
        fingerprint({"a": jnp.zeros(2, jnp.complex64)})
