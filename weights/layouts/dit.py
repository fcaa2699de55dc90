"""Published diffusion transformers and the parameter tree of our DiT (models/dit.py).

The layout is Meta's, of the network of Peebles & Xie 2023 (arXiv:2212.09748). DiT, SiT and REPA
have it; the names of a file do not say which of them it is.

What a file has beside our parameters:
- `pos_embed` is the fixed table of positions, for the caller to compare with ours.
- The last layer of DiT and SiT may have a second half, the channels of a variance. It is dropped.
- `projectors` (REPA) serve its training loss only.

`read_meta` takes a file's tensors, and `write_meta` is its inverse, but for what is dropped.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fewstep.weights.layouts.blocks import split_blocks
from fewstep.weights.layouts.names import (
    Form,
    Layout,
    Place,
    Tensors,
    Tree,
    affine,
    below,
    biases,
    read_layout,
    unwrapped,
    without,
    write_layout,
)
from fewstep.weights.tensors import check_tensors

TIME_FEATURES = 256  # sinusoids of the time
MLP_RATIO = 4
POSITIONS, PROJECTORS = "pos_embed", "projectors."


class Sizes(NamedTuple):
    """Sizes of a network, from the shapes in its file.

    side: tokens per side of the input, None if the file does not say.
    """

    width: int
    depth: int
    patch: int
    channels: int
    classes: int
    side: int | None = None

    @property
    def input_side(self) -> int:
        """Side of the input, 0 if the file does not say."""
        return (self.side or 0) * self.patch

    @property
    def unit(self) -> int:
        """What a side of the input must be a multiple of."""
        return self.patch


class Converted(NamedTuple):
    """A published network in our tree.

    sizes: `Sizes`, or those of another kind of network. positions: [N, width], the file's fixed
    table, or None.
    """

    tree: dict[str, Any]
    sizes: Any
    positions: np.ndarray | None = None


class Names(NamedTuple):
    """How a layout calls the parts from which sizes are read, and the table of all its names."""

    patches: str
    labels: str
    block: str
    output: str
    layout: Callable[[Sizes], Layout]


def patches(patch: int, channels: int) -> Form:
    """A convolution over patches, [out, c, p, p], as a matrix [p p c, out]."""

    def write(array: np.ndarray) -> np.ndarray:
        return array.reshape(patch, patch, channels, -1).transpose(3, 2, 0, 1)

    return Form(
        lambda array: array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0]),
        write,
    )


def patch_places(name: str, sizes: Sizes) -> dict[str, Place]:
    """The places of the patch embedding."""
    width, _, patch, channels, *_ = sizes
    form = patches(patch, channels)
    weight = Place("patch_embedding/kernel", (width, channels, patch, patch), form)
    return {f"{name}.weight": weight} | biases(name, "patch_embedding", width)


def embedder_places(time: Sequence[str], labels: str, path: str, sizes: Sizes) -> dict:
    """The places of the embedders of time and label below a path. time: names of its two layers."""
    hidden, output = time
    return (
        affine(hidden, f"{path}/time_embedder/hidden", TIME_FEATURES, sizes.width)
        | affine(output, f"{path}/time_embedder/output", sizes.width, sizes.width)
        | {labels: Place(f"{path}/label_table", (sizes.classes + 1, sizes.width))}
    )


def output_places(modulation: str, linear: str, sizes: Sizes) -> dict[str, Place]:
    """The places of the final layer."""
    outputs = sizes.patch**2 * sizes.channels
    return affine(modulation, "final/modulation", sizes.width, 2 * sizes.width) | affine(
        linear, "final/output", sizes.width, outputs
    )


def meta_layout(sizes: Sizes) -> Layout:
    """The names of DiT, SiT and REPA, without `pos_embed` and `projectors`."""
    width = sizes.width
    layout = (
        patch_places("x_embedder.proj", sizes)
        | embedder_places(
            ("t_embedder.mlp.0", "t_embedder.mlp.2"), META.labels, "conditioning", sizes
        )
        | output_places("final_layer.adaLN_modulation.1", "final_layer.linear", sizes)
    )
    for index in range(sizes.depth):
        name, path = f"blocks.{index}", f"block_{index}"
        layout |= affine(f"{name}.adaLN_modulation.1", f"{path}/modulation", width, 6 * width)
        layout |= affine(f"{name}.attn.qkv", f"{path}/attention/qkv", width, 3 * width)
        layout |= affine(f"{name}.attn.proj", f"{path}/attention/projection", width, width)
        layout |= affine(f"{name}.mlp.fc1", f"{path}/mlp/expand", width, MLP_RATIO * width)
        layout |= affine(f"{name}.mlp.fc2", f"{path}/mlp/contract", MLP_RATIO * width, width)
    return layout


META = Names(
    patches="x_embedder.proj.weight",
    labels="y_embedder.embedding_table.weight",
    block="blocks.",
    output="final_layer.linear",
    layout=meta_layout,
)


def read_meta(
    tensors: Tensors, path: str | Path, expected: str = "a DiT", projectors: bool = False
) -> Converted:
    """The network in a file of Meta's layout.

    path, expected: the file and what it should hold, for messages. projectors: whether REPA's may
    be there. Raises ValueError that names the file and the tensors that are missing, unknown, of
    another shape, or not finite.
    """
    tensors = without(unwrapped(tensors), (PROJECTORS,) if projectors else ())
    check_there(tensors, (POSITIONS,), path, expected)
    positions = tensors.pop(POSITIONS)
    sizes = sizes_of(tensors, META, path, expected)
    side = math.isqrt(positions.size // sizes.width)
    if positions.shape != (1, side**2, sizes.width):
        raise ValueError(
            f"{path}: {POSITIONS} is {list(positions.shape)}, which is no square of tokens"
        )
    tree = read_names(tensors, META, sizes, path, expected)
    return Converted(tree, sizes._replace(side=side), positions[0])


def write_meta(tree: Tree, sizes: Sizes, positions: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors of Meta's layout, without a variance; the inverse of `read_meta`."""
    tensors = write_layout(split_blocks(tree), meta_layout(sizes))
    return {POSITIONS: positions[None], **tensors}


