"""Random times and step sizes for training.

A `TimeSampler` maps (key, count) to [count] float32 times. Times run from data to noise.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fewstep.diffusion.path import Path
from fewstep.diffusion.spacing import karras_spacing

# Deviations between a mean and the range of a truncated normal draw; float32 has few values beyond.
FARTHEST_TAIL = 3.5

TimeSampler = Callable[[Array, int], Array]


def uniform_times(path: Path) -> TimeSampler:
    """t ~ U[t_min, t_max], one draw from each of `count` equal strata, in random order.

    Each t is exactly uniform; strata only reduce the variance of a batch's mean loss.
    """

    def sample(key: Array, count: int) -> Array:
        key_offset, key_order = jax.random.split(key)
        strata = jax.random.permutation(key_order, count)
        fraction = (strata + jax.random.uniform(key_offset, (count,))) / count
        return path.t_min + (path.t_max - path.t_min) * fraction

    return sample


def logit_normal_times(path: Path, mean: float = 0.0, std: float = 1.0) -> TimeSampler:
    """logit((t - t_min) / (t_max - t_min)) ~ N(mean, std^2) (Esser et al. 2024, eq. 19).

    Raises ValueError unless std > 0, as `log_normal_times` does.
    """
    if std <= 0.0:
        raise ValueError(f"time_sampler.std={std} must be positive")

    def sample(key: Array, count: int) -> Array:
        fraction = jax.nn.sigmoid(mean + std * jax.random.normal(key, (count,)))
        return path.t_min + (path.t_max - path.t_min) * fraction

    return sample


def log_normal_times(path: Path, mean: float = -1.2, std: float = 1.2) -> TimeSampler:
    """log(sigma / alpha) ~ N(mean, std^2) within the path's ends (Karras et al. 2022, table 1).

    The normal distribution is truncated, so that no mass collects at an end. Noise levels are the
    same on every path; on `ve` t is sigma. Raises ValueError unless std > 0, or if the path's ends
    are further in a tail than float32 can draw.
    """
    if std <= 0.0:
        raise ValueError(f"time_sampler.std={std} must be positive")
    with jax.ensure_compile_time_eval():
        ends = path.rho(jnp.asarray([path.t_min, path.t_max], jnp.float32))
        low, high = (float(end) for end in (jnp.log(ends) - mean) / std)
    if low > FARTHEST_TAIL or high < -FARTHEST_TAIL:
        raise ValueError(
            f"time_sampler.mean={mean:g} is more than {FARTHEST_TAIL:g} time_sampler.std={std:g} "
            f"away from the log noise levels of path.name={path.name}; choose them nearer"
        )

    def sample(key: Array, count: int) -> Array:
        rho = jnp.exp(mean + std * jax.random.truncated_normal(key, low, high, (count,)))
        return jnp.clip(path.time_at(rho), path.t_min, path.t_max)

    return sample


def karras_times(
    path: Path, power: float = 7.0, lowest: float = 0.0, highest: float = 1.0
) -> TimeSampler:
    """Uniform in rho^(1/power), like the points of `diffusion.spacing.karras_spacing`.

    lowest, highest: the range, in fractions between data (0) and noise (1); SiD has 0 to 0.8.
    Raises ValueError unless 0 <= lowest < highest <= 1.
    """
    if not 0.0 <= lowest < highest <= 1.0:
        raise ValueError(
            f"time_sampler needs 0 <= lowest < highest <= 1, not lowest={lowest} and "
            f"highest={highest}"
        )
    spacing = karras_spacing(path, power)

    def sample(key: Array, count: int) -> Array:
        return spacing.time(jax.random.uniform(key, (count,), minval=lowest, maxval=highest))

    return sample


TIME_SAMPLERS: dict[str, Callable[..., TimeSampler]] = {
    "uniform": uniform_times,
    "logit_normal": logit_normal_times,
    "log_normal": log_normal_times,
    "equal_karras": karras_times,
}


class DyadicSteps(NamedTuple):
    """Steps t -> t - size, whose sizes are powers of 2 and whose starts are multiples of size."""

    t: Array
    size: Array


# (count, levels) -> the level of each of `count` rows
RowLevels = Callable[[int, int], np.ndarray]


def dyadic_levels(count: int, levels: int) -> np.ndarray:
    """The level of each of `count` rows: 0, 1, ..., levels - 1, 0, 1, ...

    The cycle spreads every level over the batch, and so over the devices that hold it. If count is
    not a multiple of levels, the coarse levels get the remaining rows. Raises ValueError for fewer
    rows than levels.
    """
    if count < levels:
        raise ValueError(f"{count} rows are too few for {levels} levels; each level needs a row")
    return np.arange(count) % levels


def dyadic_levels_rest_to_largest(count: int, levels: int) -> np.ndarray:
    """As `dyadic_levels`, but all remaining rows get level 0, the largest step."""
    row_levels = dyadic_levels(count, levels)
    row_levels[count - count % levels :] = 0
    return row_levels


# By which step sizes get the rows that are left when each size has the same number.
ROW_LEVELS: dict[str, RowLevels] = {
    "coarse": dyadic_levels,
    "largest": dyadic_levels_rest_to_largest,
}


def dyadic_steps(key: Array, levels: np.ndarray) -> DyadicSteps:
    """Steps of size 2^-level that start at a random point of the grid {size, 2 size, ..., 1}.

    levels: [B] integers. Returns t: [B] in (0, 1] and size: [B], both exact in float32.
    """
    cells = 2 ** np.asarray(levels)
    index = jax.random.randint(key, cells.shape, 0, jnp.asarray(cells))
    size = jnp.asarray(1.0 / cells, jnp.float32)
    return DyadicSteps(t=(index + 1) * size, size=size)
