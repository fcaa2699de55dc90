"""Hamiltonian Monte Carlo: Metropolis steps that leave a density as it is (Neal 2011).

    p ~ N(0, I);  (x', p') by L leapfrog steps of size h from (x, p) in H = -log rho(x) + |p|^2 / 2
    x becomes x' with probability min(1, exp(H(x, p) - H(x', p')))

A chain from samples of another distribution moves towards the density, at once within a mode, and
hardly between modes.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

LEAPFROG = 8
STEP_SIZE = 0.15  # in units of the scale, for one dimension; it falls with dimension^(1/4)
LEAST_ACCEPTED, MOST_TRIALS = 0.6, 12  # of the search for a step size


class Moved(NamedTuple):
    """Points after the last step, [B, D]. accepted: mean share of accepted proposals."""

    x: Array
    accepted: Array


def step_size(dimension: int) -> float:
    """The step of an unadapted chain, which accepts most proposals for densities of unit scale."""
    return STEP_SIZE * dimension**-0.25


def gradients(steps: int, leapfrog: int = LEAPFROG) -> int:
    """Gradient evaluations of a chain."""
    return steps * leapfrog + 1


class Adapted(NamedTuple):
    """size: of a step. trials: chains of one step that the search took."""

    size: float
    trials: int


def adapted_size(log_density: Callable[[Array], Array], x: Array, key: Array) -> Adapted:
    """`step_size`, halved until a step from x: [B, D] has 60 % of its proposals accepted.

    After MOST_TRIALS it is the last one that was tried.
    """
    first = jax.jit(lambda size: hmc(log_density, x, key, 1, size).accepted)
    size, trials = step_size(x.shape[-1]), 1
    while first(size) < LEAST_ACCEPTED and trials < MOST_TRIALS:
        size, trials = size / 2.0, trials + 1
    return Adapted(size, trials)


def hmc(
    log_density: Callable[[Array], Array],
    x: Array,
    key: Array,
    steps: int,
    size: float,
    leapfrog: int = LEAPFROG,
) -> Moved:
    """`steps` steps of one chain from each point. x: [B, D]. log_density: [D] -> scalar."""
    evaluate = jax.vmap(jax.value_and_grad(log_density))

    def leap(_: int, state: tuple[Array, ...]) -> tuple[Array, ...]:
        x, p, _, gradient = state
        p = p + 0.5 * size * gradient
        x = x + size * p
        value, gradient = evaluate(x)
        return x, p + 0.5 * size * gradient, value, gradient

    def step(state: tuple[Array, ...], key: Array) -> tuple[tuple[Array, ...], Array]:
        x, value, gradient = state
        key_p, key_u = jax.random.split(key)
        p = jax.random.normal(key_p, x.shape)
        new, p_new, value_new, gradient_new = jax.lax.fori_loop(
            0, leapfrog, leap, (x, p, value, gradient)
        )
        gain = value_new - value + 0.5 * jnp.sum(p**2 - p_new**2, axis=1)
        # A proposal that has left the range of floats is refused, since nan < nothing.
        taken = jnp.log(jax.random.uniform(key_u, gain.shape)) < gain
        pick = lambda a, b: jnp.where(taken.reshape(taken.shape + (1,) * (a.ndim - 1)), a, b)
        state = pick(new, x), pick(value_new, value), pick(gradient_new, gradient)
        return state, jnp.mean(taken)

    (x, _, _), accepted = jax.lax.scan(step, (x, *evaluate(x)), jax.random.split(key, steps))
    return Moved(x, jnp.mean(accepted))
