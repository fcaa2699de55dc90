"""Stochastic samplers: solvers as in `samplers.ode` that draw noise on the way.

Row i of a batch draws from keys[i] alone, so a sample does not depend on the batch it is in.
"""

import jax
import jax.numpy as jnp
from jax import Array

from fewstep.diffusion.path import Path
from fewstep.diffusion.prediction import Denoise
from fewstep.samplers.ode import Solver, Step, euler_step, heun_step

VARIANCES = ("small", "large")


def noise_like(x: Array, keys: Array, index: Array) -> Array:
    """Standard normal noise like x: [B, ...], the index-th draw of keys: [B]."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, index)
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)


def added_noise(path: Path, t: Array, s: Array) -> tuple[Array, Array]:
    """(a, b) of x_t = a x_s + b z, s <= t: a = alpha_t / alpha_s, b^2 = sigma_t^2 - a^2 sigma_s^2.

    This is the forward process from a point at s to a point at t, on any path.
    """
    a = path.alpha(t) / path.alpha(s)
    return a, jnp.sqrt(jnp.maximum(path.sigma(t) ** 2 - (a * path.sigma(s)) ** 2, 0.0))


def ancestral(variance: str = "small") -> Solver:
    """DDPM's ancestral sampling (Ho et al. 2020, algorithm 2) on any path. N evaluations.

    With a, b of `added_noise` the mean is (a sigma_s^2 x_t + alpha_s b^2 x_0) / sigma_t^2.
    variance: "small", b^2 sigma_s^2 / sigma_t^2, exact for one data point; "large", b^2, exact for
    data N(0, I) on a variance-preserving path (their section 3.2). The last step draws no noise.
    Raises ValueError for another variance.
    """
    if variance not in VARIANCES:
        raise ValueError(f"variance={variance!r} of ancestral sampling must be small or large")

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

    Before each Heun step from a noise level rho = sigma / alpha in [churn_min, churn_max], noise is
    added up to rho (1 + min(churn / N, sqrt(2) - 1)), scaled by `noise`; nowhere beyond the path's
    end. The defaults are theirs for ImageNet 64 (table 5); churn 0 is Heun's method.
    """
    if churn < 0.0 or noise <= 0.0 or not 0.0 <= churn_min <= churn_max:
        raise ValueError(
            f"churned_heun needs churn >= 0, noise > 0 and 0 <= churn_min <= churn_max, not "
            f"{churn}, {noise}, {churn_min}, {churn_max}"
        )

    def solve(denoise: Denoise, path: Path, x: Array, times: Array, keys: Array | None) -> Array:
        steps = times.shape[0] - 1
        gamma = min(churn / steps, 2.0**0.5 - 1.0)

        def raised(x: Array, t: Array, index: Array) -> tuple[Array, Array]:
            rho = path.rho(t)
            higher = jnp.clip(path.time_at(rho * (1.0 + gamma)), t, path.t_max)
            a, b = added_noise(path, higher, t)
            noisier = a * x + noise * b * noise_like(x, keys, index)
            # x itself elsewhere: at pure noise a is 0 / 0, and at gamma = 0 rounding leaves a b.
            churned = (gamma > 0.0) & (churn_min <= rho) & (rho <= churn_max)
            return jnp.where(churned, noisier, x), jnp.where(churned, higher, t)

        def interval_step(x: Array, index: Array, t: Array, s: Array, step: Step) -> Array:
            x, t = raised(x, t, index)
            t, s = (jnp.broadcast_to(time, x.shape[:1]) for time in (t, s))
            return step(denoise, path, x, t, s)

        def body(x: Array, interval: tuple[Array, Array, Array]) -> tuple[Array, None]:
            return interval_step(x, *interval, heun_step), None

        x = jax.lax.scan(body, x, (jnp.arange(steps - 1), times[:-2], times[1:-1]))[0]
        return interval_step(x, steps - 1, times[-2], times[-1], euler_step)

    return solve
