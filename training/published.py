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
from fewstep.models.dit import SIZES, DiTSize
from fewstep.models.layers import position_table
from fewstep.models.network import check_choice
from fewstep.models.time_reversal import reverse_time
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


def imported_config(found: Import, path: Path, image_size: int = 0) -> ConfigDict:
    """The config of the run of an imported network, with data.name=none.

    image_size: of a file that does not say it. Raises ValueError if the size of the network is not
    one of model.size, and if the size of images is not known, or not that of the file.
    """
    sizes, fields = found.sizes, PUBLISHED[found.layout].fields
    own = sizes.side * sizes.patch if sizes.side else image_size
    if not own or own % sizes.patch:
        raise ValueError(
            f"{path} does not say the size of its input: set it by --config.data.image_size, a "
            f"multiple of {sizes.patch}, such as 32 for a DiT of 256 x 256 pixels in latents"
        )
    if image_size not in (0, own):
        raise ValueError(
            f"data.image_size={image_size}, but {path} has positions for {own} x {own}; leave it "
            "out"
        )
    data = {
        "name": NONE,
        "image_size": own,
        "channels": sizes.channels,
        "num_classes": sizes.classes,
        "decoding": NEWEST_DECODING,
        "label_shares": "data",
    }
    return with_all_fields(
        {
            **fields,
            "steps": 1,
            "data": data,
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
