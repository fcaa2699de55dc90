"""The parameters of the JAX code of shortcut models (Frans et al. 2024, arXiv:2410.12557) and ours.

Names are the keys of the Flax parameters, joined by "/". Modules are numbered in the order in which
their network makes them. The network is a DiT whose second time is the level of a step
(model.second_time=step_size), with time_scale 1.

Traps:
- Dense_1, Dense_2 and Dense_3 of a block are k, q and v.
- Attention divides q k^T by the channels d of a head, ours by their root. So q, with its bias, is
  multiplied by d^(-1/2): exact in float32 if d is a power of 4.
- Time runs from noise to data (models/time_reversal.py). The level of a step counts as ours does.
- The last Embed has one log-variance for each of 256 times. Their loss does not read it, so it
  stays 0. It is dropped.
- Their network for CelebA has one class and never sees a label but the null class, as label_dropout
  is 1. Ours has no classes; the row of the null class moves into the bias of the time's embedder.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.weights.layouts.blocks import block_names, split_blocks
from fewstep.weights.layouts.dit import MLP_RATIO, TIME_FEATURES, Converted, Sizes, check_there
from fewstep.weights.layouts.names import (
    Form,
    Layout,
    Place,
    Tensors,
    Tree,
    read_layout,
    write_layout,
)

PATCHES = "PatchEmbed_0/Conv_0/kernel"
LABELS = "LabelEmbedder_0/Embed_0/embedding"
LEVELS = "TimestepEmbedder_1/Dense_0/kernel"
LOG_VARIANCES, LOG_VARIANCE_SHAPE = "Embed_0/embedding", (256, 1)
BLOCK = "DiTBlock_"
QKV = {"query": "Dense_2", "key": "Dense_1", "value": "Dense_3"}


def is_shortcut(tensors: Tensors) -> bool:
    """Whether names are those of a network of shortcut models."""
    return PATCHES in tensors and LEVELS in tensors


def dense(name: str, path: str, inputs: int, outputs: int) -> dict[str, Place]:
    """The places of an affine layer of Flax, whose axes are ours."""
    return {
        f"{name}/kernel": Place(f"{path}/kernel", (inputs, outputs)),
        f"{name}/bias": Place(f"{path}/bias", (outputs,)),
    }


def shortcut_layout(sizes: Sizes) -> Layout:
    """The names of all parameters; `joined` makes our attention of q, k and v."""
    width, _, patch, channels, classes, _ = sizes
    shape = (patch, patch, channels, width)
    flat = Form(lambda array: array.reshape(-1, width), lambda array: array.reshape(shape))
    layout = {
        PATCHES: Place("patch_embedding/kernel", shape, flat),
        "PatchEmbed_0/Conv_0/bias": Place("patch_embedding/bias", (width,)),
        LABELS: Place("conditioning/label_table", (classes + 1, width)),
        LOG_VARIANCES: Place(LOG_VARIANCES, LOG_VARIANCE_SHAPE),
    }
    for number, embedder in enumerate(("time_embedder", "second_time_embedder")):
        name, path = f"TimestepEmbedder_{number}", f"conditioning/{embedder}"
        layout |= dense(f"{name}/Dense_0", f"{path}/hidden", TIME_FEATURES, width)
        layout |= dense(f"{name}/Dense_1", f"{path}/output", width, width)
    for index in range(sizes.depth):
        name, path = f"{BLOCK}{index}", f"block_{index}"
        layout |= dense(f"{name}/Dense_0", f"{path}/modulation", width, 6 * width)
        for part, layer in QKV.items():
            layout |= dense(f"{name}/{layer}", f"{path}/attention/{part}", width, width)
        layout |= dense(f"{name}/Dense_4", f"{path}/attention/projection", width, width)
        name, path = f"{name}/MlpBlock_0", f"{path}/mlp"
        layout |= dense(f"{name}/Dense_0", f"{path}/expand", width, MLP_RATIO * width)
        layout |= dense(f"{name}/Dense_1", f"{path}/contract", MLP_RATIO * width, width)
    layout |= dense("FinalLayer_0/Dense_0", "final/modulation", width, 2 * width)
    return layout | dense("FinalLayer_0/Dense_1", "final/output", width, patch**2 * channels)


def read_shortcut(
    tensors: Tensors, path: str | Path, expected: str, heads_of: Callable[[Sizes], int]
) -> Converted:
    """The network in a file of shortcut models, whose time still runs from noise to data.

    heads_of: attention heads of a network, which the shapes do not show. Raises ValueError that
    names the file and the tensors that are missing, unknown, of another shape, or not finite.
    """
    check_there(tensors, (PATCHES, LABELS), path, expected)
    kernel, table = tensors[PATCHES].shape, tensors[LABELS].shape
    if len(kernel) != 4 or len(table) != 2:
        raise ValueError(f"{path} does not hold {expected}: {PATCHES} is {list(kernel)}")
    depth = len({name.split("/")[0] for name in tensors if name.startswith(BLOCK)})
    sizes = Sizes(kernel[3], depth, kernel[0], kernel[2], table[0] - 1)
    tree = read_layout(tensors, shortcut_layout(sizes), path, expected)
    del tree["Embed_0"]
    tree = joined(tree, head_channels(sizes, heads_of) ** -0.5)
    if sizes.classes == 1:
        tree, sizes = without_labels(tree), sizes._replace(classes=0)
    return Converted(tree, sizes)


def write_shortcut(
    tree: Tree, sizes: Sizes, heads_of: Callable[[Sizes], int]
) -> dict[str, np.ndarray]:
    """The tensors of a network whose time runs from noise to data.

    The inverse of `read_shortcut`, but for the row of the null class in a network without classes.
    """
    tree = apart(split_blocks(tree), head_channels(sizes, heads_of) ** 0.5)
    tree["Embed_0"] = {"embedding": np.zeros(LOG_VARIANCE_SHAPE, np.float32)}
    if sizes.classes == 0:
        sizes = sizes._replace(classes=1)
        table = np.zeros((2, sizes.width), np.float32)
        tree["conditioning"] = {**tree["conditioning"], "label_table": table}
    return write_layout(tree, shortcut_layout(sizes))


def head_channels(sizes: Sizes, heads_of: Callable[[Sizes], int]) -> int:
    """Channels of an attention head."""
    return sizes.width // heads_of(sizes)


def joined(tree: dict[str, Any], factor: float) -> dict[str, Any]:
    """The tree with q, k and v of each block in one matrix; q is multiplied by the factor."""
    for name in block_names(tree):
        attention = tree[name]["attention"]
        query, key, value = (attention.pop(part) for part in QKV)
        query = scaled(query, factor)
        attention["qkv"] = {
            leaf: np.concatenate([query[leaf], key[leaf], value[leaf]], axis=-1) for leaf in query
        }
    return tree


def apart(tree: Tree, factor: float) -> dict[str, Any]:
    """The inverse of `joined`, with the inverse factor, as a new tree."""
    separate = dict(tree)
    for name in block_names(tree):
        attention = dict(tree[name]["attention"])
        split = {
            leaf: np.split(np.asarray(v), 3, axis=-1) for leaf, v in attention.pop("qkv").items()
        }
        parts = [{leaf: thirds[index] for leaf, thirds in split.items()} for index in range(3)]
        parts[0] = scaled(parts[0], factor)
        separate[name] = {
            **tree[name],
            "attention": attention | dict(zip(QKV, parts, strict=True)),
        }
    return separate


def scaled(layer: Tree, factor: float) -> dict[str, np.ndarray]:
    """An affine layer whose output is multiplied by a factor, rounded once."""
    return {leaf: (np.float64(factor) * array).astype(np.float32) for leaf, array in layer.items()}


def without_labels(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree of a network without classes that computes what this one does for the null class."""
    conditioning = dict(tree["conditioning"])
    table = conditioning.pop("label_table")
    time = conditioning["time_embedder"]
    output = {**time["output"], "bias": time["output"]["bias"] + table[-1]}
    return {**tree, "conditioning": {**conditioning, "time_embedder": {**time, "output": output}}}
