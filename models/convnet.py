"""A small convolutional classifier of images. Its penultimate layer serves as features.

    x -> 3 x 3 convolutions, halving the side until it is at most 4 -> features -> logits

No layer mixes the images of a batch or uses statistics of the batch, so the features of an image
depend on that image only.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from fewstep.models.network import Params, check_integers

Array = jax.Array
Key = jax.Array

SMALLEST, LARGEST = 8, 64  # sides of the images
LAST_SIDE = 4  # side of the last maps, on which the positions of strokes still differ
FEWEST_LAYERS = 2  # smallest number of convolutions, for images that need fewer halvings
FIRST_WIDTH, LARGEST_WIDTH = 32, 128  # channels, doubled from layer to layer
DIMENSION = 64  # number of features
NEGATIVE_SLOPE = 0.2  # of the features' leaky ReLU, which is flat nowhere, so no feature dies
MAPS, ACTIVATIONS = "maps", "activations"  # where the module keeps what its convolutions make
DROPOUT = 0.2  # dropout rate of the features in training


class Convnet(NamedTuple):
    """A classifier without its parameters.

    init: key -> parameters, a nested dict of float32 arrays.
    apply: `apply(params, x, *, train=False, rng=None)` -> (features [B, dimension], logits
        [B, classes]), float32. `x`: [B, S, S, C], floating. `train=True` turns dropout on,
        which needs the key `rng`.
    dimension: number of features.
    """

    init: Callable[[Key], Params]
    apply: Callable[..., tuple[Array, Array]]
    dimension: int = DIMENSION


def convnet(shape: tuple[int, ...], num_classes: int) -> Convnet:
    """The classifier of square images with sides of 8 to 64 pixels.

    shape: (side, side, channels) of an image. Raises ValueError for any other shape, and for fewer
    than two classes.
    """
    check_shape(shape)
    check_integers(2, num_classes=num_classes)
    module = ConvnetModule(convolutions(shape[0]), num_classes)

    def init(key: Key) -> Params:
        return module.init(key, jnp.zeros((1, *shape)))["params"]

    def apply(
        params: Params, x: Array, *, train: bool = False, rng: Key | None = None
    ) -> tuple[Array, Array]:
        if x.shape[1:] != tuple(shape):
            raise ValueError(f"images are {list(x.shape[1:])}; this classifier takes {list(shape)}")
        if not train:
            return module.apply({"params": params}, x)
        if rng is None:
            raise ValueError("rng is missing: with train=True, dropout needs a key.")
        return module.clone(dropout=DROPOUT).apply({"params": params}, x, rngs={"dropout": rng})

    return Convnet(init, apply)


def feature_maps(params: Params, x: Array) -> list[Array]:
    """What each convolution of a classifier makes of images, after its activation.

    params: of a `convnet`. x: [B, S, S, C], floating, of the shape that it was made for. Returns
    [B, S_l, S_l, C_l] for each convolution.
    """
    module = ConvnetModule(convolutions(x.shape[1]), params["logits"]["bias"].size)
    _, kept = module.apply({"params": params}, x, mutable=[MAPS])
    return list(kept[MAPS][ACTIVATIONS])


class Layer(NamedTuple):
    """A convolution. width: output channels. stride: 1, or 2 to halve the side."""

    width: int
    stride: int


def convolutions(side: int) -> tuple[Layer, ...]:
    """One convolution for each halving, after some without halving for small images."""
    halvings = 0
    while side > LAST_SIDE:
        side, halvings = -(-side // 2), halvings + 1
    strides = [1] * (FEWEST_LAYERS - halvings) + [2] * halvings
    return tuple(
        Layer(min(FIRST_WIDTH * 2**i, LARGEST_WIDTH), stride) for i, stride in enumerate(strides)
    )


class ConvnetModule(nn.Module):
    """[B, S, S, C] -> features [B, D], logits [B, classes].

    Products use full float32, because faster modes of accelerators change the features.
    """

    layers: tuple[Layer, ...]
    num_classes: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        exact: dict[str, Any] = {
            "precision": jax.lax.Precision.HIGHEST,
            "kernel_init": nn.initializers.he_normal(),
        }
        drop = partial(nn.Dropout, self.dropout, deterministic=False)
        for index, (width, stride) in enumerate(self.layers):
            conv = nn.Conv(width, (3, 3), (stride, stride), name=f"conv_{index}", **exact)
            x = nn.silu(conv(x))
            self.sow(MAPS, ACTIVATIONS, x)  # kept only if asked for
        x = x.reshape(x.shape[0], -1)
        hidden = nn.Dense(DIMENSION, name="features", **exact)(x)
        features = nn.leaky_relu(hidden, NEGATIVE_SLOPE)
        return features, nn.Dense(self.num_classes, name="logits", **exact)(drop()(features))


def check_shape(shape: tuple[int, ...]) -> None:
    """Raises ValueError unless shape is (S, S, 1 or 3) with S from 8 to 64."""
    if len(shape) != 3 or shape[0] != shape[1] or shape[2] not in (1, 3):
        raise ValueError(f"images are {list(shape)}; the classifier takes [S, S, 1] and [S, S, 3]")
    if not SMALLEST <= shape[0] <= LARGEST:
        raise ValueError(
            f"images of {shape[0]} pixels; the classifier takes {SMALLEST} to {LARGEST}"
        )
