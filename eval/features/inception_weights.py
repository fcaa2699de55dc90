"""Published weights of inception.py: checks names and shapes, folds in batch normalisation."""

from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from fewstep.eval.features.inception import (
    CLASSES,
    FEATURES,
    NETWORK,
    Affine,
    Branches,
    Chain,
    Conv,
    Params,
)
from fewstep.weights.tensors import check_tensors, read_tensors

Tensors = Mapping[str, np.ndarray]

BATCH_NORM_EPSILON = 1e-3  # of the 2015 graph
# pytorch-fid's name; torch-fidelity calls the same bytes weights-inception-....
WEIGHTS_NAME = "pt_inception-2015-12-05-6726825d.pth"
WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
IGNORED = ".num_batches_tracked"  # counters for training only


def inception_params(weights: str | Path) -> Params:
    """Parameters of inception.py from the published file WEIGHTS_NAME or a converted copy.

    weights: a file in any format that weights/tensors.py reads; the published bytes have
    WEIGHTS_SHA256. Raises FileNotFoundError if the file does not exist, and ValueError that names
    it if it cannot be read or holds another network.
    """
    if not Path(weights).is_file():
        raise FileNotFoundError(
            f"There is no file {weights}. It should be {WEIGHTS_NAME}, the weights that "
            "pytorch-fid and torch-fidelity download from their release assets"
        )
    tensors = {k: v for k, v in read_tensors(weights).items() if not k.endswith(IGNORED)}
    kernels, _ = kernel_shapes(NETWORK, channels=3)
    check_tensors(tensors, inception_shapes(kernels), weights, WEIGHTS_NAME)
    folded = {name: fold(name, tensors) for name in kernels}
    classifier = float32_affine(tensors["fc.weight"].T, tensors["fc.bias"])
    return folded | {"fc": classifier}


def kernel_shapes(
    chain: Chain, channels: int, start: str = ""
) -> tuple[dict[str, tuple[int, ...]], int]:
    """Published shapes [out, in, height, width] of convolutions by name; output channels."""
    shapes = {}
    for layer in chain:
        match layer:
            case Conv():
                shapes[start + layer.name] = (layer.features, channels, *layer.kernel)
                channels = layer.features
            case Branches(name, chains):
                found = [kernel_shapes(c, channels, start + name) for c in chains]
                shapes |= {key: shape for inner, _ in found for key, shape in inner.items()}
                channels = sum(features for _, features in found)
    return shapes, channels


def inception_shapes(kernels: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors in the published file, from those of the convolutions."""
    shapes: dict[str, tuple[int, ...]] = {
        "fc.weight": (CLASSES, FEATURES),
        "fc.bias": (CLASSES,),
    }
    for name, kernel in kernels.items():
        shapes[f"{name}.conv.weight"] = kernel
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.{part}"] = kernel[:1]
    return shapes


def fold(name: str, tensors: Tensors) -> Affine:
    """One affine map for a convolution and the batch normalisation after it.

    gamma (w * x - mean) / sqrt(variance + eps) + beta = (scale w) * x + (beta - scale mean)
    """
    weight, gamma, beta, mean, variance = (
        tensors[f"{name}.{part}"].astype(np.float64)
        for part in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    )
    scale = gamma / np.sqrt(variance + BATCH_NORM_EPSILON)
    return float32_affine(weight.transpose(2, 3, 1, 0) * scale, beta - scale * mean)


def float32_affine(kernel: np.ndarray, bias: np.ndarray) -> Affine:
    return Affine(jnp.asarray(kernel, jnp.float32), jnp.asarray(bias, jnp.float32))
