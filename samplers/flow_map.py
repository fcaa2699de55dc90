"""Sampling with a flow map, which jumps from t to s by the average velocity between them."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jax import Array

# (x: [B, ...], t: [B], s: [B]) -> average velocity from t to s, like x
AverageVelocityFn = Callable[[Array, Array, Array], Array]


def jump(average_velocity: AverageVelocityFn, x: Array, times: Array) -> Array:
    """x_s = x_t - (t - s) u(x_t, t, s) along [N + 1] descending times; exact for an exact u."""
    chex.assert_rank(times, 1)

    def step(x: Array, interval: tuple[Array, Array]) -> tuple[Array, None]:
        t, s = (jnp.broadcast_to(time, x.shape[:1]) for time in interval)
        return x - (interval[0] - interval[1]) * average_velocity(x, t, s), None

    return jax.lax.scan(step, x, (times[:-1], times[1:]))[0]
