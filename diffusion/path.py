"""Paths from data to noise: x_t = alpha(t) x_0 + sigma(t) eps, with eps ~ N(0, I).

Time runs from data (`t_min`) to noise (`t_max`). Each path keeps the time of its own papers:

    name        alpha(t)       sigma(t)              t            from
    linear      1 - t          t                     [0, 1]       Liu et al. 2023
    vp_cosine   cos(pi t / 2)  sin(pi t / 2)         [0, 1]       Salimans & Ho 2022
    vp_ddpm     exp(-B(t) / 2) sqrt(1 - exp(-B(t)))  [1e-5, 1]    Song et al. 2021 (Ho et al. 2020)
    vp_discrete exp(-L(t) / 2) sqrt(1 - exp(-L(t)))  [0, 1]       Ho et al. 2020, its 1,000 betas
    ve          1              t                     [0.002, 80]  Karras et al. 2022 (EDM)
    trigflow    cos t          sigma_data sin t      [0, pi / 2]  Lu & Song 2025

At equal noise level rho = sigma / alpha, two paths differ only by a scale of x. So `change_path`
maps a point of any path to any other.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import Array

Schedule = Callable[[Array], Array]

TINY_SIGMA = 1e-8
# DDPM's noise schedule (Ho et al. 2020, section 4): 1,000 betas, equally spaced.
FIRST_BETA, LAST_BETA, BETAS = 1e-4, 0.02, 1000
NEWTON_STEPS = 2  # from the root of the quadratic: 1e-7 in t


class Path(NamedTuple):
    """A path and the inverse of its noise level; schedules are elementwise and differentiable.

    alpha, sigma: signal and noise scale at time t.
    time_at: the time at which sigma / alpha equals rho (rho may be infinite).
    t_min, t_max: the range of t. Sampling starts at t_max from N(0, sigma(t_max)^2 I), unless
        prior_scale gives another standard deviation.
    clock: the time that a network is given: t; on `ve` EDM's c_noise = log(t) / 4; on
        `vp_discrete` t - 1/1000.
    """

    name: str
    alpha: Schedule
    sigma: Schedule
    time_at: Schedule
    t_min: float
    t_max: float
    clock: Schedule = lambda t: t
    prior_scale: float | None = None

    def rho(self, t: Array) -> Array:
        """Noise level sigma(t) / alpha(t), which is EDM's sigma; infinite where alpha is 0."""
        # In float32 cos(pi / 2) is slightly negative; its absolute value gives a huge ratio.
        return self.sigma(t) / jnp.abs(self.alpha(t))

    def alpha_rate(self, t: Array) -> Array:
        """d alpha / dt."""
        return time_derivative(self.alpha, t)

    def sigma_rate(self, t: Array) -> Array:
        """d sigma / dt."""
        return time_derivative(self.sigma, t)

    def interpolate(self, x_0: Array, eps: Array, t: Array) -> Array:
        """x_t = alpha(t) x_0 + sigma(t) eps. x_0, eps: [B, ...]; t: [B]."""
        chex.assert_equal_shape((x_0, eps))
        t = align(t, x_0)
        return self.alpha(t) * x_0 + self.sigma(t) * eps

    def velocity(self, x_0: Array, eps: Array, t: Array) -> Array:
        """dx_t / dt = alpha'(t) x_0 + sigma'(t) eps. x_0, eps: [B, ...]; t: [B]."""
        t = align(t, x_0)
        return self.alpha_rate(t) * x_0 + self.sigma_rate(t) * eps

    def prior(self, eps: Array) -> Array:
        """Where sampling starts: sigma(t_max) eps, which neglects the signal that is left at t_max.

        With prior_scale: prior_scale eps.
        """
        own = self.prior_scale
        return (self.sigma(jnp.float32(self.t_max)) if own is None else own) * eps

    def from_standard_normal(self) -> "Path":
        """The path of a diffusion that starts at N(0, I), if its variance is 1 there; else itself.

        sigma(t_max) alone would leave out the little signal that is left at t_max.
        """
        with jax.ensure_compile_time_eval():
            return self._replace(prior_scale=1.0) if ends_at_unit_variance(self) else self


