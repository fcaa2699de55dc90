"""Published networks: which layout a file has, its parameters in our tree, and files of ours.

A published file has the parameters alone. What its output means, on which path and with which
clock, is known of the publication: PUBLISHED says it by layout. Sizes come from the shapes.
training/imported.py makes the config of a run of it.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fewstep.models.dit import SIZES, DiTSize
from fewstep.models.layers import position_table
from fewstep.models.network import check_choice
from fewstep.models.time_reversal import reverse_time
from fewstep.weights.layouts.adm_unet import read_adm_unet, write_adm_unet
from fewstep.weights.layouts.diffusers_dit import read_diffusers, write_diffusers
from fewstep.weights.layouts.dit import PROJECTORS, Converted, Sizes, read_meta, write_meta
from fewstep.weights.layouts.mean_flow import is_mean_flow, read_mean_flow, write_mean_flow
from fewstep.weights.layouts.names import Tensors, Tree, first_names, unwrapped
from fewstep.weights.layouts.shortcut import is_shortcut, read_shortcut, write_shortcut
from fewstep.weights.layouts.song_unet import read_song_unet, write_song_unet
from fewstep.weights.layouts.unet import UNetSizes
from fewstep.weights.modules import PickledModule, holds_modules, read_module
from fewstep.weights.tensors import parts_of, read_tensors

# Largest difference of a file's positions from ours; of a file of float16 or bfloat16.
POSITION_ERROR, HALF_POSITION_ERROR = 1e-5, 2.0**-7
# Settings of methods (configs/methods.py), which files of weights stand for.
FLOW_MATCHING = {
    "method": "flow_matching",
    "model": {"time_scale": 1.0},
    "objective": {"name": "denoising"},
}
DDPM = {
    "method": "ddpm",
    "path": {"name": "vp_discrete"},
    "prediction": {"kind": "eps"},
    "objective": {"name": "denoising", "solver": {"name": "ddim"}},
}
# As the code of Frans et al. 2024 was run: an eighth of a batch are bootstrap rows, and the finest
# step learns a guidance scale of 1.5 on ImageNet.
SHORTCUT = {
    "method": "shortcut",
    "model": {"time_scale": 1.0, "second_time": "step_size"},
    "objective": {"name": "shortcut", "bootstrap_fraction": 0.125, "guidance_scale": 1.5},
}
MEAN_FLOW = {
    "method": "mean_flow",
    "model": {"time_scale": 1.0, "second_time": "interval"},
    "objective": {"name": "mean_flow"},
}
# Karras et al. 2022, table 1 and algorithm 1: the networks in an EDMPrecond, and their sampler.
EDM = {
    "method": "edm",
    "path": {"name": "ve"},
    "prediction": {"kind": "F"},
    "model": {"time_scale": 1.0},
    "objective": {
        "name": "denoising",
        "time_sampler": {"name": "log_normal", "mean": -1.2, "std": 1.2},
        "solver": {"name": "heun"},
        "spacing": {"name": "karras"},
        "ends_at": "data",
    },
}
EDM_MODULE = "EDMPrecond"


class Published(NamedTuple):
    """A published layout.

    title: what a file holds, for messages. read: (tensors, file, title) -> the network.
    write: (tree, sizes) -> tensors, the inverse but for what `left_out` says, in words.
    fits: whether tensors of these names can be it. fields: those of the run's config that the file
    does not say. model: (sizes, file) -> the fields of the network. reversed_time: whether its time
    runs from noise to data. module: class of the pickled module that has the network in it, and
    says what the output means; "" if no such module is known.
    """

    title: str
    read: Callable[[Tensors, Path, str], Converted]
    write: Callable[[Tree, Sizes], Tensors]
    fits: Callable[[Tensors], bool]
    fields: Mapping[str, Any]
    model: Callable[[Any, Path], dict[str, Any]]
    left_out: str = ""
    reversed_time: bool = False
    module: str = ""


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


def read_frans(tensors: Tensors, path: Path, title: str) -> Converted:
    """The network in a file of shortcut models."""
    return read_shortcut(tensors, path, title, partial(heads_of, path=path))


def write_frans(tree: Tree, sizes: Sizes) -> Tensors:
    """The tensors of a file of shortcut models."""
    return write_shortcut(tree, sizes, heads_of)


def write_positioned(tree: Tree, sizes: Sizes) -> Tensors:
    """The tensors of a file of Meta's layout, with the fixed table of positions."""
    return write_meta(tree, sizes, position_table(sizes.side, sizes.side, sizes.width))


def heads_of(sizes: Sizes, path: Path | str = "") -> int:
    """The attention heads of a network of a published size. Raises ValueError that names path."""
    return SIZES[size_name(sizes, path)].heads


def dit_fields(sizes: Sizes, path: Path) -> dict[str, Any]:
    """The fields of a DiT. Raises ValueError if its size is not one of model.size."""
    return {"name": "dit", "size": size_name(sizes, path), "patch_size": sizes.patch}


