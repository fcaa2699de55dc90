"""Distances between a prediction and its target."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from objectives.base import per_example

# (prediction, target), each [B, ...] -> [B]
Distance = Callable[[Array, Array], Array]

# c of the pseudo-Huber distance per square root of a dimension (Song & Dhariwal 2023, section 3.3).
HUBER_SCALE = 0.00054
# Keeps the gradient of a norm finite at 0, where it is then 0.
TINY = 1e-24


def squared_error(prediction: Array, target: Array) -> Array:
    """(prediction - target)^2, elementwise, unreduced."""
    return jnp.square(prediction - target)


def squared_l2() -> Distance:
    """|| a - b ||^2 / D: the mean of the squared error over dimensions."""
    return lambda a, b: per_example(squared_error(a, b))


def l1() -> Distance:
    """|| a - b ||_1 / D."""
    return lambda a, b: per_example(jnp.abs(a - b))


def pseudo_huber(c: float | None = None) -> Distance:
    """sqrt(|| a - b ||^2 + c^2) - c, over all dimensions (Song & Dhariwal 2023, eq. 8).

    c: 0.00054 sqrt(D) by default, as there; 0 is the norm || a - b ||, which ECT uses.
    """
    check_scale(c)

    def distance(a: Array, b: Array) -> Array:
        dimensions = a[0].size
        scale = HUBER_SCALE * dimensions**0.5 if c is None else c
        square = dimensions * per_example(squared_error(a, b))
        return jnp.sqrt(jnp.maximum(square + scale**2, TINY)) - scale

    return distance


def pseudo_huber_elementwise(c: float = 0.001) -> Distance:
    """Mean over dimensions of sqrt((a - b)^2 + c^2) - c, as in the training code of LCM."""
    check_scale(c)
    return lambda a, b: per_example(jnp.sqrt(jnp.maximum(squared_error(a, b) + c**2, TINY)) - c)


def check_scale(c: float | None) -> None:
    """Raises ValueError for a negative scale."""
    if c is not None and c < 0.0:
        raise ValueError(f"objective.distance.c={c} must be 0 or more")


DISTANCES: dict[str, Callable[..., Distance]] = {
    "squared_l2": squared_l2,
    "l1": l1,
    "pseudo_huber": pseudo_huber,
    "pseudo_huber_elementwise": pseudo_huber_elementwise,
}
