"""How training draws times, pairs of times, noise levels and step sizes.

A `TimeSampler` maps (key, count) to [count] float32 times. Times run from data to noise.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion.path import Path

TimeSampler = Callable[[Array, int], Array]


def uniform(path: Path) -> TimeSampler:
    """t ~ U[t_min, t_max), one draw in each of `count` equal strata, in random order.

    Each t is exactly uniform; stratifying a batch only lowers the variance of its mean loss.
    """

    def sample(key: Array, count: int) -> Array:
        key_offset, key_order = jax.random.split(key)
        strata = jax.random.permutation(key_order, count)
        fraction = (strata + jax.random.uniform(key_offset, (count,))) / count
        return path.t_min + (path.t_max - path.t_min) * fraction

    return sample


def logit_normal(path: Path, mean: float = 0.0, std: float = 1.0) -> TimeSampler:
    """logit((t - t_min) / (t_max - t_min)) ~ N(mean, std^2) (Esser et al. 2024, eq. 19)."""

    def sample(key: Array, count: int) -> Array:
        fraction = jax.nn.sigmoid(mean + std * jax.random.normal(key, (count,)))
        return path.t_min + (path.t_max - path.t_min) * fraction

    return sample


def log_normal(path: Path, mean: float = -1.2, std: float = 1.2) -> TimeSampler:
    """log(sigma / alpha) ~ N(mean, std^2), cut at the path's ends (Karras et al. 2022, table 1).

    The same noise levels on every path; on `ve` t is sigma itself.
    """

    def sample(key: Array, count: int) -> Array:
        rho = jnp.exp(mean + std * jax.random.normal(key, (count,)))
        return jnp.clip(path.time_at(rho), path.t_min, path.t_max)

    return sample


TIME_SAMPLERS: dict[str, Callable[..., TimeSampler]] = {
    "uniform": uniform,
    "logit_normal": logit_normal,
    "log_normal": log_normal,
}


def karras_grid(count: int, low: float = 0.002, high: float = 80.0, power: float = 7.0) -> Array:
    """Noise levels from low to high, equally spaced in sigma^(1/power) (Karras et al. 2022, eq. 5).

    Returns [count], ascending; low and high are met exactly.
    """
    if count < 2:
        raise ValueError(f"karras_grid needs at least 2 noise levels, not {count}")
    root = np.linspace(low ** (1 / power), high ** (1 / power), count) ** power
    root[0], root[-1] = low, high
    return jnp.asarray(root, jnp.float32)


def adjacent_pair(key: Array, grid: Array, count: int) -> tuple[Array, Array]:
    """(t, s), each [count]: neighbours on an ascending grid, s < t, the cell drawn uniformly."""
    index = jax.random.randint(key, (count,), 0, grid.shape[0] - 1)
    return grid[index + 1], grid[index]


def ordered_pair(
    key: Array, count: int, sampler: TimeSampler, equal_fraction: float = 0.0
) -> tuple[Array, Array]:
    """(t, s) with s <= t: two independent draws, ordered; s = t for a random fraction of the rows.

    The rows with s = t are drawn at random, not the first of the batch, so that they are not tied
    to the order of the data. Returns two arrays [count].
    """
    key_first, key_second, key_equal = jax.random.split(key, 3)
    first, second = sampler(key_first, count), sampler(key_second, count)
    t, s = jnp.maximum(first, second), jnp.minimum(first, second)
    equal = jax.random.permutation(key_equal, count) < round(equal_fraction * count)
    return t, jnp.where(equal, t, s)


class DyadicSteps(NamedTuple):
    """Jumps t -> t - size whose sizes are powers of two and whose starts lie on their own grid."""

    t: Array
    size: Array


def dyadic_levels(count: int, levels: int) -> np.ndarray:
    """Level of each of `count` rows, 0 .. levels - 1, dealt in turn: counts differ by at most one.

    Dealing in turn (rather than in blocks) spreads every level over the batch, and so over the
    devices that hold it. Where count is no multiple of levels, the coarse levels get the rest.
    """
    if count < levels:
        raise ValueError(f"{count} rows cannot hold {levels} levels; each level needs a row")
    return np.arange(count) % levels


def dyadic_steps(key: Array, levels: np.ndarray) -> DyadicSteps:
    """Steps of size 2^-level from a random point of the grid {size, 2 size, ..., 1} to t - size.

    levels: [B] integers. Returns t: [B] in (0, 1] and size: [B], both exact in float32.
    """
    cells = 2 ** np.asarray(levels)
    index = jax.random.randint(key, cells.shape, 0, jnp.asarray(cells))
    size = jnp.asarray(1.0 / cells, jnp.float32)
    return DyadicSteps(t=(index + 1) * size, size=size)
