"""Published networks as runs: which layout a file has, its parameters, and the config of its run.

A published file has the parameters alone. What its output means, on which path and with which
clock, is known of the publication: PUBLISHED says it by layout. Sizes come from the shapes.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from fewstep.data import NEWEST_DECODING, NONE
from fewstep.latents.scaling import SCALINGS
from fewstep.models.codecs import CODECS
from fewstep.models.dit import SIZES, DiTSize
from fewstep.models.layers import position_table
from fewstep.models.network import check_choice
from fewstep.models.time_reversal import reverse_time
from fewstep.training.codec_weights import named_codec
from fewstep.training.codecs import ANY_SIDE, codec_factor
from fewstep.training.storage.identity import with_all_fields
from fewstep.weights.layouts.blocks import stack_blocks
from fewstep.weights.layouts.diffusers_dit import read_diffusers
from fewstep.weights.layouts.dit import PROJECTORS, Converted, Sizes, read_meta
from fewstep.weights.layouts.names import Tensors, first_names, unwrapped
from fewstep.weights.tensors import parts_of, read_tensors

# Largest difference of a file's positions from ours; of a file of float16 or bfloat16.
POSITION_ERROR, HALF_POSITION_ERROR = 1e-5, 2.0**-7
# Settings of `flow_matching` and `ddpm` (configs/methods.py), which files of weights stand for.
FLOW_MATCHING = {"method": "flow_matching", "model": {"time_scale": 1.0}}
DDPM = {
    "method": "ddpm",
    "path": {"name": "vp_discrete"},
    "prediction": {"kind": "eps"},
    "objective": {"solver": {"name": "ddim"}},
}


# Codecs of networks with so many channels, unless another is named. Those of the layouts here work
# on latents of Stable Diffusion, times 0.18215.
CODEC_OF = {4: "sd"}
IMAGE_CHANNELS = 3  # of pictures that codecs decode


class Published(NamedTuple):
    """A published layout.

    title: what a file holds, for messages. read: (tensors, file, title) -> the network.
    fits: whether tensors of these names can be it. fields: those of the run's config that the file
    does not say. reversed_time: whether its time runs from noise to data.
    """

    title: str
    read: Callable[[Tensors, Path, str], Converted]
    fits: Callable[[Tensors], bool]
    fields: Mapping[str, Any]
    reversed_time: bool = False


def has_patches(tensors: Tensors) -> bool:
    """Whether tensors have the names of DiT and SiT, which are the same."""
    return "x_embedder.proj.weight" in tensors and not has_projectors(tensors)


def has_projectors(tensors: Tensors) -> bool:
    """Whether tensors have those of REPA's training loss."""
    return any(name.startswith(PROJECTORS) for name in tensors)


def has_transformer_blocks(tensors: Tensors) -> bool:
    """Whether tensors have the names of a transformer of diffusers."""
    return any(name.startswith("transformer_blocks.") for name in tensors)


def read_repa(tensors: Tensors, path: Path, title: str) -> Converted:
    """The network in a file of REPA, without its projectors."""
    return read_meta(tensors, path, title, projectors=True)


PUBLISHED = {
    "dit": Published("a DiT", read_meta, has_patches, DDPM),
    "sit": Published("a SiT", read_meta, has_patches, FLOW_MATCHING, reversed_time=True),
    "repa": Published("a REPA network", read_repa, has_projectors, FLOW_MATCHING),
    "diffusers_dit": Published("a DiT of diffusers", read_diffusers, has_transformer_blocks, DDPM),
}


class Import(NamedTuple):
    """A network read from a published file. layout: a key of PUBLISHED. params: in our tree."""

    layout: str
    params: dict[str, Any]
    sizes: Sizes


def read_published(path: Path, part: str = "", layout: str = "") -> Import:
    """The network in a published file.

    part: of a training checkpoint (`read_tensors`). layout: a key of PUBLISHED, "" to find it by
    the names of the tensors. Raises ValueError that names the file if it cannot be read, its layout
    is unknown or not certain, or it is not what its layout says; FileNotFoundError without a file.
    """
    if layout:
        check_choice("--layout", layout, PUBLISHED)
    tensors = read_part(path, part)
    layout = layout or find_layout(unwrapped(tensors), path)
    published = PUBLISHED[layout]
    tree, sizes, positions = published.read(tensors, path, published.title)
    if positions is not None:
        check_positions(positions, sizes, path)
    if published.reversed_time:
        tree = reverse_time(tree, time_scale=published.fields["model"]["time_scale"])
    return Import(layout, tree, sizes)


def read_part(path: Path, part: str) -> Tensors:
    """The tensors of a file; an error names the parts that a training checkpoint has."""
    try:
        return read_tensors(path, part)
    except ValueError as error:
        parts = [] if part else parts_of(path)
        if not parts:
            raise
        raise ValueError(
            f"{path} is a training checkpoint with the parts {', '.join(parts)}; choose one, as in "
            f"--part={'ema' if 'ema' in parts else parts[0]}"
        ) from error


