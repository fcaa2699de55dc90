"""Multistep consistency sampling: jump to the data, add noise of a lower level, and repeat."""

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