def align(t: Array, x: Array) -> Array:
    """t: [B] with trailing axes of size 1, to broadcast against x: [B, ...]."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def ends_at_unit_variance(path: Path) -> bool:
    """Whether alpha^2 + sigma^2 is 1 at t_min and at t_max."""
    ends = jnp.asarray([path.t_min, path.t_max], jnp.float32)
    return bool(abs(path.alpha(ends) ** 2 + path.sigma(ends) ** 2 - 1.0).max() < 1e-3)


def default_fields(name: str) -> dict[str, Any]:
    """The defaults of the fields of a path in PATHS."""
    parameters = inspect.signature(PATHS[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def time_derivative(schedule: Schedule, t: Array) -> Array:
    """The derivative of an elementwise schedule at t, by forward-mode autodiff."""
    return jax.jvp(schedule, (t,), (jnp.ones_like(t),))[1]


def change_path(source: Path, target: Path, x: Array, t: Array) -> tuple[Array, Array]:
    """Map x at time t of path `source` to the point of equal noise level on path `target`.

    x: [B, ...]; t: [B]. Returns (x', t') with x' = alpha_target(t') / alpha_source(t) x. Where
    alpha < sigma the factor is the ratio of the sigmas, so that pure noise maps exactly. A level
    beyond an end of the target maps to that end: pure noise becomes the prior of `ve`.
    """
    ends = target.rho(jnp.asarray([target.t_min, target.t_max], jnp.float32))
    t_target = target.time_at(jnp.clip(source.rho(t), *ends))
    by_signal = source.alpha(t) > source.sigma(t)
    numerator = jnp.where(by_signal, target.alpha(t_target), target.sigma(t_target))
    denominator = jnp.where(by_signal, source.alpha(t), source.sigma(t))
    return align(numerator / denominator, x) * x, t_target


def linear() -> Path:
    """alpha = 1 - t, sigma = t: rectified flow, conditional optimal transport."""
    return Path(
        name="linear",
        alpha=lambda t: 1.0 - t,
        sigma=lambda t: t,
        time_at=lambda rho: 1.0 / (1.0 + 1.0 / rho),
        t_min=0.0,
        t_max=1.0,
    )


def vp_cosine() -> Path:
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2): variance preserving."""
    return Path(
        name="vp_cosine",
        alpha=lambda t: jnp.cos(0.5 * jnp.pi * t),
        sigma=lambda t: jnp.sin(0.5 * jnp.pi * t),
        time_at=lambda rho: 2.0 / jnp.pi * jnp.arctan(rho),
        t_min=0.0,
        t_max=1.0,
    )


def vp_ddpm(beta_min: float = 0.1, beta_max: float = 20.0) -> Path:
    """The variance-preserving SDE with B(t) = beta_min t + (beta_max - beta_min) t^2 / 2.

    The defaults give the limit of DDPM's 1,000 discrete betas from 1e-4 to 0.02 (Song et al. 2021,
    appendix C). t_min is that paper's 1e-5, since the rate of sigma is infinite at t = 0.
    """
    half_slope = 0.5 * (beta_max - beta_min)

    def integrated_beta(t: Array) -> Array:
        return beta_min * t + half_slope * t**2

    def time_at(rho: Array) -> Array:
        # B(t) = log(1 + rho^2) without overflow, then the root in its form without cancellation.
        # Levels past that of t = 1 count as t = 1.
        target = jnp.minimum(jnp.logaddexp(0.0, 2.0 * jnp.log(rho)), integrated_beta(1.0))
        sum_of_roots = beta_min + jnp.sqrt(beta_min**2 + 4.0 * half_slope * target)
        return 2.0 * target / jnp.where(sum_of_roots > 0.0, sum_of_roots, 1.0)

    return Path(
        name="vp_ddpm",
        alpha=lambda t: jnp.exp(-0.5 * integrated_beta(t)),
        sigma=lambda t: jnp.sqrt(-jnp.expm1(-integrated_beta(t))),
        time_at=time_at,
        t_min=1e-5,
        t_max=1.0,
    )


