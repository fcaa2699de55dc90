"""The U-Nets of EDM's files (Karras et al. 2022, arXiv:2206.00364) and the trees of ours.

A file names a block by the side of its images, `enc.32x32_block0`, and we by its level. What a file
has beside our parameters:

- `resample_filter` are constants: they must be the filters of the network.
- `map_augment` embeds labels of augmentations, which are zero in sampling. It is dropped.

Files of EDM have the prefix `model.`, the network inside its preconditioning.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fewstep.weights.layouts.dit import Converted, check_there
from fewstep.weights.layouts.names import (
    Form,
    Layout,
    Place,
    Tensors,
    Tree,
    affine,
    below,
    convolution,
    norm,
    read_layout,
    unwrapped,
    without,
    write_layout,
)
from fewstep.weights.tensors import check_tensors

PREFIX, FILTER = "model.", ".resample_filter"
DROPPED = ("map_augment.weight",)
TIME, LABELS, FREQUENCIES = "map_layer0.weight", "map_label.weight", "map_noise.freqs"
SIDE = re.compile(r"enc\.(\d{1,5})x\1_")
EMBEDDING_RATIO = 4  # width of the vector that blocks read, over that of the network


class UNetSizes(NamedTuple):
    """Sizes of a U-Net, from the names and shapes in its file.

    side: of its images in pixels. multipliers: channels of each level over width. depth: blocks of
    a level. attention_sides: of the levels with self-attention. variant: "ddpmpp" or "ncsnpp"; ""
    of a network without variants.
    """

    side: int
    channels: int
    classes: int
    width: int
    multipliers: tuple[int, ...]
    depth: int
    attention_sides: tuple[int, ...]
    variant: str = ""

    @property
    def input_side(self) -> int:
        """Side of the input."""
        return self.side

    @property
    def unit(self) -> int:
        """What a side of the input must be a multiple of."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def features(self) -> int:
        """Sinusoids of time."""
        return 2 * self.width if self.variant == "ncsnpp" else self.width

    @property
    def taps(self) -> tuple[int, ...]:
        """The filter that resamples along an axis."""
        return (1, 3, 3, 1) if self.variant == "ncsnpp" else (1, 1)


class Names(NamedTuple):
    """What files of one network have in common.

    outside: sizes -> the places of what is no block. stem: sizes -> channels of the first
    convolution. variants: of a file without and with random frequencies. modulated, projected,
    attention_throughout, head_width: as in `models.unet.Style`.
    """

    outside: Callable[[UNetSizes], Layout]
    stem: Callable[[UNetSizes], int]
    variants: tuple[str, str]
    modulated: bool
    projected: bool
    attention_throughout: bool
    head_width: int


class Block(NamedTuple):
    """A block: its published name, its path in our tree, and its channels."""

    name: str
    path: str
    inputs: int
    outputs: int
    attention: bool = False
    resampled: bool = False


def blocks(sizes: UNetSizes, names: Names) -> Iterator[Block]:
    """All blocks of a network, from its input to its output."""
    widths = [sizes.width * multiplier for multiplier in sizes.multipliers]
    sides = [sizes.side >> level for level in range(len(widths))]
    channels, last = names.stem(sizes), len(widths) - 1
    skips = [channels]
    for level, (side, width) in enumerate(zip(sides, widths, strict=True)):
        name, attention = f"enc.{side}x{side}", side in sizes.attention_sides
        if level > 0:
            path = f"encoder_{level}_halving"
            yield Block(f"{name}_down", path, channels, channels, resampled=True)
            skips.append(channels)
        for index in range(sizes.depth):
            path = f"encoder_{level}_block_{index}"
            yield Block(f"{name}_block{index}", path, channels, width, attention)
            channels = width
            skips.append(channels)
    for level, (side, width) in reversed([*enumerate(zip(sides, widths, strict=True))]):
        name, attention = f"dec.{side}x{side}", side in sizes.attention_sides
        if level == last:
            yield Block(f"{name}_in0", "middle_0", channels, channels, attention=True)
            yield Block(f"{name}_in1", "middle_1", channels, channels)
        else:
            path = f"decoder_{level}_doubling"
            yield Block(f"{name}_up", path, channels, channels, resampled=True)
        for index in range(sizes.depth + 1):
            path = f"decoder_{level}_block_{index}"
            own = attention and (names.attention_throughout or index == sizes.depth)
            yield Block(f"{name}_block{index}", path, channels + skips.pop(), width, own)
            channels = width


