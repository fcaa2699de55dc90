"""A tree of parameters as named arrays for a file, and its hash."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

Params = Any


def named_arrays(params: Params) -> dict[str, np.ndarray]:
    """The parameters by name, such as "conv_0/kernel", sorted."""
    arrays = {leaf_name(path): np.asarray(a) for path, a in jax.tree.leaves_with_path(params)}
    return dict(sorted(arrays.items()))


def tree_from_arrays(arrays: Mapping[str, np.ndarray], like: Params) -> Params:
    """A tree like `like`, filled by name. Raises ValueError if an array does not fit."""

    def restored(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = leaf_name(path)
        if name not in arrays:
            raise ValueError(f"it lacks {name}")
        array = arrays[name]
        if (array.shape, array.dtype) != (leaf.shape, leaf.dtype):
            raise ValueError(f"{name} is {array.dtype} {list(array.shape)}")
        return array

    return jax.tree.map_with_path(restored, like)


def leaf_name(path: tuple[Any, ...]) -> str:
    """The name of a leaf, such as "conv_0/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def params_digest(params: Params) -> str:
    """SHA-256 of the parameters' names, shapes and values as little-endian float32."""
    total = hashlib.sha256()
    for name, array in named_arrays(params).items():
        total.update(json.dumps([name, array.shape]).encode())
        total.update(array.astype("<f4").tobytes())
    return total.hexdigest()
