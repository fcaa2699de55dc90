"""Inception-v3 as of 2015-12-05, whose features turn a Frechet distance into FID.

Szegedy et al. 2015 (arXiv:1512.00567), as in the TensorFlow graph that Heusel et al. 2017
(arXiv:1706.08500) measured with. pytorch-fid and torch-fidelity ported its weights. The features
are the 2048 channels before the classifier, averaged over 8 x 8 places.

    resize to 299 x 299 -> (x - 128) / 128 -> convolutions -> mean -> features -> affine -> logits

Traps of the protocol:
- torchvision's Inception-v3 is another network. This one has other weights, 1008 outputs and
  average pooling that leaves the padding out of its mean. Its last block has max pooling instead.
- The graph resizes by TensorFlow 1's rule: output pixel i reads position i in / out, without
  half-pixel centres and without blur. So do torch-fidelity and this module. pytorch-fid reads
  (i + 1/2) in / out - 1/2, which gives other features, most of all for small images.
- The graph scales bytes by (x - 128) / 128. So do torch-fidelity and this module; pytorch-fid
  scales by 2 x / 255 - 1.
- The Inception score of the original code and of torch-fidelity uses all 1008 logits, without the
  classifier's bias.
- Matrix products are in full float32: the faster modes of accelerators change the features.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fewstep.eval.features.feature_network import check_colours

Array = jax.Array

SIDE = 299  # side of the network's input, pixels
CENTRE = 128.0  # (x - 128) / 128 takes bytes to [-1, 1)
FEATURES = 2048
CLASSES = 1008  # outputs of the 2015 graph; 1000 are classes of ImageNet


class Affine(NamedTuple):
    """A kernel [height, width, in, out] or [in, out], and a bias [out]."""

    kernel: Array
    bias: Array


# One Affine per convolution, with batch normalisation folded in, and one for "fc"; 95 MB.
Params = Mapping[str, Affine]


class InceptionOutputs(NamedTuple):
    """features: [B, 2048]; logits and logits_unbiased (without the bias): [B, 1008]; float32."""

    features: Array
    logits: Array
    logits_unbiased: Array


class Conv(NamedTuple):
    """Convolution, batch normalisation, ReLU: [B, H, W, C] -> [B, H', W', features]."""

    name: str
    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


class Branches(NamedTuple):
    """Chains of layers on one input, whose outputs are concatenated along the channels.

    name: prefix of the names of the layers inside.
    """

    name: str
    chains: tuple["Chain", ...]


def branches(name: str, *chains: "Chain") -> Branches:
    return Branches(name, chains)


def max_pool(x: Array, stride: int, padding: str) -> Array:
    """Maximum over 3 x 3 places, without the padding."""
    return jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padding
    )


def average_pool(x: Array) -> Array:
    """Mean over 3 x 3 places, without the padding."""
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


def apply(params: Params, images: Array) -> InceptionOutputs:
    """uint8 images [B, H, W, 1 or 3] -> features [B, 2048] and logits [B, 1008].

    Pure, can be jitted. One channel counts as three equal ones. Raises ValueError for images of
    another type or shape.
    """
    check_colours(images)
    x = (resize_bilinear(images.astype(jnp.float32)) - CENTRE) / CENTRE
    x = run_chain(NETWORK, params, jnp.broadcast_to(x, (*x.shape[:-1], 3)))
    features = x.mean((1, 2))
    unbiased = jnp.matmul(features, params["fc"].kernel, precision=jax.lax.Precision.HIGHEST)
    return InceptionOutputs(features, unbiased + params["fc"].bias, unbiased)


def resize_bilinear(images: Array) -> Array:
    """Resize by TensorFlow 1's rule: float [B, H, W, C] -> [B, 299, 299, C]."""
    return interpolate(interpolate(images, axis=2), axis=1)


def interpolate(x: Array, axis: int) -> Array:
    """Linear interpolation along one axis: output i of 299 is x at i size / 299, in float32."""
    size = x.shape[axis]
    position = np.arange(SIDE, dtype=np.float32) * np.float32(size / SIDE)
    low = position.astype(np.int32)
    high = np.minimum(low + 1, size - 1)
    fraction = np.expand_dims(position - low, [a for a in range(x.ndim) if a != axis])
    below, above = jnp.take(x, low, axis), jnp.take(x, high, axis)
    return below + (above - below) * fraction.astype(np.float32)


def run_chain(chain: Chain, params: Params, x: Array, start: str = "") -> Array:
    """Apply the layers of a chain in turn. start: prefix of their names in `params`."""
    for layer in chain:
        match layer:
            case Conv():
                x = convolve(layer, params[start + layer.name], x)
            case Branches(name, chains):
                x = jnp.concatenate(
                    [run_chain(c, params, x, start + name) for c in chains], axis=-1
                )
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
