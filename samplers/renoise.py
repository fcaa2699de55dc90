"""Multistep consistency sampling: jump to less noise, add noise of a lower level, and repeat."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jax import Array

from fewstep.diffusion.path import Path
from fewstep.samplers.sde import added_noise, noise_like


def renoise(
    consistency: Callable[[Array, Array], Array],
    path: Path,
    x: Array,
    times: Array,
    keys: Array | None,
) -> Array:
    """f(x, times[0]); then, for each later time tau, add noise up to tau and apply f again.

    Song et al. 2023, algorithm 1, on any path. f maps to t_min, where some noise may remain (0.002
    on `ve`). So the point at tau is a x + b z, a = alpha_tau / alpha_min and b^2 = sigma_tau^2 -
    a^2 sigma_min^2; on `ve` x + sqrt(tau^2 - sigma_min^2) z. An exact f preserves the distribution
    of the data at t_min, for any times.

    consistency: f, (x: [B, ...], t: [B]) -> like x. times: [N], descending. keys: [B]; may be None
    for one time.
    """
    chex.assert_rank(times, 1)
    rows = lambda t: jnp.broadcast_to(t, x.shape[:1])
    t_min = jnp.float32(path.t_min)

    def step(x: Array, now: tuple[Array, Array]) -> tuple[Array, None]:
        index, tau = now
        a, b = added_noise(path, tau, t_min)
        return consistency(a * x + b * noise_like(x, keys, index), rows(tau)), None

    x = consistency(x, rows(times[0]))
    if times.shape[0] == 1:
        return x
    return jax.lax.scan(step, x, (jnp.arange(times.shape[0] - 1), times[1:]))[0]


def renew_noise(
    jump: Callable[[Array, Array, Array], Array],
    path: Path,
    x: Array,
    times: Array,
    keys: Array,
    gamma: float,
) -> Array:
    """x at the last of [N + 1] descending times, by jumps below each next time and noise up to it.

    Kim et al. 2024, algorithm 3, on any path: a jump to s goes to the noise level
    sqrt(1 - gamma^2) rho_s, at least the path's lowest. gamma = 0 draws no noise, and gamma = 1 is
    `renoise`. An exact jump preserves the distribution of the data, for any times and gamma.

    jump: (x: [B, ...], t: [B], s: [B]) -> x_s. keys: [B].
    """
    chex.assert_rank(times, 1)
    rows = lambda t: jnp.broadcast_to(t, x.shape[:1])

    def step(x: Array, interval: tuple[Array, Array, Array]) -> tuple[Array, None]:
        index, t, s = interval
        lower = jnp.clip(path.time_at((1.0 - gamma**2) ** 0.5 * path.rho(s)), path.t_min, s)
        a, b = added_noise(path, s, lower)
        # Where the path has levels as low as that, b is gamma sigma_s. Rounding may exceed it.
        b = jnp.minimum(b, gamma * path.sigma(s))
        return a * jump(x, rows(t), rows(lower)) + b * noise_like(x, keys, index), None

    return jax.lax.scan(step, x, (jnp.arange(times.shape[0] - 1), times[:-1], times[1:]))[0]