def find_layout(tensors: Tensors, path: Path) -> str:
    """The layout of a file by its names. Raises ValueError if none fits, or several do."""
    fitting = [name for name, published in PUBLISHED.items() if published.fits(tensors)]
    if not fitting:
        raise ValueError(
            f"{path} has a layout that is not known: its tensors are {first_names({*tensors})}; "
            f"the known layouts are {', '.join(PUBLISHED)}"
        )
    if len(fitting) > 1:
        titles = " or ".join(PUBLISHED[name].title for name in fitting)
        raise ValueError(
            f"{path} can be {titles}: they have the same names, and outputs of other meaning; add "
            f"--layout={' or --layout='.join(fitting)}"
        )
    return fitting[0]


def check_positions(positions: np.ndarray, sizes: Sizes, path: Path) -> None:
    """Raises ValueError unless a file's positions are the table that our network has."""
    table = position_table(sizes.side, sizes.side, sizes.width)
    error = np.abs(positions.astype(np.float32) - table).max()
    halves = positions.dtype.itemsize == 2
    if not error <= (HALF_POSITION_ERROR if halves else POSITION_ERROR):
        raise ValueError(
            f"{path}: pos_embed differs by {error:.2g} from the fixed sines and cosines of "
            f"{sizes.side} x {sizes.side} tokens; networks with other positions are not known"
        )


def imported_config(
    found: Import, path: Path, image_size: int = 0, codec: str | None = None
) -> ConfigDict:
    """The config of the run of an imported network, with data.name=none.

    image_size: of the images of a file that does not say it. codec: name of the codec in whose
    latents the network works, "" for pixels, None for that of CODEC_OF. Raises ValueError if the
    size of the network is not one of model.size, if the size of images is not known, or not that of
    the file, and for a codec of other channels.
    """
    sizes, fields = found.sizes, PUBLISHED[found.layout].fields
    codec = CODEC_OF.get(sizes.channels, "") if codec is None else codec
    factor = codec_factor(codec) if codec else 1
    own = factor * (sizes.side * sizes.patch) if sizes.side else image_size
    if not own or own % (factor * sizes.patch):
        raise ValueError(
            f"{path} does not say the size of its images: set it by --config.data.image_size, a "
            f"multiple of {factor * sizes.patch}, such as 256 for a DiT of 256 x 256 pixels"
        )
    if image_size not in (0, own):
        raise ValueError(
            f"data.image_size={image_size}, but {path} has positions for images of {own} x {own}; "
            "leave it out"
        )
    data = {
        "name": NONE,
        "image_size": own,
        "channels": IMAGE_CHANNELS if codec else sizes.channels,
        "num_classes": sizes.classes,
        "decoding": NEWEST_DECODING,
        "label_shares": "data",
    }
    return with_all_fields(
        {
            **fields,
            "steps": 1,
            "data": data,
            "codec": codec_fields(codec, sizes, path) if codec else {},
            "model": {
                "name": "dit",
                "size": size_name(sizes, path),
                "patch_size": sizes.patch,
                **fields.get("model", {}),
            },
            "objective": {"name": "denoising", **fields.get("objective", {})},
            "ema": {"decays": []},
        }
    )


def codec_fields(name: str, sizes: Sizes, path: Path) -> dict[str, Any]:
    """The fields of a codec with the scale that it was published with. Raises ValueError."""
    channels = named_codec(name, (ANY_SIDE, ANY_SIDE, IMAGE_CHANNELS)).latent_shape[-1]
    if channels != sizes.channels:
        raise ValueError(
            f"the network in {path} has {sizes.channels} channels, and latents of "
            f"codec.name={name} have {channels}; name the codec that it was trained with"
        )
    scale, shift = SCALINGS[CODECS[name].scaling or "none"]
    return {"name": name, "scale": list(scale), "shift": list(shift)}


def size_name(sizes: Sizes, path: Path) -> str:
    """The value of model.size for a width and a depth, which give the heads. Raises ValueError."""
    for name, (width, depth, _) in SIZES.items():
        if (width, depth) == (sizes.width, sizes.depth):
            return name
    known = ", ".join(f"{name} ({describe_size(size)})" for name, size in SIZES.items())
    raise ValueError(
        f"{path} has {sizes.depth} blocks of width {sizes.width}, which is no published size; "
        f"those are {known}. If blocks are missing, download it again"
    )


def describe_size(size: DiTSize) -> str:
    return f"{size.depth} of {size.width}"


def tree_for(config: ConfigDict, params: dict[str, Any]) -> dict[str, Any]:
    """The parameters as the network of a config has them: with model.scan, blocks are stacked."""
    return stack_blocks(params) if config.model.scan else params