def unet_fields(sizes: UNetSizes, path: Path) -> dict[str, Any]:
    """The fields of a U-Net: SongUNet has variants, and ADM has none."""
    own = {name: getattr(sizes, name) for name in ("width", "multipliers", "depth")}
    own["attention_sides"] = sizes.attention_sides
    if not sizes.variant:
        return {"name": "adm_unet", **own}
    return {"name": "song_unet", "variant": sizes.variant, **own}


def has_end(name: str) -> Callable[[Tensors], bool]:
    """Whether tensors have one whose name ends so."""
    return lambda tensors: any(one.endswith(name) for one in tensors)


VARIANCE = (
    "The channels of a variance, which the published last layer may have, are not there. Ancestral "
    "sampling needs them"
)
PUBLISHED = {
    "dit": Published("a DiT", read_meta, write_positioned, has_patches, DDPM, dit_fields, VARIANCE),
    "sit": Published(
        "a SiT",
        read_meta,
        write_positioned,
        has_patches,
        FLOW_MATCHING,
        dit_fields,
        VARIANCE,
        reversed_time=True,
    ),
    "repa": Published(
        "a REPA network",
        read_repa,
        write_positioned,
        has_projectors,
        FLOW_MATCHING,
        dit_fields,
        "The projectors, which only the training loss reads, are not there",
    ),
    "diffusers_dit": Published(
        "a DiT of diffusers",
        read_diffusers,
        write_diffusers,
        has_transformer_blocks,
        DDPM,
        dit_fields,
        VARIANCE,
    ),
    "shortcut": Published(
        "a shortcut model",
        read_frans,
        write_frans,
        is_shortcut,
        SHORTCUT,
        dit_fields,
        "The log-variances (Embed_0), which no loss reads, are zero. A network without labels has "
        "a label table of zeros",
        reversed_time=True,
    ),
    "mean_flow": Published(
        "a MeanFlow network",
        read_mean_flow,
        write_mean_flow,
        is_mean_flow,
        MEAN_FLOW,
        dit_fields,
    ),
    "song_unet": Published(
        "EDM's DDPM++ or NCSN++",
        read_song_unet,
        write_song_unet,
        has_end("_aux_norm.weight"),
        EDM,
        unet_fields,
        module=EDM_MODULE,
    ),
    "adm_unet": Published(
        "EDM's ADM",
        read_adm_unet,
        write_adm_unet,
        has_end("out_norm.weight"),
        EDM,
        unet_fields,
        module=EDM_MODULE,
    ),
}


class Import(NamedTuple):
    """A network read from a published file.

    layout: a key of PUBLISHED. params: in our tree. sizes: of the kind of its layout. sigma_data:
    that a pickled module says, else None.
    """

    layout: str
    params: dict[str, Any]
    sizes: Any
    sigma_data: float | None = None


def read_published(path: Path, part: str = "", layout: str = "") -> Import:
    """The network in a published file.

    part: of a training checkpoint (`read_tensors`) or of a pickle of modules (`read_module`).
    layout: a key of PUBLISHED, "" to find it by the names of the tensors. Raises ValueError that
    names the file if it cannot be read, its layout is unknown or not certain, or it is not what its
    layout says; FileNotFoundError without a file.
    """
    if layout:
        check_choice("--layout", layout, PUBLISHED)
    module = read_module(path, part) if holds_modules(path) else None
    if module is not None:
        check_module(module, path)
    tensors = read_part(path, part) if module is None else module.tensors
    found = layout or find_layout(unwrapped(tensors), path)
    published = PUBLISHED[found]
    if published.module and module is None and not layout:
        raise ValueError(
            f"{path} has the names of {published.title}, and does not say what its output means; "
            f"if it was trained by EDM ({published.module}), add --layout={found}"
        )
    tree, sizes, positions = published.read(tensors, path, published.title)
    if positions is not None:
        check_positions(positions, sizes, path)
    if published.reversed_time:
        tree = reverse_time(tree, time_scale=published.fields["model"]["time_scale"])
    return Import(found, tree, sizes, module and module.fields.get("sigma_data"))


def check_module(module: PickledModule, path: Path) -> None:
    """Raises ValueError unless the module of a file is one whose output is known."""
    known = {published.module for published in PUBLISHED.values()} - {""}
    if module.name not in known:
        raise ValueError(
            f"{path} holds a {module.name}; the meaning of its output is not known, only that of "
            f"{', '.join(sorted(known))}"
        )


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


def published_tensors(layout: str, tree: Tree, sizes: Sizes) -> Tensors:
    """The tensors of a network of ours by their published names; the inverse of `read_published`.

    layout: a key of PUBLISHED.
    """
    published = PUBLISHED[layout]
    if published.reversed_time:
        tree = reverse_time(tree, time_scale=published.fields["model"]["time_scale"])
    return published.write(tree, sizes)


def size_name(sizes: Sizes, path: Path | str) -> str:
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
