"""Published files of LPIPS and our tree of it (models/lpips.py).

The authors publish the heads alone, `lin0.model.1.weight`; the convolutions are those of the
classifier that torchvision publishes, `features.0.weight`. A saved network of their package has
both in one file, with the convolutions as `net.slice1.0.weight`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fewstep.weights.layouts.names import (
    Form,
    Layout,
    Place,
    Tensors,
    convolution,
    read_layout,
    without,
    write_layout,
)
from fewstep.weights.tensors import read_tensors

# The classifier's other layers, and what a saved network has twice.
IGNORED = ("classifier.", "lins.", "scaling_layer.")
HEAD = Form(lambda array: array[0, :, 0, 0], lambda array: array[None, :, None, None])
# (place among torchvision's layers, inputs, outputs, side, whether its maps are compared)
Convolution = tuple[int, int, int, int, bool]


def lpips_layout(convolutions: Sequence[Convolution], sliced: bool) -> Layout:
    """The layout of the convolutions and heads. sliced: whether a saved network names them."""
    layout: dict[str, Place] = {}
    part = 0
    for place, inputs, outputs, side, tapped in convolutions:
        name = f"net.slice{part + 1}.{place}" if sliced else f"features.{place}"
        layout |= convolution(name, f"conv_{place}", inputs, outputs, side)
        if tapped:
            layout[f"lin{part}.model.1.weight"] = Place(f"head_{place}", (1, outputs, 1, 1), HEAD)
            part += 1
    return layout


def read_lpips(files: Sequence[str | Path], convolutions: Sequence[Convolution]) -> dict:
    """Our tree of one or several files, which together hold the convolutions and the heads.

    Raises FileNotFoundError that names a missing file, and ValueError for tensors that are missing,
    unknown or of another shape.
    """
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        if not Path(file).is_file():
            raise FileNotFoundError(
                f"There is no file {file}. LPIPS needs torchvision's weights of the classifier, "
                "and the authors' weights of its heads: two files, with a comma between them"
            )
        tensors |= without(read_tensors(file), IGNORED)
    sliced = any(name.startswith("net.") for name in tensors)
    names = ", ".join(map(str, files))
    return read_layout(tensors, lpips_layout(convolutions, sliced), names, "LPIPS")


def write_lpips(tree: dict, convolutions: Sequence[Convolution], sliced: bool) -> Tensors:
    """The tensors of a tree under their published names; the inverse of `read_lpips`."""
    return write_layout(tree, lpips_layout(convolutions, sliced))
