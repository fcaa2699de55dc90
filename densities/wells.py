"""Products of wells: double wells DW(d, m, delta), and FAB's many-well in 32 dimensions."""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from fewstep.densities.density import Density, Modes, inverse_cdf, quadrature

POINTS = 24_001  # of a grid for quadrature
# Ten points of the grid and more lie within the deviation 1 / sqrt(8 delta) of a well.
MOST_DELTA = 300.0
# More wells have too many modes to count.
MOST_COUNTED = 6


def double_wells(name: str, dim: int, wells: int, delta: float) -> Density:
    """log rho = -sum_{i<=m} (x_i^2 - delta)^2 - 1/2 sum_{i>m} x_i^2; 2^m equal modes.

    Raises ValueError unless 1 <= wells <= dim and 0 < delta <= MOST_DELTA.
    """
    if not 1 <= wells <= dim or not 0.0 < delta <= MOST_DELTA:
        raise ValueError(
            f"density:{name} needs 1 <= m <= d and 0 < delta <= {MOST_DELTA:g} in wells-D-M-DELTA, "
            "such as wells-100-100-2"
        )

    def log_density(x: Array) -> Array:
        return -jnp.sum((x[:wells] ** 2 - delta) ** 2) - 0.5 * jnp.sum(x[wells:] ** 2)

    log_well = lambda x: -((x**2 - delta) ** 2)
    grid = symmetric_grid(max(6.0, math.sqrt(delta) + 3.0))  # wells are narrow at the root of delta
    draw = inverse_cdf(log_well, grid)

    def sample(rng: np.random.Generator, count: int) -> np.ndarray:
        well = draw(rng, count * wells).reshape(count, wells)
        return np.concatenate([well, rng.standard_normal((count, dim - wells))], axis=1)

    flip = lambda x: x * np.where(np.arange(dim) == 0, -1.0, 1.0)
    gaussian = 0.5 * (dim - wells) * math.log(2.0 * math.pi)
    return Density(
        name,
        dim,
        log_density,
        scale=1.0 if wells < dim else math.sqrt(delta),
        sample=sample,
        log_z=wells * quadrature(log_well, grid) + gaussian,
        modes=sign_modes(wells) if wells <= MOST_COUNTED else None,
        symmetries=(flip,),
    )


def symmetric_grid(end: float) -> np.ndarray:
    """Points from -end to end, which must hold all the mass."""
    return np.linspace(-end, end, POINTS)


def sign_modes(wells: int) -> Modes:
    """2^m equal modes, numbered by the signs of the first m coordinates."""

    def assign(x: np.ndarray) -> np.ndarray:
        return (x[:, :wells] > 0.0) @ (2 ** np.arange(wells))

    return Modes(assign, np.full(2**wells, 0.5**wells))


def many_well(name: str, dim: int = 32) -> Density:
    """d/2 pairs with log rho = -a^4 + 6 a^2 + a/2 - b^2/2 (Midgley et al. 2023); 2^16 modes."""
    pairs = dim // 2

    def log_density(x: Array) -> Array:
        a, b = x[0::2], x[1::2]
        return jnp.sum(-(a**4) + 6.0 * a**2 + 0.5 * a - 0.5 * b**2)

    log_well = lambda a: -(a**4) + 6.0 * a**2 + 0.5 * a
    grid = symmetric_grid(6.0)
    draw = inverse_cdf(log_well, grid)

    def sample(rng: np.random.Generator, count: int) -> np.ndarray:
        x = rng.standard_normal((count, dim))
        x[:, 0::2] = draw(rng, count * pairs).reshape(count, pairs)
        return x

    swap = lambda x: np.roll(x, 2, axis=1)
    log_z = pairs * (quadrature(log_well, grid) + 0.5 * math.log(2.0 * math.pi))
    return Density(name, dim, log_density, 1.5, sample, log_z, symmetries=(swap,))