def vp_discrete() -> Path:
    """DDPM's discrete levels as a smooth path: step k = 0 ... 999 is at t = (k + 1) / 1000.

    The networks of DDPM, DiT and Stable Diffusion know only the levels abar_k, the products of
    1 - beta_0 ... 1 - beta_k, and the integers k. With beta(t) = v_0 + (v_1 - v_0) t the line
    through the betas, which has beta_k in the middle of the k-th of 1,000 intervals,

        L(t) = -log abar(t) = 1000 integral_0^t -log(1 - beta(s)) ds

    is the sum of -log(1 - beta_k) by the midpoint rule, off by 1e-7 at most. t = 0 is data
    exactly. `clock` is k / 1000, for a network with time_scale 1000. Uniform steps in t are the
    "trailing" timesteps of diffusers' schedulers.
    """
    slope = (LAST_BETA - FIRST_BETA) / (BETAS - 1)  # of beta, per interval
    start, rise = FIRST_BETA - 0.5 * slope, slope * BETAS

    def integral(t: Array | float) -> Array | float:
        # P(v) - P(v_0) over (v - v_0), for P(v) = v^2 / 2 + v^3 / 6 + v^4 / 12 + v^5 / 20, the
        # second integral of 1 / (1 - v). Divided out, it does not cancel in float32.
        v = start + rise * t
        quotient, power = 0.0, 1.0
        for degree, factor in ((1, 0.0), (2, 0.5), (3, 1.0 / 6.0), (4, 1.0 / 12.0), (5, 0.05)):
            # power is (v^n - v_0^n) / (v - v_0), the sum of v^i v_0^(n - 1 - i).
            quotient += factor * power
            power = v * power + start**degree
        return BETAS * t * quotient

    largest = integral(1.0)

    def sigma(t: Array) -> Array:
        # The rate of sigma is infinite at t = 0. It counts as 1 there, so that nothing is NaN.
        variance = -jnp.expm1(-integral(t))
        noisy = variance > 0.0
        return jnp.where(noisy, jnp.sqrt(jnp.where(noisy, variance, 1.0)), t)

    def time_at(rho: Array) -> Array:
        # Levels past the last beta do not exist: they count as t = 1.
        target = jnp.minimum(jnp.logaddexp(0.0, 2.0 * jnp.log(rho)), largest)
        # Root of the leading terms, 1000 t (v_0 + rise t / 2), without cancellation.
        level = target / BETAS
        t = 2.0 * level / (start + jnp.sqrt(start**2 + 2.0 * rise * level))
        for _ in range(NEWTON_STEPS):
            rate = -BETAS * jnp.log1p(-(start + rise * t))
            t -= (integral(t) - target) / rate
        return t

    return Path(
        name="vp_discrete",
        alpha=lambda t: jnp.exp(-0.5 * integral(t)),
        sigma=sigma,
        time_at=time_at,
        t_min=0.0,
        t_max=1.0,
        # In this form the float32 number nearest to (k + 1) / 1000 gives that nearest to k / 1000.
        clock=lambda t: (BETAS * t - 1.0) / BETAS,
    )


def ve(sigma_min: float = 0.002, sigma_max: float = 80.0) -> Path:
    """alpha = 1, sigma = t: variance exploding in EDM's form; time is the noise level.

    Raises ValueError unless 0 <= sigma_min < sigma_max.
    """
    if not 0.0 <= sigma_min < sigma_max:
        raise ValueError(
            f"path needs 0 <= sigma_min < sigma_max, not sigma_min={sigma_min} and "
            f"sigma_max={sigma_max}"
        )
    return Path(
        name="ve",
        alpha=jnp.ones_like,
        sigma=lambda t: t,
        time_at=lambda rho: rho,
        t_min=sigma_min,
        t_max=sigma_max,
        # The floor keeps a network finite at sigma_min = 0, where its output has no effect.
        clock=lambda t: 0.25 * jnp.log(jnp.maximum(t, TINY_SIGMA)),
    )


def trigflow(sigma_data: float = 0.5) -> Path:
    """alpha = cos t, sigma = sigma_data sin t: a sphere through data of deviation sigma_data.

    Raises ValueError unless sigma_data > 0.
    """
    if sigma_data <= 0.0:
        raise ValueError(f"path.sigma_data={sigma_data} must be positive")
    return Path(
        name="trigflow",
        alpha=jnp.cos,
        sigma=lambda t: sigma_data * jnp.sin(t),
        time_at=lambda rho: jnp.arctan(rho / sigma_data),
        t_min=0.0,
        t_max=0.5 * jnp.pi,
    )


PATHS: dict[str, Callable[..., Path]] = {
    "linear": linear,
    "vp_cosine": vp_cosine,
    "vp_ddpm": vp_ddpm,
    "vp_discrete": vp_discrete,
    "ve": ve,
    "trigflow": trigflow,
}
