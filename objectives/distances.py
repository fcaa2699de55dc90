"""Distances between a prediction and its target: elementwise, unreduced."""

import jax.numpy as jnp
from jax import Array


def squared_error(prediction: Array, target: Array) -> Array:
    """(prediction - target)^2."""
    return jnp.square(prediction - target)