def read_names(
    tensors: Tensors, names: Names, sizes: Sizes, path: str | Path, expected: str
) -> dict[str, Any]:
    """The tree of a layout's tensors, without a variance."""
    tensors = without_variance(tensors, names, sizes)
    return read_layout(tensors, names.layout(sizes), path, expected)


def without_variance(tensors: Tensors, names: Names, sizes: Sizes) -> Tensors:
    """The tensors with the first half of the output's channels, if it has twice as many.

    The last axis of the output is (p, p, 2 c), channel fastest.
    """
    ends = {
        f"{names.output}.{leaf}": tensors.get(f"{names.output}.{leaf}")
        for leaf in ("weight", "bias")
    }
    pixels, channels = sizes.patch**2, sizes.channels
    doubled = all(
        array is not None and array.ndim and len(array) == 2 * pixels * channels
        for array in ends.values()
    )
    if not doubled:
        return tensors
    halves = {
        name: array.reshape(pixels, 2 * channels, -1)[:, :channels].reshape(
            pixels * channels, *array.shape[1:]
        )
        for name, array in ends.items()
    }
    return {**tensors, **halves}


def sizes_of(tensors: Tensors, names: Names, path: str | Path, expected: str) -> Sizes:
    """The sizes of a network. Raises ValueError if the tensors that have them are missing."""
    check_there(tensors, (names.patches, names.labels), path, expected)
    kernel, table = tensors[names.patches].shape, tensors[names.labels].shape
    blocks = {name.split(".")[0] for name in below(tensors, names.block)}
    if len(kernel) != 4 or len(table) != 2 or not all(map(str.isdecimal, blocks)):
        raise ValueError(
            f"{path} does not hold the tensors of {expected}: {names.patches} is {list(kernel)}, "
            f"{names.labels} {list(table)}"
        )
    return Sizes(kernel[0], len(blocks), kernel[2], kernel[1], table[0] - 1)


def check_there(tensors: Tensors, names: tuple[str, ...], path: str | Path, expected: str) -> None:
    """Raises ValueError unless the tensors have all of these names, whatever else they have."""
    found = {name: tensors[name] for name in names if name in tensors}
    check_tensors(
        found, {name: found[name].shape if name in found else () for name in names}, path, expected
    )
