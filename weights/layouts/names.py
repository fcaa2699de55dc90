"""Tables that lead from the tensors of a published file to a tree of ours, and back.

A `Layout` has a `Place` for each published name: the path of the leaf in our tree, the shape in the
file, and the form, which is how the axes change. A converter builds the layout of its file with
`convolution`, `affine` and `norm`, and `read_layout` and `write_layout` do the rest.

PyTorch stores weights [out, in] and [out, in, height, width]; ours are [in, out] and
[height, width, in, out].
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fewstep.weights.tensors import check_tensors

Tensors = Mapping[str, np.ndarray]
Tree = Mapping[str, Any]
Shape = tuple[int, ...]

# What wrappers for several devices and compilers put before every name.
WRAPPERS = ("module.", "_orig_mod.")
MOST_NAMES = 3  # shown for each fault


class Form(NamedTuple):
    """How the array of a file becomes ours, and ours the file's; exact inverses of each other."""

    read: Callable[[np.ndarray], np.ndarray]
    write: Callable[[np.ndarray], np.ndarray]


SAME = Form(lambda array: array, lambda array: array)
MATRIX = Form(np.transpose, np.transpose)
CONVOLUTION = Form(
    lambda array: array.transpose(2, 3, 1, 0), lambda array: array.transpose(3, 2, 0, 1)
)
# A matrix that the file stores as a convolution of one pixel, [out, in, 1, 1].
POINTWISE = Form(lambda array: array[:, :, 0, 0].T, lambda array: array.T[:, :, None, None])


class Place(NamedTuple):
    """Where a published tensor stands in our tree.

    path: keys of our tree, joined by "/", such as "encoder/conv_in/kernel".
    shape: in the file.
    form: how the axes change.
    """

    path: str
    shape: Shape
    form: Form = SAME


Layout = Mapping[str, Place]


def convolution(
    name: str, path: str, inputs: int, outputs: int, side: int = 3, bias: bool = True
) -> dict[str, Place]:
    """The places of a square convolution: `weight` is our kernel, `bias` our bias."""
    weight = Place(f"{path}/kernel", (outputs, inputs, side, side), CONVOLUTION)
    return {f"{name}.weight": weight} | (biases(name, path, outputs) if bias else {})


def affine(
    name: str, path: str, inputs: int, outputs: int, *, bias: bool = True, pointwise: bool = False
) -> dict[str, Place]:
    """The places of an affine layer, which the file may store as a convolution of one pixel."""
    shape, form = ((outputs, inputs, 1, 1), POINTWISE) if pointwise else ((outputs, inputs), MATRIX)
    weight = Place(f"{path}/kernel", shape, form)
    return {f"{name}.weight": weight} | (biases(name, path, outputs) if bias else {})


def norm(name: str, path: str, width: int) -> dict[str, Place]:
    """The places of a normalisation: `weight` is our scale, `bias` our bias."""
    return {f"{name}.weight": Place(f"{path}/scale", (width,))} | biases(name, path, width)


def biases(name: str, path: str, width: int) -> dict[str, Place]:
    return {f"{name}.bias": Place(f"{path}/bias", (width,))}


def read_layout(tensors: Tensors, layout: Layout, path: str | Path, expected: str) -> dict:
    """The tree of a file's tensors: nested dicts of float32 arrays.

    path: the file, for messages. expected: what it should hold, such as "an SD autoencoder".
    Raises ValueError that names the file if a tensor is missing, unknown, of another shape, or not
    finite.
    """
    check_tensors(tensors, {name: place.shape for name, place in layout.items()}, path, expected)
    tree: dict[str, Any] = {}
    for name, place in layout.items():
        array = np.ascontiguousarray(place.form.read(tensors[name]), np.float32)
        if not np.isfinite(array).all():
            raise ValueError(f"{path}: {name} has values that are not finite; download it again")
        set_leaf(tree, place.path, array)
    return tree


def write_layout(tree: Tree, layout: Layout) -> dict[str, np.ndarray]:
    """The tensors of a tree under their published names; the inverse of `read_layout`.

    Raises ValueError if the tree lacks a leaf of the layout, has another one, or one of another
    shape.
    """
    leaves = flatten(tree)
    paths = {place.path for place in layout.values()}
    faults = {"lacks": paths - leaves.keys(), "has unknown": leaves.keys() - paths}
    found = [f"{fault} {first_names(names)}" for fault, names in faults.items() if names]
    if found:
        raise ValueError(f"the tree {' and '.join(found)}")
    tensors = {
        name: np.ascontiguousarray(place.form.write(np.asarray(leaves[place.path])))
        for name, place in layout.items()
    }
    for name, place in layout.items():
        if tensors[name].shape != place.shape:
            raise ValueError(
                f"{place.path} is {list(leaves[place.path].shape)}, which makes {name} "
                f"{list(tensors[name].shape)} and not {list(place.shape)}"
            )
    return tensors


def first_names(names: set[str]) -> str:
    """Some names of many, for a message."""
    more = "" if len(names) <= MOST_NAMES else f" and {len(names) - MOST_NAMES} more"
    return ", ".join(sorted(names)[:MOST_NAMES]) + more


def set_leaf(tree: dict[str, Any], path: str, leaf: Any) -> None:
    """Put a leaf at a path into nested dicts, which are made on the way."""
    *above, last = path.split("/")
    for key in above:
        tree = tree.setdefault(key, {})
    tree[last] = leaf


def flatten(tree: Tree, start: str = "") -> dict[str, Any]:
    """The leaves of nested dicts by path, such as "encoder/conv_in/kernel"."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        inner = flatten(value, f"{start}{key}/") if isinstance(value, Mapping) else None
        leaves |= {f"{start}{key}": value} if inner is None else inner
    return leaves


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts of leaves that are named by their paths; the inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        set_leaf(tree, path, leaf)
    return tree


def unwrapped(tensors: Tensors) -> Tensors:
    """The tensors without the prefixes of WRAPPERS that all names have."""
    for prefix in WRAPPERS:
        if tensors and all(name.startswith(prefix) for name in tensors):
            return unwrapped(below(tensors, prefix))
    return tensors


def below(tensors: Tensors, prefix: str) -> dict[str, np.ndarray]:
    """The tensors whose names begin with the prefix, named without it."""
    return {
        name.removeprefix(prefix): array
        for name, array in tensors.items()
        if name.startswith(prefix)
    }


def without(tensors: Tensors, ignored: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The tensors whose names begin with none of `ignored`."""
    return {name: array for name, array in tensors.items() if not name.startswith(ignored)}
