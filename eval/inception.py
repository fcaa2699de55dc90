"""The network whose features make a Frechet distance the FID: Inception-v3 as of 2015-12-05.

Szegedy et al. 2015 (arXiv:1512.00567), in the form of the TensorFlow graph that Heusel et al. 2017
(arXiv:1706.08500) measured with, on the weights that pytorch-fid and torch-fidelity ported from
it. Features are the 2048 channels before the classifier, averaged over the 8 x 8 places.

    resize to 299 x 299 -> (x - 128) / 128 -> convolutions -> mean -> features -> affine -> logits

Traps of the protocol:
- It is not the Inception-v3 of torchvision: other weights, 1008 outputs, an average pooling that
  leaves the padding out of its mean, and, in the last block alone, a maximum instead of it.
- The graph resizes by the rule of TensorFlow 1: output pixel i reads position i in / out, with no
  half-pixel centres, and nothing is blurred first. torch-fidelity does that too, and so do we;
  pytorch-fid reads (i + 1/2) in / out - 1/2, which gives other features, most of all for small
  images.
- The graph scales bytes by (x - 128) / 128, torch-fidelity and we too; pytorch-fid by
  2 x / 255 - 1.
- The Inception Score of the original code, and of torch-fidelity, uses the logits without the
  bias of the classifier, and all 1008 of them.
- The products are taken in full float32: the faster modes of accelerators move the features.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eval.features import check_images
from eval.weights import read_tensors

Array = jax.Array
Tensors = Mapping[str, np.ndarray]

SIDE = 299  # of the images that the network sees
CENTRE = 128.0  # (x - 128) / 128 takes bytes to [-1, 1)
FEATURES = 2048
CLASSES = 1008  # outputs of the 2015 graph, of which 1000 are classes of ImageNet
BATCH_NORM_EPSILON = 1e-3  # of the 2015 graph
# pytorch-fid's name; torch-fidelity has the same bytes as weights-inception-....
WEIGHTS_NAME = "pt_inception-2015-12-05-6726825d.pth"
WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
IGNORED = ".num_batches_tracked"  # counters that only training reads


class Affine(NamedTuple):
    """A convolution [height, width, in, out] or matrix [in, out], and what is added: [out]."""

    kernel: Array
    bias: Array


Params = Mapping[str, Affine]


class InceptionOutputs(NamedTuple):
    """features: [B, 2048]; logits and logits_unbiased (without the bias): [B, 1008]; float32."""

    features: Array
    logits: Array
    logits_unbiased: Array


class Inception(NamedTuple):
    """The network with its parameters.

    params: one Affine per convolution, batch normalisation folded in, and "fc"; 95 MB.
    apply: (params, uint8 images [B, H, W, 1 or 3]) -> InceptionOutputs; pure, to be jitted. One
        channel stands for three equal ones. Raises ValueError for images of another type or shape.
    """

    params: Params
    apply: Callable[[Params, Array], InceptionOutputs]


class Conv(NamedTuple):
    """Convolution, batch normalisation, ReLU: [B, H, W, C] -> [B, H', W', features]."""

    name: str
    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


class Branches(NamedTuple):
    """Chains of layers on one input, side by side in the channels of the output.

    name: what the names of the layers inside begin with.
    """

    name: str
    chains: tuple["Chain", ...]


def branches(name: str, *chains: "Chain") -> Branches:
    return Branches(name, chains)


def max_pool(x: Array, stride: int, padding: str) -> Array:
    """Maxima over 3 x 3 places; padding never wins."""
    return jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padding
    )


def average_pool(x: Array) -> Array:
    """Means over 3 x 3 places, at the border over those inside the image."""
    total = partial(
        jax.lax.reduce_window,
        init_value=0.0,
        computation=jax.lax.add,
        window_dimensions=(1, 3, 3, 1),
        window_strides=(1, 1, 1, 1),
        padding="SAME",
    )
    return total(x) / total(jnp.ones((1, *x.shape[1:3], 1)))


halve = partial(max_pool, stride=2, padding="VALID")
maximum = partial(max_pool, stride=1, padding="SAME")
Layer = Conv | Branches | Callable[[Array], Array]
Chain = Sequence[Layer]


def block_a(name: str, pooled: int) -> Branches:
    return branches(
        name,
        [Conv("branch1x1", 64)],
        [Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))],
        [
            Conv("branch3x3dbl_1", 64),
            Conv("branch3x3dbl_2", 96, (3, 3)),
            Conv("branch3x3dbl_3", 96, (3, 3)),
        ],
        [average_pool, Conv("branch_pool", pooled)],
    )


def block_b(name: str) -> Branches:
    return branches(
        name,
        [Conv("branch3x3", 384, (3, 3), 2, "VALID")],
        [
            Conv("branch3x3dbl_1", 64),
            Conv("branch3x3dbl_2", 96, (3, 3)),
            Conv("branch3x3dbl_3", 96, (3, 3), 2, "VALID"),
        ],
        [halve],
    )


def block_c(name: str, width: int) -> Branches:
    return branches(
        name,
        [Conv("branch1x1", 192)],
        [
            Conv("branch7x7_1", width),
            Conv("branch7x7_2", width, (1, 7)),
            Conv("branch7x7_3", 192, (7, 1)),
        ],
        [
            Conv("branch7x7dbl_1", width),
            Conv("branch7x7dbl_2", width, (7, 1)),
            Conv("branch7x7dbl_3", width, (1, 7)),
            Conv("branch7x7dbl_4", width, (7, 1)),
            Conv("branch7x7dbl_5", 192, (1, 7)),
        ],
        [average_pool, Conv("branch_pool", 192)],
    )


def block_d(name: str) -> Branches:
    return branches(
        name,
        [Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2, "VALID")],
        [
            Conv("branch7x7x3_1", 192),
            Conv("branch7x7x3_2", 192, (1, 7)),
            Conv("branch7x7x3_3", 192, (7, 1)),
            Conv("branch7x7x3_4", 192, (3, 3), 2, "VALID"),
        ],
        [halve],
    )


def block_e(name: str, pool: Callable[[Array], Array]) -> Branches:
    return branches(
        name,
        [Conv("branch1x1", 320)],
        [Conv("branch3x3_1", 384), fork("branch3x3_2")],
        [Conv("branch3x3dbl_1", 448), Conv("branch3x3dbl_2", 384, (3, 3)), fork("branch3x3dbl_3")],
        [pool, Conv("branch_pool", 192)],
    )


def fork(name: str) -> Branches:
    return branches(name, [Conv("a", 384, (1, 3))], [Conv("b", 384, (3, 1))])


NETWORK: Chain = [
    Conv("Conv2d_1a_3x3", 32, (3, 3), 2, "VALID"),
    Conv("Conv2d_2a_3x3", 32, (3, 3), 1, "VALID"),
    Conv("Conv2d_2b_3x3", 64, (3, 3)),
    halve,
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, (3, 3), 1, "VALID"),
    halve,
    block_a("Mixed_5b.", 32),
    block_a("Mixed_5c.", 64),
    block_a("Mixed_5d.", 64),
    block_b("Mixed_6a."),
    block_c("Mixed_6b.", 128),
    block_c("Mixed_6c.", 160),
    block_c("Mixed_6d.", 160),
    block_c("Mixed_6e.", 192),
    block_d("Mixed_7a."),
    block_e("Mixed_7b.", average_pool),
    block_e("Mixed_7c.", maximum),
]


def inception(weights: str | Path) -> Inception:
    """The network on the weights in a file with the published names, WEIGHTS_NAME or a copy.

    Any format that eval/weights.py reads will do; the published bytes have WEIGHTS_SHA256.
    Raises FileNotFoundError if there is no such file, and ValueError, naming the file, if it
    cannot be read or its tensors are not those of this network.
    """
    if not Path(weights).is_file():
        raise FileNotFoundError(
            f"There is no file {weights}. It should be {WEIGHTS_NAME}, the weights that "
            "pytorch-fid and torch-fidelity download from their release assets"
        )
    tensors = {k: v for k, v in read_tensors(weights).items() if not k.endswith(IGNORED)}
    kernels, _ = kernel_shapes(NETWORK, channels=3)
    check_tensors(tensors, published_shapes(kernels), weights)
    folded = {name: fold(name, tensors) for name in kernels}
    classifier = affine(tensors["fc.weight"].T, tensors["fc.bias"])
    return Inception(folded | {"fc": classifier}, apply)


def apply(params: Params, images: Array) -> InceptionOutputs:
    """uint8 images [B, H, W, 1 or 3] -> features [B, 2048] and logits [B, 1008]."""
    check_images(images)
    if images.shape[-1] not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels, not {images.shape[-1]}")
    x = (resize(images.astype(jnp.float32)) - CENTRE) / CENTRE
    x = run(NETWORK, params, jnp.broadcast_to(x, (*x.shape[:-1], 3)))
    features = x.mean((1, 2))
    unbiased = jnp.matmul(features, params["fc"].kernel, precision=jax.lax.Precision.HIGHEST)
    return InceptionOutputs(features, unbiased + params["fc"].bias, unbiased)


def resize(images: Array) -> Array:
    """Bilinear, by the rule of TensorFlow 1: [B, H, W, C] -> [B, 299, 299, C], floating."""
    return interpolate(interpolate(images, axis=2), axis=1)


def interpolate(x: Array, axis: int) -> Array:
    """Linear along one axis: output i of 299 is x at position i size / 299, taken in float32."""
    size = x.shape[axis]
    position = np.arange(SIDE, dtype=np.float32) * np.float32(size / SIDE)
    low = position.astype(np.int32)
    high = np.minimum(low + 1, size - 1)
    fraction = np.expand_dims(position - low, [a for a in range(x.ndim) if a != axis])
    below, above = jnp.take(x, low, axis), jnp.take(x, high, axis)
    return below + (above - below) * fraction.astype(np.float32)


def run(chain: Chain, params: Params, x: Array, start: str = "") -> Array:
    """The layers of a chain one after another; `start` is what their names begin with."""
    for layer in chain:
        match layer:
            case Conv():
                x = convolve(layer, params[start + layer.name], x)
            case Branches(name, chains):
                x = jnp.concatenate([run(c, params, x, start + name) for c in chains], axis=-1)
            case pool:
                x = pool(x)
    return x


def convolve(layer: Conv, weights: Affine, x: Array) -> Array:
    x = jax.lax.conv_general_dilated(
        x,
        weights.kernel,
        (layer.stride, layer.stride),
        layer.padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,
    )
    return jax.nn.relu(x + weights.bias)


def kernel_shapes(
    chain: Chain, channels: int, start: str = ""
) -> tuple[dict[str, tuple[int, ...]], int]:
    """Published shapes [out, in, height, width] by the names of convolutions; output channels."""
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


def published_shapes(kernels: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors in a published file, given those of the convolutions."""
    shapes: dict[str, tuple[int, ...]] = {
        "fc.weight": (CLASSES, FEATURES),
        "fc.bias": (CLASSES,),
    }
    for name, kernel in kernels.items():
        shapes[f"{name}.conv.weight"] = kernel
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.{part}"] = kernel[:1]
    return shapes


