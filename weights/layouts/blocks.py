"""The blocks of a transformer's tree: an entry for each, or all of them stacked for a loop."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fewstep.weights.layouts.names import Tree

BLOCKS = "blocks"  # the parameters of all blocks, stacked (models/network.py: STACKED)


def block_names(tree: Tree) -> list[str]:
    """The entries of the blocks of a tree, from the first to the last."""
    count = sum(name.startswith("block_") for name in tree)
    return [f"block_{index}" for index in range(count)]


def stack_blocks(tree: Tree) -> dict[str, Any]:
    """The tree of a network with `scan`: its blocks stacked on a first axis."""
    names = block_names(tree)
    rest = {name: part for name, part in tree.items() if name not in names}
    return {**rest, BLOCKS: stacked([tree[name] for name in names])}


def stacked(trees: list[Tree]) -> dict[str, Any]:
    """Trees of the same keys as one, each leaf with a first axis for the tree."""
    return {
        key: stacked([tree[key] for tree in trees])
        if isinstance(value, Mapping)
        else np.stack([tree[key] for tree in trees])
        for key, value in trees[0].items()
    }


def split_blocks(tree: Tree) -> dict[str, Any]:
    """The inverse of `stack_blocks`; a tree whose blocks are apart stays as it is."""
    if BLOCKS not in tree:
        return dict(tree)
    rest = {name: part for name, part in tree.items() if name != BLOCKS}
    depth = len(tree[BLOCKS]["modulation"]["bias"])
    return rest | {f"block_{index}": row_of(tree[BLOCKS], index) for index in range(depth)}


def row_of(tree: Tree, index: int) -> dict[str, Any]:
    """The row of each leaf of a tree."""
    return {
        key: row_of(value, index) if isinstance(value, Mapping) else np.asarray(value)[index]
        for key, value in tree.items()
    }
