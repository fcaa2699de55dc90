"""LPIPS, learned perceptual image patch similarity (Zhang et al. 2018), version 0.1 of its code.

    d(a, b) = sum_l mean_ij sum_c w_lc (a_lijc / || a_lij || - b_lijc / || b_lij ||)^2     (eq. 1)

a_l are the maps of a classifier of ImageNet after the last activation of each part, VGG-16's five
or AlexNet's five, and w_l >= 0 are learned. Images are in [-1, 1]; a grey one counts as three equal
channels. weights/layouts/lpips.py reads published weights.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from fewstep.models.network import Params

CHANNELS = 3
# Mean and deviation of ImageNet's channels for images in [-1, 1], as the authors' code has them.
MEAN, STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
TINY = 1e-24  # smallest squared norm of the channels at a position


class Conv(NamedTuple):
    """A convolution and its activation.

    place: its number among the layers of torchvision's `features`. pool: side of the max pooling
    before it, in strides of 2; 0 for none. tapped: whether its maps are compared.
    """

    place: int
    width: int
    side: int = 3
    stride: int = 1
    padding: int = 1
    pool: int = 0
    tapped: bool = False


Backbone = tuple[Conv, ...]
BACKBONES: dict[str, Backbone] = {
    "vgg": (
        Conv(0, 64),
        Conv(2, 64, tapped=True),
        Conv(5, 128, pool=2),
        Conv(7, 128, tapped=True),
        Conv(10, 256, pool=2),
        Conv(12, 256),
        Conv(14, 256, tapped=True),
        Conv(17, 512, pool=2),
        Conv(19, 512),
        Conv(21, 512, tapped=True),
        Conv(24, 512, pool=2),
        Conv(26, 512),
        Conv(28, 512, tapped=True),
    ),
    "alex": (
        Conv(0, 64, side=11, stride=4, padding=2, tapped=True),
        Conv(3, 192, side=5, padding=2, pool=3, tapped=True),
        Conv(6, 384, pool=3, tapped=True),
        Conv(8, 256, tapped=True),
        Conv(10, 256, tapped=True),
    ),
}


def lpips_init(name: str, shape: tuple[int, ...]) -> Callable[[Array], Params]:
    """The function key -> random parameters of a backbone, for images of that shape.

    Raises ValueError for images with other than 1 or 3 channels, and for images smaller than its
    strides.
    """
    backbone = BACKBONES[name]
    if len(shape) != 3 or shape[2] not in (1, CHANNELS):
        raise ValueError(f"it takes images of 1 or 3 channels, not {' x '.join(map(str, shape))}")
    if min(shape[:2]) < (least := smallest_side(backbone)):
        raise ValueError(
            f"lpips by {name} takes images of {least} x {least} pixels or more, not "
            f"{shape[0]} x {shape[1]}"
        )
    return lambda key: random_params(backbone, key)


def random_params(backbone: Backbone, key: Array) -> Params:
    """Convolutions of unit gain, and heads in [0, 1)."""
    params, inputs = {}, CHANNELS
    for conv, own in zip(backbone, jax.random.split(key, len(backbone)), strict=True):
        key_kernel, key_bias, key_head = jax.random.split(own, 3)
        size = (conv.side, conv.side, inputs, conv.width)
        gain = (2.0 / (conv.side**2 * inputs)) ** 0.5
        params[f"conv_{conv.place}"] = {
            "kernel": gain * jax.random.normal(key_kernel, size),
            "bias": 0.1 * jax.random.normal(key_bias, (conv.width,)),
        }
        if conv.tapped:
            params[f"head_{conv.place}"] = jax.random.uniform(key_head, (conv.width,))
        inputs = conv.width
    return params


def smallest_side(backbone: Backbone) -> int:
    """The smallest side of an image whose last maps have a position."""
    side = 1
    for conv in reversed(backbone):
        side = max((side - 1) * conv.stride + conv.side - 2 * conv.padding, 1)
        side = (side - 1) * 2 + conv.pool if conv.pool else side
    return side


def compared_maps(backbone: Backbone, params: Params, x: Array) -> dict[str, Array]:
    """The maps that are compared, with channels of norm 1, by the name of their head."""
    x = (jnp.broadcast_to(x, (*x.shape[:-1], CHANNELS)) - jnp.array(MEAN)) / jnp.array(STD)
    maps = {}
    for conv in backbone:
        if conv.pool:
            x = max_pool(x, conv.pool)
        own = params[f"conv_{conv.place}"]
        x = jax.lax.conv_general_dilated(
            x,
            own["kernel"],
            (conv.stride,) * 2,
            ((conv.padding,) * 2,) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jax.nn.relu(x + own["bias"])
        if conv.tapped:
            norm = jnp.sqrt(jnp.maximum(jnp.sum(x**2, axis=-1, keepdims=True), TINY))
            maps[f"head_{conv.place}"] = x / norm
    return maps


def max_pool(x: Array, side: int) -> Array:
    """The largest value in windows of that side, in strides of 2, without padding."""
    window = (1, side, side, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, (1, 2, 2, 1), "VALID")


def lpips_distance(name: str, params: Params, a: Array, b: Array) -> Array:
    """d(a, b): [B]. a, b: images [B, H, W, 1 or 3] in [-1, 1]."""
    backbone = BACKBONES[name]
    one, other = (compared_maps(backbone, params, x) for x in (a, b))
    return sum(
        jnp.mean(jnp.sum(params[head] * (one[head] - other[head]) ** 2, axis=-1), axis=(1, 2))
        for head in one
    )


def convolutions(name: str) -> list[tuple[int, int, int, int, bool]]:
    """(place, inputs, outputs, side, tapped) of each convolution, for weights/layouts/lpips.py."""
    backbone = BACKBONES[name]
    inputs = (CHANNELS, *(conv.width for conv in backbone))
    return [(c.place, n, c.width, c.side, c.tapped) for n, c in zip(inputs, backbone, strict=False)]
