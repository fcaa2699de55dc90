"""The parameters of MeanFlow's JAX code (Geng et al. 2025, arXiv:2505.13447) and our DiT's tree.

Names are the keys of the Flax parameters, joined by "/", as numpy.savez can store them. The network
is a DiT whose second time is the interval h = t - r (model.second_time=interval), with time_scale 1
and time from data to noise, so only names differ; matrices are [in, out] already.
"""

from pathlib import Path

from fewstep.weights.layouts.dit import MLP_RATIO, TIME_FEATURES, Converted, Sizes, check_there
from fewstep.weights.layouts.names import (
    Form,
    Layout,
    Place,
    Tensors,
    Tree,
    below,
    read_layout,
    write_layout,
)

PREFIX = "net/"
EXPECTED = "a MeanFlow network"
PATCHES = "x_embedder/proj/kernel"
LABELS = "y_embedder/embedding_table/_flax_embedding/embedding"
BLOCK = "blocks/layers_"


def is_mean_flow(tensors: Tensors) -> bool:
    """Whether names are those of a MeanFlow network."""
    return {PATCHES, LABELS} <= {name.removeprefix(PREFIX) for name in tensors}


def dense(name: str, path: str, inputs: int, outputs: int) -> dict[str, Place]:
    """The places of an affine layer, which their code wraps once more."""
    return {
        f"{name}/_flax_linear/kernel": Place(f"{path}/kernel", (inputs, outputs)),
        f"{name}/_flax_linear/bias": Place(f"{path}/bias", (outputs,)),
    }


def mean_flow_layout(sizes: Sizes) -> Layout:
    """The names of the parameters below "net/"."""
    width, _, patch, channels, classes, _ = sizes
    shape = (patch, patch, channels, width)
    flat = Form(lambda array: array.reshape(-1, width), lambda array: array.reshape(shape))
    layout = {
        PATCHES: Place("patch_embedding/kernel", shape, flat),
        "x_embedder/proj/bias": Place("patch_embedding/bias", (width,)),
        LABELS: Place("conditioning/label_table", (classes + 1, width)),
    }
    for name, path in (("t", "time_embedder"), ("h", "second_time_embedder")):
        path = f"conditioning/{path}"
        layout |= dense(f"{name}_embedder/mlp/layers_0", f"{path}/hidden", TIME_FEATURES, width)
        layout |= dense(f"{name}_embedder/mlp/layers_2", f"{path}/output", width, width)
    for index in range(sizes.depth):
        name, path = f"{BLOCK}{index}", f"block_{index}"
        layout |= dense(f"{name}/adaLN_modulation/layers_1", f"{path}/modulation", width, 6 * width)
        layout |= dense(f"{name}/attn/qkv", f"{path}/attention/qkv", width, 3 * width)
        layout |= dense(f"{name}/attn/proj", f"{path}/attention/projection", width, width)
        layout |= dense(f"{name}/mlp/fc1", f"{path}/mlp/expand", width, MLP_RATIO * width)
        layout |= dense(f"{name}/mlp/fc2", f"{path}/mlp/contract", MLP_RATIO * width, width)
    name = "final_layer/adaLN_modulation/layers_1"
    layout |= dense(name, "final/modulation", width, 2 * width)
    return layout | dense("final_layer/linear", "final/output", width, patch**2 * channels)


def read_mean_flow(tensors: Tensors, path: str | Path, expected: str = EXPECTED) -> Converted:
    """The network in a file of MeanFlow's parameters.

    path, expected: the file and what it should hold, for messages. Raises ValueError that names the
    file and the tensors that are missing, unknown, of another shape, or not finite.
    """
    if all(name.startswith(PREFIX) for name in tensors):
        tensors = below(tensors, PREFIX)
    check_there(tensors, (PATCHES, LABELS), path, expected)
    kernel, table = tensors[PATCHES].shape, tensors[LABELS].shape
    if len(kernel) != 4 or len(table) != 2:
        raise ValueError(f"{path} does not hold {expected}: {PATCHES} is {list(kernel)}")
    depth = len({name.split("/")[0] for name in below(tensors, BLOCK)})
    sizes = Sizes(kernel[3], depth, kernel[0], kernel[2], table[0] - 1)
    return Converted(read_layout(tensors, mean_flow_layout(sizes), path, expected), sizes)


def write_mean_flow(tree: Tree, sizes: Sizes) -> dict[str, object]:
    """The parameters of a tree under MeanFlow's names; the inverse of `read_mean_flow`."""
    tensors = write_layout(tree, mean_flow_layout(sizes))
    return {f"{PREFIX}{name}": array for name, array in tensors.items()}
