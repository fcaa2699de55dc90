"""Small networks with random parameters, and files of published layouts made of them."""

import json

import jax
import numpy as np

from fewstep.models.dit import SIZES, dit
from fewstep.models.layers import position_table
from fewstep.weights.layouts.dit import Sizes, write_meta

NANO = SIZES["nano"]


def random_params(network, seed=0):
    """Normal parameters of every entry: weights over the root of their inputs, biases of 0.3."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        deviation = leaf.shape[-2] ** -0.5 if len(leaf.shape) > 1 else 0.3
        return deviation * rng.standard_normal(leaf.shape).astype(np.float32)

    return jax.tree.map(draw, jax.eval_shape(network.init, jax.random.key(0)))


def small_dit(side=8, channels=3, classes=5, patch=2, seed=0, **fields):
    """A nano DiT, random parameters of it, and its sizes."""
    shape = (side, side, channels)
    network = dit(shape, classes, size="nano", patch_size=patch, **fields)
    sizes = Sizes(NANO.width, NANO.depth, patch, channels, classes, side // patch)
    return network, random_params(network, seed), sizes


def positions(sizes):
    """The table of positions of a network."""
    return position_table(sizes.side, sizes.side, sizes.width)


def with_variance(tensors, sizes, seed=9):
    """The tensors of a layout of Meta's, with random variance channels after those of the mean."""
    rng, wide = np.random.default_rng(seed), {}
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        mean = tensors[name].reshape(sizes.patch**2, sizes.channels, -1)
        both = np.concatenate([mean, rng.standard_normal(mean.shape)], axis=1)
        wide[name] = both.reshape(-1, *tensors[name].shape[1:]).astype(np.float32)
    return {**tensors, **wide}


def meta_tensors(params, sizes, variance=False):
    """The tensors of a file of Meta's layout."""
    tensors = write_meta(params, sizes, positions(sizes))
    return with_variance(tensors, sizes) if variance else tensors


def write_safetensors(path, tensors):
    """Write float32 tensors as safetensors. Returns the path."""
    header, end = {}, 0
    for name, array in tensors.items():
        header[name] = {
            "dtype": "F32",
            "shape": list(array.shape),
            "data_offsets": [end, end + 4 * array.size],
        }
        end += 4 * array.size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array, "<f4").tobytes())
    return path
