"""Published files of the KL autoencoder of latent diffusion, and our tree of it.

Three families of names are in use: those of CompVis and Stability, those of diffusers, and those
that diffusers gave its attention before 2023.

    level i of the encoder    encoder.down_blocks.i        encoder.down.i
    level i of the decoder    decoder.up_blocks.i          decoder.up.(levels - 1 - i)
    block j of a level        resnets.j                    block.j
    the middle                mid_block.resnets.{0, 1}     mid.block_{1, 2}

Traps:
- CompVis counts the decoder's levels from the image, diffusers and we from the latents. The two
  levels of fewest pixels have equal shapes, so no check notices if they are exchanged.
- Attention has matrices [out, in] in diffusers and convolutions [out, in, 1, 1] in CompVis. Files
  of the older names have either.
- A whole Stable Diffusion file has the autoencoder below `first_stage_model.`.
"""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fewstep.weights.layouts.names import (
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

INSIDE = "first_stage_model."
LOSSES = ("loss.",)  # networks of its training
# Beside it: other networks, and the schedule of the diffusion.
BESIDE = (
    *("model.diffusion_model.", "model_ema.", "cond_stage_model.", "conditioner."),
    *("text_encoders.", "denoiser.", "betas", "alphas_cumprod", "sqrt_", "log_one_minus_"),
    *("posterior_", "logvar", "lvlb_weights", "scale_factor"),
)
EXPECTED = "a KL autoencoder of latent diffusion"


class Structure(NamedTuple):
    """The numbers of an autoencoder that its tensors show.

    The first five have the names of `models.autoencoder.autoencoder`. channels: of what enters the
    network, pixels or patches of them.
    """

    widths: tuple[int, ...]
    blocks: int
    latent_channels: int
    quant_convolutions: bool
    attention: bool
    channels: int

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of `models.autoencoder.autoencoder`, without groups and patch_size."""
        return {name: value for name, value in self._asdict().items() if name != "channels"}


class Naming(NamedTuple):
    """Names of the parts of the network in one family of files.

    down, up: level i of the encoder and of the decoder, or levels - 1 - i if `reversed_up`.
    attention_parts: norm, query, key, value and output. pointwise: whether these four are stored as
    convolutions.
    """

    down: str
    up: str
    reversed_up: bool
    block: str
    halving: str
    doubling: str
    shortcut: str
    middle: tuple[str, str]
    attention: str
    attention_parts: tuple[str, ...]
    pointwise: bool
    norm_out: str


DIFFUSERS = Naming(
    down="encoder.down_blocks.{}",
    up="decoder.up_blocks.{}",
    reversed_up=False,
    block="resnets.{}",
    halving="downsamplers.0.conv",
    doubling="upsamplers.0.conv",
    shortcut="conv_shortcut",
    middle=("mid_block.resnets.0", "mid_block.resnets.1"),
    attention="mid_block.attentions.0",
    attention_parts=("group_norm", "to_q", "to_k", "to_v", "to_out.0"),
    pointwise=False,
    norm_out="conv_norm_out",
)
NAMINGS = {
    "diffusers": DIFFUSERS,
    "diffusers-2022": DIFFUSERS._replace(
        attention_parts=("group_norm", "query", "key", "value", "proj_attn")
    ),
    "compvis": Naming(
        down="encoder.down.{}",
        up="decoder.up.{}",
        reversed_up=True,
        block="block.{}",
        halving="downsample.conv",
        doubling="upsample.conv",
        shortcut="nin_shortcut",
        middle=("mid.block_1", "mid.block_2"),
        attention="mid.attn_1",
        attention_parts=("norm", "q", "k", "v", "proj_out"),
        pointwise=True,
        norm_out="norm_out",
    ),
}


def is_autoencoder(tensors: Tensors) -> bool:
    """Whether the names are those of a KL autoencoder, alone or in a whole Stable Diffusion."""
    return find_naming(autoencoder_part(tensors)) is not None


def read_autoencoder(tensors: Tensors, path: str | Path) -> tuple[dict, Structure]:
    """Our tree of a file's tensors, float32, and the numbers of the network.

    path: the file, for messages. Raises ValueError that names the file for one with other tensors.
    """
    part = autoencoder_part(tensors)
    naming = find_naming(part)
    if naming is None:
        raise ValueError(
            f"{path} does not hold {EXPECTED}: it has no names such as encoder.down.0.block or "
            "encoder.down_blocks.0.resnets"
        )
    structure = find_structure(part, naming, path)
    return read_layout(part, autoencoder_layout(structure, naming), path, EXPECTED), structure


def write_autoencoder(tree: Tree, structure: Structure, naming: str) -> dict[str, np.ndarray]:
    """The tensors of our tree by the names of a family, a key of NAMINGS.

    Raises ValueError for a tree of another structure.
    """
    return write_layout(tree, autoencoder_layout(structure, NAMINGS[naming]))


def autoencoder_part(tensors: Tensors) -> Tensors:
    """The autoencoder's tensors, and all that are not known to belong to something else."""
    tensors = unwrapped(tensors)
    if starts(tensors, INSIDE[:-1]):
        others = {name for name in without(tensors, BESIDE) if not name.startswith(INSIDE)}
        tensors = below(tensors, INSIDE) | {name: tensors[name] for name in others}
    return without(tensors, LOSSES)


def starts(names: Iterable[str], prefix: str) -> bool:
    """Whether a name lies below a prefix, which ends before a dot."""
    return any(name.startswith(f"{prefix}.") for name in names)


def find_naming(tensors: Tensors) -> Naming | None:
    """The family of a file's names, with the form of its attention; None for other files."""
    families = [each for each in NAMINGS.values() if starts(tensors, each.down.format(0))]
    for naming in families:
        names = [f"encoder.{naming.attention}.{part}.weight" for part in naming.attention_parts[1:]]
        matrices = [tensors[name] for name in names if name in tensors]
        if matrices:
            return naming._replace(pointwise=matrices[0].ndim == 4)
    return families[0] if families else None


def find_structure(tensors: Tensors, naming: Naming, path: str | Path) -> Structure:
    """The numbers of the network. Raises ValueError for a file that lacks a bias of them."""

    def width(name: str) -> int:
        if f"{name}.bias" not in tensors:
            raise ValueError(
                f"{path} does not hold the tensors of {EXPECTED}: {name}.bias is missing"
            )
        return tensors[f"{name}.bias"].size

    levels = count_indices(tensors, naming.down)
    first_block = naming.block.format(0)
    return Structure(
        widths=tuple(width(f"{naming.down.format(i)}.{first_block}.conv1") for i in range(levels)),
        blocks=count_indices(tensors, f"{naming.down.format(0)}.{naming.block}"),
        latent_channels=width("encoder.conv_out") // 2,
        quant_convolutions=starts(tensors, "quant_conv"),
        attention=starts(tensors, f"encoder.{naming.attention}"),
        channels=width("decoder.conv_out"),
    )


def count_indices(names: Iterable[str], pattern: str) -> int:
    """How many of the indices 0, 1, ... have names below the pattern."""
    return next(i for i in itertools.count() if not starts(names, pattern.format(i)))


class Half(NamedTuple):
    """The encoder or the decoder. widths, levels: of its levels in order, and their names.

    resizing: names of what halves or doubles, in the file and in our tree.
    """

    name: str
    inputs: int
    outputs: int
    widths: tuple[int, ...]
    blocks: int
    levels: tuple[str, ...]
    resizing: tuple[str, str]


def autoencoder_layout(structure: Structure, naming: Naming) -> Layout:
    """Where the tensors of a file stand in our tree."""
    widths, blocks, latent, quant_convolutions, attention, channels = structure
    down = tuple(naming.down.format(index) for index in range(len(widths)))
    up = tuple(naming.up.format(index) for index in range(len(widths)))
    up = up[::-1] if naming.reversed_up else up
    halving, doubling = (naming.halving, "halving"), (naming.doubling, "doubling")
    encoder = Half("encoder", channels, 2 * latent, widths, blocks, down, halving)
    decoder = Half("decoder", latent, channels, widths[::-1], blocks + 1, up, doubling)
    layout = {}
    for half in (encoder, decoder):
        layout |= ends(half, naming)
        layout |= middle(half.name, widths[-1], attention, naming)
        for index in range(len(widths)):
            layout |= level(half, index, naming)
    if quant_convolutions:
        layout |= convolution("quant_conv", "encoder/quant_conv", 2 * latent, 2 * latent, side=1)
        layout |= convolution("post_quant_conv", "decoder/quant_conv", latent, latent, side=1)
    return layout


def ends(half: Half, naming: Naming) -> Layout:
    name, first, last = half.name, half.widths[0], half.widths[-1]
    return {
        **convolution(f"{name}.conv_in", f"{name}/conv_in", half.inputs, first),
        **norm(f"{name}.{naming.norm_out}", f"{name}/norm_out", last),
        **convolution(f"{name}.conv_out", f"{name}/conv_out", last, half.outputs),
    }


def level(half: Half, index: int, naming: Naming) -> Layout:
    """The residual blocks of a level, and the convolution that resizes before them.

    Files name this convolution with the level before.
    """
    before, after = half.widths[max(index - 1, 0)], half.widths[index]
    layout: dict[str, Place] = {}
    for number in range(half.blocks):
        name = f"{half.levels[index]}.{naming.block.format(number)}"
        path = f"{half.name}/level_{index}/block_{number}"
        layout |= block(name, path, after if number else before, after, naming)
    if index > 0:
        published, ours = half.resizing
        name, path = f"{half.levels[index - 1]}.{published}", f"{half.name}/{ours}_{index}"
        layout |= convolution(name, path, before, before)
    return layout


def middle(half: str, width: int, attention: bool, naming: Naming) -> Layout:
    layout: dict[str, Place] = {}
    for number, name in enumerate(naming.middle):
        layout |= block(f"{half}.{name}", f"{half}/middle/block_{number}", width, width, naming)
    if attention:
        name, path = f"{half}.{naming.attention}", f"{half}/middle/attention"
        norm_name, *matrices = naming.attention_parts
        layout |= norm(f"{name}.{norm_name}", f"{path}/norm", width)
        for part, ours in zip(matrices, ("query", "key", "value", "output"), strict=True):
            layout |= affine(
                f"{name}.{part}", f"{path}/{ours}", width, width, pointwise=naming.pointwise
            )
    return layout


def block(name: str, path: str, before: int, after: int, naming: Naming) -> Layout:
    layout = {
        **norm(f"{name}.norm1", f"{path}/norm_1", before),
        **convolution(f"{name}.conv1", f"{path}/conv_1", before, after),
        **norm(f"{name}.norm2", f"{path}/norm_2", after),
        **convolution(f"{name}.conv2", f"{path}/conv_2", after, after),
    }
    if before != after:
        shortcut = f"{name}.{naming.shortcut}"
        layout |= convolution(shortcut, f"{path}/shortcut", before, after, side=1)
    return layout
