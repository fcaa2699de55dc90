"""Published files of TAESD, the tiny autoencoder, and our tree of it.

The authors publish two files, encoder and decoder, whose names are indices of layers: `0.weight`,
`1.conv.0.weight`. diffusers has both in one file, as `encoder.layers.0.weight`.

Traps:
- Layer 0 of the authors' decoder cuts the latents and has no tensors. diffusers leaves it out, so
  its decoder's indices are smaller by one.
- Activations and enlargements are layers without tensors, and count.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fewstep.weights.layouts.names import (
    Layout,
    Place,
    Tensors,
    Tree,
    convolution,
    read_layout,
    unwrapped,
    write_layout,
)

CONVOLUTIONS = 3  # of a block
EXPECTED = "TAESD"


class TinyStructure(NamedTuple):
    """The numbers of a tiny autoencoder that its tensors show.

    The first three have the names of `models.tiny_autoencoder.tiny_autoencoder`. channels: of an
    image.
    """

    width: int
    blocks: tuple[int, ...]
    latent_channels: int
    channels: int

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of `models.tiny_autoencoder.tiny_autoencoder`."""
        return {name: value for name, value in self._asdict().items() if name != "channels"}


class Layers(NamedTuple):
    """How a file names the layers of a half. skipped: how many of the first ones it leaves out."""

    prefix: str
    skipped: int = 0


# Files by the halves that they hold.
NAMINGS: Mapping[str, Mapping[str, Layers]] = {
    "diffusers": {
        "encoder": Layers("encoder.layers."),
        "decoder": Layers("decoder.layers.", skipped=1),
    },
    "taesd": {"encoder": Layers("encoder."), "decoder": Layers("decoder.")},
    "taesd_encoder": {"encoder": Layers("")},
    "taesd_decoder": {"decoder": Layers("")},
}


def find_tiny_naming(tensors: Tensors) -> str | None:
    """The key of NAMINGS that a file's names belong to; None for another network."""
    tensors = unwrapped(tensors)
    for naming, halves in NAMINGS.items():
        for half, (prefix, skipped) in halves.items():
            door, block = (
                f"{prefix}{half_layers(half, (1,)).index(layer) - skipped}"
                for layer in ("conv_in", "level_0/block_0")
            )
            has_block = any(name.startswith(f"{block}.conv.") for name in tensors)
            if has_block and {f"{door}.weight", f"{door}.bias"} & tensors.keys():
                return naming
    return None


def read_tiny_autoencoder(tensors: Tensors, path: str | Path) -> tuple[dict, TinyStructure]:
    """Our tree of a file's tensors, float32, and the numbers of the network.

    The tree has the halves of the file: of the authors' two files, each gives one. path: the file,
    for messages. Raises ValueError that names the file for one with other tensors.
    """
    naming = find_tiny_naming(tensors)
    if naming is None:
        raise ValueError(
            f"{path} does not hold {EXPECTED}: it has no names such as 1.conv.0.weight or "
            "encoder.layers.1.conv.0.weight"
        )
    tensors = unwrapped(tensors)
    structure = find_tiny_structure(tensors, naming, path)
    return read_layout(tensors, tiny_layout(structure, naming), path, EXPECTED), structure


def write_tiny_autoencoder(
    tree: Tree, structure: TinyStructure, naming: str
) -> dict[str, np.ndarray]:
    """The tensors of our tree by the names of a file, a key of NAMINGS, which may be of one half.

    Raises ValueError for a tree of another structure.
    """
    halves = {half: tree[half] for half in NAMINGS[naming]}
    return write_layout(halves, tiny_layout(structure, naming))


def find_tiny_structure(tensors: Tensors, naming: str, path: str | Path) -> TinyStructure:
    """The numbers of the network, read from the first half of a file.

    Raises ValueError for a file without the tensors that show them.
    """
    half, (prefix, skipped) = next(iter(NAMINGS[naming].items()))
    pattern = re.compile(rf"{re.escape(prefix)}([0-9]{{1,4}})\.(\w+)")
    found = filter(None, map(pattern.match, tensors))
    is_block = {int(name[1]): name[2] == "conv" for name in found}
    first = half_layers(half, ()).index("conv_in") - skipped
    enters, leaves = f"{prefix}{first}.weight", f"{prefix}{max(is_block, default=first)}.bias"
    for name, axes in ((enters, 4), (leaves, 1)):
        if name not in tensors or tensors[name].ndim != axes:
            raise ValueError(f"{path} does not hold the tensors of {EXPECTED}: {name} is missing")
    width, inputs, *_ = tensors[enters].shape
    (outputs,) = tensors[leaves].shape
    runs = itertools.groupby(sorted(is_block), is_block.get)
    blocks = tuple(len([*run]) for in_level, run in runs if in_level)
    if half == "decoder":
        return TinyStructure(width, blocks[::-1], latent_channels=inputs, channels=outputs)
    return TinyStructure(width, blocks, latent_channels=outputs, channels=inputs)


def half_layers(half: str, blocks: Sequence[int]) -> list[str]:
    """Paths in our tree of a half's layers by their index in the authors' files.

    "" stands for a layer without tensors. blocks: in each level, in the order of the half.
    """
    layers = ["conv_in"] if half == "encoder" else ["", "conv_in", ""]
    for index, count in enumerate(blocks):
        if index > 0:
            layers += [f"halving_{index}"] if half == "encoder" else ["", f"doubling_{index}"]
        layers += [f"level_{index}/block_{number}" for number in range(count)]
    return [*layers, "conv_out"]


def tiny_layout(structure: TinyStructure, naming: str) -> Layout:
    """Where the tensors of a file stand in our tree."""
    width, blocks, latent, channels = structure
    ends = {"encoder": (channels, latent), "decoder": (latent, channels)}
    layout: dict[str, Place] = {}
    for half, (prefix, skipped) in NAMINGS[naming].items():
        inputs, outputs = ends[half]
        order = blocks if half == "encoder" else blocks[::-1]
        for index, layer in enumerate(half_layers(half, order)):
            name, path = f"{prefix}{index - skipped}", f"{half}/{layer}"
            if layer == "conv_in":
                layout |= convolution(name, path, inputs, width)
            elif layer == "conv_out":
                layout |= convolution(name, path, width, outputs)
            elif "block" in layer:
                for number in range(CONVOLUTIONS):
                    # The activations between the convolutions count too.
                    inner = f"{name}.conv.{2 * number}"
                    layout |= convolution(inner, f"{path}/conv_{number}", width, width)
            elif layer:
                layout |= convolution(name, path, width, width, bias=False)
    return layout
