"""A tree of parameters as arrays by name, for a file, and a hash of it."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

Params = Any


def named(params: Params) -> dict[str, np.ndarray]:
    """The parameters by their names, "conv_0/kernel" for example, sorted."""
    arrays = {name_of(path): np.asarray(a) for path, a in jax.tree.leaves_with_path(params)}
    return dict(sorted(arrays.items()))


def tree_of(arrays: Mapping[str, np.ndarray], like: Params) -> Params:
    """The tree of shapes `like`, filled by name. Raises ValueError where an array does not fit."""

    def restored(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = name_of(path)
        if name not in arrays:
            raise ValueError(f"it lacks {name}")
        array = arrays[name]
        if (array.shape, array.dtype) != (leaf.shape, leaf.dtype):
            raise ValueError(f"{name} is {array.dtype} {list(array.shape)}")
        return array

    return jax.tree.map_with_path(restored, like)


def name_of(path: tuple[Any, ...]) -> str:
    """The name of a leaf, "conv_0/kernel" for example."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def digest(params: Params) -> str:
    """SHA-256 of the parameters' names, shapes and values in little-endian float32."""
    total = hashlib.sha256()
    for name, array in named(params).items():
        total.update(json.dumps([name, array.shape]).encode())
        total.update(array.astype("<f4").tobytes())
    return total.hexdigest()
