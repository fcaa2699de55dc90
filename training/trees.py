"""Trees of arrays as leaves by path, such as "block_0/attention/kernel"."""

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import jax
from jax.tree_util import tree_leaves_with_path, tree_map_with_path

keystr = partial(jax.tree_util.keystr, simple=True, separator="/")


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by path."""
    return {keystr(path): leaf for path, leaf in tree_leaves_with_path(tree)}


def put_leaves(tree: Any, leaves: Mapping[str, Any]) -> Any:
    """The tree, with the leaves at these paths replaced."""
    return tree_map_with_path(lambda path, leaf: leaves.get(keystr(path), leaf), tree)


def fitting_leaves(tree: Any, leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Those leaves that the tree has at the same path in the same shape."""
    shapes = {path: leaf.shape for path, leaf in leaves_by_path(tree).items()}
    return {path: leaf for path, leaf in leaves.items() if shapes.get(path) == leaf.shape}


def common_names(paths: Collection[str], tree: Collection[str]) -> list[str]:
    """Names of these paths of a tree, in order: a whole branch by its own name, once."""
    others = [f"{path}/" for path in tree if path not in paths]

    def branch(path: str) -> str:
        parts = path.split("/")
        tops = ("/".join(parts[:count]) for count in range(1, len(parts)))
        return next((t for t in tops if not any(o.startswith(f"{t}/") for o in others)), path)

    return sorted({branch(path) for path in paths})
