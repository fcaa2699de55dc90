"""Rings in the plane, and Neal's funnel."""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from fewstep.densities.density import Density, Modes, inverse_cdf, quadrature

RADII, STIFFNESS = (1.0, 3.0, 5.0), 100.0
FUNNEL_DEVIATION = 3.0


def rings(name: str) -> Density:
    """log rho = -100 min_i (|x| - r_i)^2 with r = 1, 3, 5 (Jutras-Dube et al. 2024)."""
    radii = np.asarray(RADII)

    def log_density(x: Array) -> Array:
        radius = jnp.sqrt(jnp.sum(x**2) + 1e-12)  # differentiable at 0
        return -STIFFNESS * jnp.min((radius - jnp.asarray(radii, jnp.float32)) ** 2)

    def log_radial(r: np.ndarray) -> np.ndarray:
        return -STIFFNESS * ((r[:, None] - radii) ** 2).min(axis=1) + np.log(r)

    grid = np.linspace(1e-3, 7.0, 70_001)
    draw_radius = inverse_cdf(log_radial, grid)

    def sample(rng: np.random.Generator, count: int) -> np.ndarray:
        r, angle = draw_radius(rng, count), rng.uniform(0.0, 2.0 * np.pi, count)
        return r[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)

    def assign(x: np.ndarray) -> np.ndarray:
        return np.abs(np.linalg.norm(x, axis=1)[:, None] - radii).argmin(axis=1)

    def rotate(x: np.ndarray, angle: float = 0.7) -> np.ndarray:
        c, s = np.cos(angle), np.sin(angle)
        return x @ np.asarray([[c, s], [-s, c]])

    log_z = math.log(2.0 * math.pi) + quadrature(log_radial, grid)
    modes = Modes(assign, radii / radii.sum())
    return Density(name, 2, log_density, 3.0, sample, log_z, modes, symmetries=(rotate,))


def funnel(name: str, dim: int = 10) -> Density:
    """x_0 ~ N(0, 9) and x_i ~ N(0, e^{x_0}) (Neal 2003); normalised."""

    def log_density(x: Array) -> Array:
        first, rest = x[0], x[1:]
        own = -0.5 * (first / FUNNEL_DEVIATION) ** 2 - math.log(FUNNEL_DEVIATION)
        others = -0.5 * jnp.sum(rest**2) * jnp.exp(-first) - 0.5 * (dim - 1) * first
        return own + others - 0.5 * dim * math.log(2.0 * math.pi)

    def sample(rng: np.random.Generator, count: int) -> np.ndarray:
        x = rng.standard_normal((count, dim))
        x[:, 0] *= FUNNEL_DEVIATION
        x[:, 1:] *= np.exp(0.5 * x[:, :1])
        return x

    flip = lambda x: np.concatenate([x[:, :1], -x[:, 1:]], axis=1)
    return Density(name, dim, log_density, 1.0, sample, 0.0, symmetries=(flip,))
