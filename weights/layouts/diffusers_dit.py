"""diffusers' DiTTransformer2DModel and the parameter tree of our DiT (models/dit.py).

Each block of a file has a copy of the embedders of time and label, and q, k and v are apart. The
published files are Meta's weights under these names. diffusers evaluates them with other
frequencies of the time, 10000^(-k/127); Meta trained them with 10000^(-k/128), which ours are.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.weights.layouts.blocks import block_names, split_blocks
from fewstep.weights.layouts.dit import (
    MLP_RATIO,
    Converted,
    Names,
    Sizes,
    embedder_places,
    output_places,
    patch_places,
    read_names,
    sizes_of,
)
from fewstep.weights.layouts.names import Layout, Tensors, Tree, affine, unwrapped, write_layout

QKV = ("query", "key", "value")


def diffusers_layout(sizes: Sizes) -> Layout:
    """The names of diffusers' DiTTransformer2DModel.

    Each block has its own copy of the embedders and of q, k and v apart; `joined` makes ours.
    """
    width = sizes.width
    layout = patch_places("pos_embed.proj", sizes) | output_places(
        "proj_out_1", "proj_out_2", sizes
    )
    for index in range(sizes.depth):
        name, path = f"transformer_blocks.{index}", f"block_{index}"
        times = [f"{name}.norm1.emb.timestep_embedder.linear_{number}" for number in (1, 2)]
        labels = f"{name}.norm1.emb.class_embedder.embedding_table.weight"
        layout |= embedder_places(tuple(times), labels, f"{path}/conditioning", sizes)
        layout |= affine(f"{name}.norm1.linear", f"{path}/modulation", width, 6 * width)
        for short, part in zip("qkv", QKV, strict=True):
            layout |= affine(f"{name}.attn1.to_{short}", f"{path}/attention/{part}", width, width)
        layout |= affine(f"{name}.attn1.to_out.0", f"{path}/attention/projection", width, width)
        layout |= affine(f"{name}.ff.net.0.proj", f"{path}/mlp/expand", width, MLP_RATIO * width)
        layout |= affine(f"{name}.ff.net.2", f"{path}/mlp/contract", MLP_RATIO * width, width)
    return layout


DIFFUSERS = Names(
    patches="pos_embed.proj.weight",
    labels="transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight",
    block="transformer_blocks.",
    output="proj_out_2",
    layout=diffusers_layout,
)


def read_diffusers(tensors: Tensors, path: str | Path, expected: str = "a DiT") -> Converted:
    """The network in a file of diffusers' layout; raises as `read_meta`.

    Raises ValueError, too, if the embedders of two blocks differ.
    """
    tensors = unwrapped(tensors)
    sizes = sizes_of(tensors, DIFFUSERS, path, expected)
    return Converted(joined(read_names(tensors, DIFFUSERS, sizes, path, expected), path), sizes)


def write_diffusers(tree: Tree, sizes: Sizes) -> dict[str, np.ndarray]:
    """The tensors of diffusers' layout, without a variance; the inverse of `read_diffusers`."""
    tree = split_blocks(tree)
    apart = {name: part for name, part in tree.items() if name != "conditioning"}
    for name in block_names(tree):
        block = dict(tree[name])
        qkv = block["attention"]["qkv"]
        parts = {leaf: np.split(np.asarray(value), 3, axis=-1) for leaf, value in qkv.items()}
        attention = {"projection": block["attention"]["projection"]}
        attention |= {
            part: {leaf: parts[leaf][index] for leaf in qkv} for index, part in enumerate(QKV)
        }
        apart[name] = block | {"attention": attention, "conditioning": tree["conditioning"]}
    return write_layout(apart, diffusers_layout(sizes))


def joined(tree: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """The tree of diffusers' layout as ours: one conditioning, and q, k, v in one matrix."""
    names = block_names(tree)
    conditioning = [tree[name].pop("conditioning") for name in names]
    for name, other in zip(names[1:], conditioning[1:], strict=True):
        if not same_tree(other, conditioning[0]):
            raise ValueError(
                f"{path}: the embedders of {name} differ from those of {names[0]}; a DiT has one"
            )
    for name in names:
        attention = tree[name]["attention"]
        parts = [attention.pop(part) for part in QKV]
        attention["qkv"] = {
            leaf: np.concatenate([part[leaf] for part in parts], axis=-1) for leaf in parts[0]
        }
    return {**tree, "conditioning": conditioning[0]}


def same_tree(a: Tree, b: Tree) -> bool:
    """Whether two trees of arrays with the same keys are equal."""
    return all(
        same_tree(value, b[key]) if isinstance(value, Mapping) else np.array_equal(value, b[key])
        for key, value in a.items()
    )
