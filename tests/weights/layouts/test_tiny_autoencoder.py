"""Files of TAESD: one by diffusers, two by its authors; recognised, read, written, refused."""

import chex
import jax
import numpy as np
import pytest

from fewstep.models.tiny_autoencoder import tiny_autoencoder
from fewstep.weights.layouts.tiny_autoencoder import (
    NAMINGS,
    TinyStructure,
    find_tiny_naming,
    read_tiny_autoencoder,
    tiny_layout,
    write_tiny_autoencoder,
)

STRUCTURE = TinyStructure(width=4, blocks=(1, 2, 3), latent_channels=5, channels=3)
PUBLISHED = TinyStructure(width=64, blocks=(1, 3, 3, 3), latent_channels=4, channels=3)
EACH_NAMING = pytest.mark.parametrize("naming", NAMINGS)


@pytest.fixture(scope="module")
def tree():
    """Normal numbers in the shapes of our network."""
    rng = np.random.default_rng(0)
    codec = tiny_autoencoder((8, 8, 3), **STRUCTURE.fields)
    shapes = jax.eval_shape(codec.init, jax.random.key(0))
    return jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32), shapes)


def read(tensors):
    return read_tiny_autoencoder(tensors, "taesd.pth")


@EACH_NAMING
def test_our_tree_survives_every_naming(naming, tree):
    tensors = write_tiny_autoencoder(tree, STRUCTURE, naming)
    assert find_tiny_naming(tensors) == naming
    back, structure = read(tensors)
    chex.assert_trees_all_equal(back, {half: tree[half] for half in NAMINGS[naming]})
    assert structure == STRUCTURE
    again = write_tiny_autoencoder(back, structure, naming)
    assert {name: array.tobytes() for name, array in again.items()} == {
        name: array.tobytes() for name, array in tensors.items()
    }


def test_the_authors_two_files_are_one_tree(tree):
    halves = [
        read(write_tiny_autoencoder(tree, STRUCTURE, naming))
        for naming in ("taesd_encoder", "taesd_decoder")
    ]
    (encoder, first), (decoder, second) = halves
    chex.assert_trees_all_equal(encoder | decoder, tree)
    assert first == second


@pytest.mark.parametrize(
    ("naming", "name", "path"),
    [
        ("taesd_encoder", "0.bias", "encoder/conv_in/bias"),
        ("taesd_encoder", "1.conv.2.bias", "encoder/level_0/block_0/conv_1/bias"),
        ("taesd_encoder", "2.weight", "encoder/halving_1/kernel"),
        ("taesd_encoder", "13.conv.4.weight", "encoder/level_3/block_2/conv_2/kernel"),
        ("taesd_encoder", "14.bias", "encoder/conv_out/bias"),
        ("taesd_decoder", "1.bias", "decoder/conv_in/bias"),
        ("taesd_decoder", "3.conv.0.bias", "decoder/level_0/block_0/conv_0/bias"),
        ("taesd_decoder", "7.weight", "decoder/doubling_1/kernel"),
        ("taesd_decoder", "18.conv.4.bias", "decoder/level_3/block_0/conv_2/bias"),
        ("taesd_decoder", "19.bias", "decoder/conv_out/bias"),
        ("diffusers", "encoder.layers.2.weight", "encoder/halving_1/kernel"),
        ("diffusers", "decoder.layers.6.weight", "decoder/doubling_1/kernel"),
        ("diffusers", "decoder.layers.18.bias", "decoder/conv_out/bias"),
    ],
)
def test_places_of_the_published_names(naming, name, path):
    assert tiny_layout(PUBLISHED, naming)[name].path == path


def test_convolutions_that_resize_have_no_bias():
    encoder, decoder = (tiny_layout(PUBLISHED, f"taesd_{half}") for half in ("encoder", "decoder"))
    assert {name for name in encoder if name.count(".") == 1 and "bias" in name} == {
        "0.bias",
        "14.bias",
    }
    assert {name for name in decoder if name.count(".") == 1 and "bias" in name} == {
        "1.bias",
        "19.bias",
    }


@EACH_NAMING
def test_missing_and_surplus_names_are_said(naming, tree):
    tensors = write_tiny_autoencoder(tree, STRUCTURE, naming)
    for name in tensors:
        fewer = {other: array for other, array in tensors.items() if other != name}
        # A file that lacks a whole layer may have blocks elsewhere, and other names are said.
        said = name if ".conv." in name else "(missing|unknown)"
        with pytest.raises(ValueError, match=rf"taesd\.pth .*{said}"):
            read(fewer)
    some = next(iter(tensors)).rpartition(".")[0]
    with pytest.raises(ValueError, match=f"1 unknown, such as {some}.extra"):
        read(tensors | {f"{some}.extra": np.zeros(3)})


def test_a_file_without_one_half_is_refused(tree):
    for naming in ("diffusers", "taesd"):
        tensors = write_tiny_autoencoder(tree, STRUCTURE, naming)
        for half in ("encoder", "decoder"):
            with pytest.raises(
                ValueError, match=rf"taesd\.pth .*(missing.*{half}|{half}.* missing)"
            ):
                read({k: v for k, v in tensors.items() if not k.startswith(half)})


def test_other_files_are_not_recognised():
    for tensors in ({}, {"0.weight": np.zeros(3)}, {"encoder.down.0.block.0.conv1.weight": 0}):
        assert find_tiny_naming(tensors) is None
        with pytest.raises(ValueError, match="taesd.pth does not hold TAESD"):
            read(tensors)
