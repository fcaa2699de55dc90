"""Solvers of the probability-flow ODE dx/dt = alpha' x_0(x, t) + sigma' eps(x, t), noise to data.

A denoiser maps (x: [B, ...], t: [B]) to `Endpoints` (x_0, eps), for a network of any kind on any
path (`diffusion.prediction`). A solver maps (denoise, path, x, times, keys) to x at the last of the
[N + 1] descending times. It contains the loop, so a caller jits the whole sampler. A step maps
(denoise, path, x, t, s) to x_s, with one t and one s <= t per row; consistency distillation takes
single steps.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jax import Array

from fewstep.diffusion.path import Path, align, time_derivative
from fewstep.diffusion.prediction import Denoise, Endpoints
from fewstep.diffusion.spacing import PURE_NOISE

Step = Callable[[Denoise, Path, Array, Array, Array], Array]
# keys: [B], for solvers that draw noise; others ignore them
Solver = Callable[[Denoise, Path, Array, Array, Array | None], Array]


def euler_step(denoise: Denoise, path: Path, x: Array, t: Array, s: Array) -> Array:
    """x_s = x_t - (t - s) v(x_t, t)."""
    return x - align(t - s, x) * path.velocity(*denoise(x, t), t)


def ddim_step(denoise: Denoise, path: Path, x: Array, t: Array, s: Array) -> Array:
    """x_s = alpha_s x_0 + sigma_s eps (Song et al. 2021, DDIM, eq. 12 with eta = 0).

    Exact if x_0 is constant along the trajectory. It is Euler's step of x / alpha in sigma / alpha.
    """
    return path.interpolate(*denoise(x, t), s)


def heun_step(denoise: Denoise, path: Path, x: Array, t: Array, s: Array) -> Array:
    """A trapezoidal step with Euler's as predictor (Karras et al. 2022, algorithm 1).

    As in that algorithm, rows with sigma(s) = 0 take Euler's step: some kinds of prediction have no
    velocity there.
    """
    v_t = path.velocity(*denoise(x, t), t)
    predicted = x - align(t - s, x) * v_t
    v_s = path.velocity(*denoise(predicted, s), s)
    corrected = x - align(t - s, x) * 0.5 * (v_t + v_s)
    return jnp.where(path.sigma(align(s, x)) > 0.0, corrected, predicted)


def taylor_step(denoise: Denoise, path: Path, x: Array, t: Array, s: Array) -> Array:
    """Taylor's step of order 2 in rho = sigma / alpha (Dockhorn et al. 2022, GENIE, eq. 9).

    y = x / alpha has dy / drho = eps, so with h = rho_s - rho_t

        x_s = DDIM(x_t) + alpha_s h^2 / 2 deps / drho,

    the rate of eps along the trajectory, by a Jacobian-vector product. Rows at pure noise, where
    rho is infinite, take DDIM's step.
    """
    ends, push = jax.linearize(denoise, x, t)
    rate = push(path.velocity(*ends, t), jnp.ones_like(t)).eps
    return curved_step(path, ends, rate / align(time_derivative(path.rho, t), x), t, s)


def curved_step(path: Path, ends: Endpoints, rate: Array, t: Array, s: Array) -> Array:
    """DDIM's step plus alpha_s (rho_s - rho_t)^2 / 2 deps / drho, of `rate` = deps / drho."""
    rho = path.rho(t)
    half_square = align(0.5 * path.alpha(s) * (path.rho(s) - rho) ** 2, rate)
    correction = jnp.where(align(rho < PURE_NOISE, rate), half_square * rate, 0.0)
    return path.interpolate(*ends, s) + correction


STEPS: dict[str, Step] = {"euler": euler_step, "ddim": ddim_step, "heun": heun_step}


def repeat_step(step: Step) -> Solver:
    """The solver that takes `step` once per interval. times: [N + 1], or [N + 1, B]."""

    def solve(denoise: Denoise, path: Path, x: Array, times: Array, keys: Array | None) -> Array:
        chex.assert_rank(times, {1, 2})

        def body(x: Array, interval: tuple[Array, Array]) -> tuple[Array, None]:
            t, s = (jnp.broadcast_to(time, x.shape[:1]) for time in interval)
            return step(denoise, path, x, t, s), None

        return jax.lax.scan(body, x, (times[:-1], times[1:]))[0]

    return solve


def euler() -> Solver:
    """Euler's method in the path's own time. Order 1; N evaluations."""
    return repeat_step(euler_step)


def ddim() -> Solver:
    """DDIM, which is DPM-Solver-1 and, on the linear path, Euler. Order 1; N evaluations."""
    return repeat_step(ddim_step)


def genie() -> Solver:
    """GENIE's Taylor method with exact derivatives. Order 2; N evaluations with derivatives."""
    return repeat_step(taylor_step)


def heun() -> Solver:
    """Heun's method, with Euler's step at the end. Order 2; 2 N - 1 evaluations."""

    def solve(denoise: Denoise, path: Path, x: Array, times: Array, keys: Array | None) -> Array:
        x = repeat_step(heun_step)(denoise, path, x, times[:-1], keys)
        return repeat_step(euler_step)(denoise, path, x, times[-2:], keys)

    return solve


def dpm_solver_2m() -> Solver:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2). Order 2; N evaluations.

    With h = lambda_s - lambda_t, lambda = log(alpha / sigma), and `before` for the previous point,
    x_s = (sigma_s / sigma_t) x_t - alpha_s (e^-h - 1) D for
    D = x_0 + (h / 2 h_before) (x_0 - x_0_before): the DDIM step to D. The first step is of first
    order, and so are an interval of infinite length in lambda (from pure noise or to no noise) and
    the one that follows it.
    """

    def solve(denoise: Denoise, path: Path, x: Array, times: Array, keys: Array | None) -> Array:
        rho = path.rho(times)
        log_snr = -jnp.log(jnp.where(rho < PURE_NOISE, rho, jnp.inf))
        h = log_snr[1:] - log_snr[:-1]
        ratio = jnp.concatenate([jnp.zeros(1), 0.5 * h[1:] / h[:-1]])
        ratio = jnp.where(jnp.isfinite(ratio), ratio, 0.0)

        def body(
            carry: tuple[Array, Array], interval: tuple[Array, Array, Array]
        ) -> tuple[tuple[Array, Array], None]:
            x, before = carry
            t, s = (jnp.broadcast_to(time, x.shape[:1]) for time in interval[:2])
            x_0, eps = denoise(x, t)
            correction = interval[2] * (x_0 - before)
            eps_shift = -align(path.alpha(t) / path.sigma(t), x) * correction
            return (path.interpolate(x_0 + correction, eps + eps_shift, s), x_0), None

        return jax.lax.scan(body, (x, jnp.zeros_like(x)), (times[:-1], times[1:], ratio))[0][0]

    return solve
