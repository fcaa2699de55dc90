"""Stochastic solvers, with the interface of `samplers.ode`.

Row i of a batch draws only from keys[i], so a sample does not depend on its batch. In place of keys
a solver takes the noise itself, [draws, B, ...], as exported graphs do.
"""

import jax
import jax.numpy as jnp
from jax import Array

from fewstep.diffusion.path import Path
from fewstep.diffusion.prediction import Denoise
from fewstep.samplers.ode import Solver, Step, euler_step, heun_step

VARIANCES = ("small", "large")


def noise_like(x: Array, keys: Array, index: Array) -> Array:
    """Standard normal noise of the shape of x: [B, ...], draw number `index` of keys: [B].

    keys may also be the noise of all draws, [draws, B, ...].
    """
    if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
        return keys[index]
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, index)
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)


def added_noise(path: Path, t: Array, s: Array) -> tuple[Array, Array]:
    """(a, b) of the forward process x_t = a x_s + b z from s to t >= s, on any path.

    a = alpha_t / alpha_s, b^2 = sigma_t^2 - a^2 sigma_s^2.
    """
    a = path.alpha(t) / path.alpha(s)
    return a, jnp.sqrt(jnp.maximum(path.sigma(t) ** 2 - (a * path.sigma(s)) ** 2, 0.0))


def ancestral(variance: str = "small") -> Solver:
    """DDPM's ancestral sampling (Ho et al. 2020, algorithm 2) on any path. N evaluations.

    With (a, b) from `added_noise` the mean is (a sigma_s^2 x_t + alpha_s b^2 x_0) / sigma_t^2.
    variance: "small" is b^2 sigma_s^2 / sigma_t^2, exact for one data point; "large" is b^2, exact
    for data N(0, I) on a variance-preserving path (section 3.2). The last step draws no noise.
    Raises ValueError for any other variance.
    """
    if variance not in VARIANCES:
        raise ValueError(f"solver.variance={variance!r} must be small or large")

    def solve(denoise: Denoise, path: Path, x: Array, times: Array, keys: Array | None) -> Array:
        last = times.shape[0] - 2

        def body(x: Array, interval: tuple[Array, Array, Array]) -> tuple[Array, None]:
            index, t, s = interval
            x_0, _ = denoise(x, jnp.broadcast_to(t, x.shape[:1]))
            a, b = added_noise(path, t, s)
            share = (path.sigma(s) / path.sigma(t)) ** 2
            mean = a * share * x + path.alpha(s) * (b / path.sigma(t)) ** 2 * x_0
            deviation = b * jnp.sqrt(share) if variance == "small" else b
            noise = noise_like(x, keys, index)
            return mean + jnp.where(index < last, deviation, 0.0) * noise, None

        return jax.lax.scan(body, x, (jnp.arange(last + 1), times[:-1], times[1:]))[0]

    return solve


def churned_heun(
    churn: float = 40.0, churn_min: float = 0.05, churn_max: float = 50.0, noise: float = 1.003
) -> Solver:
    """EDM's stochastic sampler (Karras et al. 2022, algorithm 2) on any path. 2 N - 1 evaluations.

    Before a Heun step from a noise level rho = sigma / alpha in [churn_min, churn_max], it raises
    the level to rho (1 + min(churn / N, sqrt(2) - 1)), at most to the path's end, with noise scaled
    by `noise`. The defaults are the paper's for ImageNet 64 (table 5). churn 0 is Heun's method.
    Raises ValueError for arguments out of range.
    """
    if churn < 0.0 or noise <= 0.0 or not 0.0 <= churn_min <= churn_max:
        raise ValueError(
            f"churned_heun needs churn >= 0, noise > 0 and 0 <= churn_min <= churn_max, not "
            f"{churn}, {noise}, {churn_min}, {churn_max}"
        )

    def solve(denoise: Denoise, path: Path, x: Array, times: Array, keys: Array | None) -> Array:
        steps = times.shape[0] - 1
        gamma = min(churn / steps, 2.0**0.5 - 1.0)

        def add_churn(x: Array, t: Array, index: Array) -> tuple[Array, Array]:
            rho = path.rho(t)
            higher = jnp.clip(path.time_at(rho * (1.0 + gamma)), t, path.t_max)
            a, b = added_noise(path, higher, t)
            noisier = a * x + noise * b * noise_like(x, keys, index)
            # Else keep x: at pure noise a is 0 / 0, and at gamma = 0 rounding makes b positive.
            churned = (gamma > 0.0) & (churn_min <= rho) & (rho <= churn_max)
            return jnp.where(churned, noisier, x), jnp.where(churned, higher, t)

        def interval_step(x: Array, index: Array, t: Array, s: Array, step: Step) -> Array:
            x, t = add_churn(x, t, index)
            t, s = (jnp.broadcast_to(time, x.shape[:1]) for time in (t, s))
            return step(denoise, path, x, t, s)

        def body(x: Array, interval: tuple[Array, Array, Array]) -> tuple[Array, None]:
            return interval_step(x, *interval, heun_step), None

        x = jax.lax.scan(body, x, (jnp.arange(steps - 1), times[:-2], times[1:-1]))[0]
        return interval_step(x, steps - 1, times[-2], times[-1], euler_step)

    return solve