def check_tensors(
    tensors: Tensors, shapes: Mapping[str, tuple[int, ...]], path: str | Path
) -> None:
    """Raises ValueError unless `tensors` have these names and shapes and no others."""
    both = shapes.keys() & tensors.keys()
    faults = {
        "missing": shapes.keys() - tensors.keys(),
        "unknown": tensors.keys() - shapes.keys(),
        "of another shape": {key for key in both if tensors[key].shape != shapes[key]},
    }
    found = [
        f"{len(keys)} {fault}, such as {', '.join(sorted(keys)[:3])}"
        for fault, keys in faults.items()
        if keys
    ]
    if found:
        raise ValueError(f"{path} does not hold the tensors of {WEIGHTS_NAME}: {'; '.join(found)}")


def fold(name: str, tensors: Tensors) -> Affine:
    """A convolution and the batch normalisation after it as one affine map.

    gamma (w * x - mean) / sqrt(variance + eps) + beta = (scale w) * x + (beta - scale mean)
    """
    weight, gamma, beta, mean, variance = (
        tensors[f"{name}.{part}"].astype(np.float64)
        for part in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    )
    scale = gamma / np.sqrt(variance + BATCH_NORM_EPSILON)
    return affine(weight.transpose(2, 3, 1, 0) * scale, beta - scale * mean)


def affine(kernel: np.ndarray, bias: np.ndarray) -> Affine:
    return Affine(jnp.asarray(kernel, jnp.float32), jnp.asarray(bias, jnp.float32))
