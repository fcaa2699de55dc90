"""Data whose denoiser is known in closed form: a Gaussian, and a mixture of Gaussians in 1-D.

For data N(mean, S) let m_t = alpha mean and C_t = alpha^2 S + sigma^2 I. All C_t commute, so in the
eigenbasis of S every quantity is elementwise (S = diag(variance) here).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from fewstep.diffusion.path import Path, align
from fewstep.diffusion.prediction import Endpoints


class Gaussian(NamedTuple):
    """mean, variance: [D]."""

    mean: Array
    variance: Array

    def sample(self, key: Array, count: int) -> Array:
        """`count` points: [count, D]."""
        noise = jax.random.normal(key, (count, self.mean.shape[0]))
        return self.mean + jnp.sqrt(self.variance) * noise

    def marginal(self, path: Path, t: Array) -> tuple[Array, Array]:
        """Mean and variance of x_t, each [B, D]."""
        t = align(t, jnp.zeros((t.shape[0], 1)))
        alpha, sigma = path.alpha(t), path.sigma(t)
        return alpha * self.mean, alpha**2 * self.variance + sigma**2

    def x_0(self, path: Path, x: Array, t: Array) -> Array:
        """E[x_0 | x_t]."""
        mean, variance = self.marginal(path, t)
        return self.mean + path.alpha(align(t, x)) * self.variance / variance * (x - mean)

    def eps(self, path: Path, x: Array, t: Array) -> Array:
        """E[eps | x_t]."""
        mean, variance = self.marginal(path, t)
        return path.sigma(align(t, x)) / variance * (x - mean)

    def denoiser(self, path: Path):
        """(x, t) -> (E[x_0 | x_t], E[eps | x_t]), as solvers take it."""
        return lambda x, t: Endpoints(self.x_0(path, x, t), self.eps(path, x, t))

    def velocity(self, path: Path, x: Array, t: Array) -> Array:
        """m' + C' / (2 C) (x - m), the rates by autodiff of the marginal."""
        (mean, variance), (mean_rate, variance_rate) = jax.jvp(
            lambda t: self.marginal(path, t), (t,), (jnp.ones_like(t),)
        )
        return mean_rate + 0.5 * variance_rate / variance * (x - mean)

    def flow_map(self, path: Path, x: Array, t: Array, s: Array) -> Array:
        """X_{t -> s}(x) = m_s + sqrt(C_s / C_t) (x - m_t)."""
        mean_t, variance_t = self.marginal(path, t)
        mean_s, variance_s = self.marginal(path, s)
        return mean_s + jnp.sqrt(variance_s / variance_t) * (x - mean_t)

    def average_velocity(self, path: Path, x: Array, t: Array, s: Array) -> Array:
        """(x - X_{t -> s}(x)) / (t - s); the velocity at t = s."""
        gap = align(t - s, x)
        jump = (x - self.flow_map(path, x, t, s)) / jnp.where(gap == 0, 1.0, gap)
        return jnp.where(gap == 0, self.velocity(path, x, t), jump)


class Mixture(NamedTuple):
    """sum_k weight_k N(mean_k, variance_k) in one dimension; fields: [K]. Points are [B, 1]."""

    weight: Array
    mean: Array
    variance: Array

    def denoiser(self, path: Path):
        """(x, t) -> (E[x_0 | x_t], E[eps | x_t]): the components' means, weighted by posterior."""

        def denoise(x: Array, t: Array) -> Endpoints:
            alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]
            variance = alpha**2 * self.variance + sigma**2
            offset = x - alpha * self.mean
            log_share = jnp.log(self.weight) - 0.5 * (offset**2 / variance + jnp.log(variance))
            share = jax.nn.softmax(log_share, axis=1)
            x_0 = self.mean + alpha * self.variance / variance * offset
            eps = sigma / variance * offset
            return Endpoints(*((share * part).sum(1, keepdims=True) for part in (x_0, eps)))

        return denoise