def heads_form(channels: int, head_width: int) -> Form:
    """A matrix or bias, whose outputs go from (head, channel, q k v) to (q k v, head, channel)."""
    heads = max(1, channels // head_width) if head_width else 1
    ours, theirs = (3, heads, channels // heads), (heads, channels // heads, 3)

    def read(array: np.ndarray) -> np.ndarray:
        rows = np.moveaxis(array.reshape(*theirs, -1), 2, 0).reshape(3 * channels, -1)
        return rows.T if array.ndim > 1 else rows[:, 0]

    def write(array: np.ndarray) -> np.ndarray:
        rows = np.moveaxis(array.T.reshape(*ours, -1), 0, 2).reshape(3 * channels, -1)
        return rows[:, :, None, None] if array.ndim > 1 else rows[:, 0]

    return Form(read, write)


def block_places(block: Block, sizes: UNetSizes, names: Names) -> dict[str, Place]:
    """The places of a block."""
    name, path, inputs, outputs, attention, resampled = block
    embedding = EMBEDDING_RATIO * sizes.width
    layout = (
        norm(f"{name}.norm0", f"{path}/norm_in", inputs)
        | convolution(f"{name}.conv0", f"{path}/conv_in", inputs, outputs)
        | affine(
            f"{name}.affine", f"{path}/affine", embedding, outputs * (2 if names.modulated else 1)
        )
        | norm(f"{name}.norm1", f"{path}/norm_out", outputs)
        | convolution(f"{name}.conv1", f"{path}/conv_out", outputs, outputs)
    )
    if inputs != outputs or (resampled and names.projected):
        layout |= affine(f"{name}.skip", f"{path}/skip", inputs, outputs, pointwise=True)
    if not attention:
        return layout
    form, inner = heads_form(outputs, names.head_width), f"{path}/attention"
    return (
        layout
        | norm(f"{name}.norm2", f"{inner}/norm", outputs)
        | {
            f"{name}.qkv.weight": Place(f"{inner}/qkv/kernel", (3 * outputs, outputs, 1, 1), form),
            f"{name}.qkv.bias": Place(f"{inner}/qkv/bias", (3 * outputs,), form),
        }
        | affine(f"{name}.proj", f"{inner}/projection", outputs, outputs, pointwise=True)
    )


def unet_layout(sizes: UNetSizes, names: Names) -> Layout:
    """The names of all parameters, without the prefix."""
    first = f"enc.{sizes.side}x{sizes.side}_conv"
    layout = convolution(first, "first", sizes.channels, names.stem(sizes))
    layout |= names.outside(sizes)
    for block in blocks(sizes, names):
        layout |= block_places(block, sizes, names)
    return layout


def read_unet(tensors: Tensors, path: str | Path, expected: str, names: Names) -> Converted:
    """The network in a file.

    path, expected: the file and what it should hold, for messages. Raises ValueError that names the
    file and the tensors that are missing, unknown, of another shape, not finite, or other filters.
    """
    tensors = without(unprefixed(unwrapped(tensors)), DROPPED)
    sizes = sizes_of(tensors, names, path, expected)
    filters = {name: tensors.pop(name) for name in [*tensors] if name.endswith(FILTER)}
    check_filters(filters, sizes, names, path, expected)
    return Converted(read_layout(tensors, unet_layout(sizes, names), path, expected), sizes)


def write_unet(tree: Tree, sizes: UNetSizes, names: Names) -> dict[str, np.ndarray]:
    """The tensors of a tree as EDM names them: `read_unet` backwards, without what it drops."""
    tensors = write_layout(tree, unet_layout(sizes, names))
    tensors |= dict.fromkeys(filter_names(sizes, names), filter_of(sizes))
    return {f"{PREFIX}{name}": array for name, array in tensors.items()}


def unprefixed(tensors: Tensors) -> Tensors:
    """The tensors without the prefix of EDM, if all names have it."""
    return below(tensors, PREFIX) if all(name.startswith(PREFIX) for name in tensors) else tensors


def sizes_of(tensors: Tensors, names: Names, path: str | Path, expected: str) -> UNetSizes:
    """The sizes of a network. Raises ValueError if the tensors that have them are missing."""
    sides = sorted({int(found[1]) for found in map(SIDE.match, tensors) if found}, reverse=True)
    first = f"enc.{sides[0]}x{sides[0]}" if sides else "enc.32x32"
    ends = [f"enc.{side}x{side}_block0.conv1.weight" for side in sides]
    needed = (TIME, f"{first}_conv.weight", *ends)
    check_there(tensors, needed, path, expected)
    labels = tensors.get(LABELS)
    if any(tensors[name].ndim < 2 for name in needed) or (labels is not None and labels.ndim != 2):
        raise ValueError(f"{path} does not hold the tensors of {expected}: {TIME} is no matrix")
    width = max(1, tensors[TIME].shape[0] // EMBEDDING_RATIO)
    attends = [side for side in sides if f"enc.{side}x{side}_block0.norm2.weight" in tensors]
    return UNetSizes(
        side=sides[0],
        channels=tensors[f"{first}_conv.weight"].shape[1],
        classes=0 if labels is None else labels.shape[1],
        width=width,
        multipliers=tuple(max(1, tensors[name].shape[0] // width) for name in ends),
        depth=sum(bool(re.match(rf"{first}_block\d+\.norm0\.weight", name)) for name in tensors),
        attention_sides=tuple(attends),
        variant=names.variants[FREQUENCIES in tensors],
    )


def filter_names(sizes: UNetSizes, names: Names) -> list[str]:
    """The names of all filters of a file."""
    blocks_there = [block.name for block in blocks(sizes, names) if block.resampled]
    owners = [f"{name}.{part}" for name in blocks_there for part in ("conv0", "skip")]
    if sizes.variant == "ncsnpp":
        owners += [
            name.replace("_down", "_aux_residual") for name in blocks_there if "_down" in name
        ]
    return [f"{owner}{FILTER}" for owner in owners]


def filter_of(sizes: UNetSizes) -> np.ndarray:
    """The filter as a file has it, for both axes: [1, 1, taps, taps]."""
    taps = np.array(sizes.taps, np.float32)
    return np.outer(taps, taps)[None, None] / taps.sum() ** 2


def check_filters(
    filters: Tensors, sizes: UNetSizes, names: Names, path: str | Path, expected: str
) -> None:
    """Raises ValueError unless a file has the filters of the network, and no others."""
    own = filter_of(sizes)
    check_tensors(filters, dict.fromkeys(filter_names(sizes, names), own.shape), path, expected)
    for name, array in filters.items():
        if not np.array_equal(array, own):
            raise ValueError(
                f"{path}: {name} is not the filter {list(sizes.taps)}, which {expected} has; "
                "networks with other filters are not known"
            )
