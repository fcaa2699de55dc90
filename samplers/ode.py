"""Solvers of the probability-flow ODE dx/dt = v(x, t), from noise to data.

A velocity function maps (x: [B, ...], t: [B]) to an array like x; `velocity_of` makes one from a
prediction of any kind on any path. The loop over times is inside, so a caller jits a whole sampler.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from diffusion.path import Path
from diffusion.prediction import convert

VelocityFn = Callable[[Array, Array], Array]


def velocity_of(predict: Callable[[Array, Array], Array], kind: str, path: Path) -> VelocityFn:
    """The velocity that a network predicting `kind` on `path` stands for."""
    return lambda x, t: convert(predict(x, t), x, t, path, source=kind, to="velocity")


def euler(velocity: VelocityFn, x: Array, times: Array) -> Array:
    """x_s = x_t - (t - s) v(x_t, t). Order 1; N evaluations for [N + 1] times."""

    def step(x: Array, interval: tuple[Array, Array]) -> tuple[Array, None]:
        t, s = interval
        return x - (t - s) * velocity(x, jnp.broadcast_to(t, x.shape[:1])), None

    return jax.lax.scan(step, x, (times[:-1], times[1:]))[0]


def heun(velocity: VelocityFn, x: Array, times: Array) -> Array:
    """The trapezoidal step predicted by Euler (Karras et al. 2022, algorithm 1).

    Order 2; 2 N - 1 evaluations: the last step is Euler's, since some predictions carry no velocity
    at the data end.
    """

    def step(x: Array, interval: tuple[Array, Array]) -> tuple[Array, None]:
        t, s = interval
        v_t = velocity(x, jnp.broadcast_to(t, x.shape[:1]))
        v_s = velocity(x - (t - s) * v_t, jnp.broadcast_to(s, x.shape[:1]))
        return x - (t - s) * 0.5 * (v_t + v_s), None

    x = jax.lax.scan(step, x, (times[:-2], times[1:-1]))[0]
    return euler(velocity, x, times[-2:])


SOLVERS: dict[str, Callable[[VelocityFn, Array, Array], Array]] = {"euler": euler, "heun": heun}
