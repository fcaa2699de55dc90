"""How a path is divided: the time at each fraction of the way from data (0) to noise (1).

A grid of N points is `time(i / (N - 1))`, so N may be a traced number that changes while training.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from fewstep.diffusion.path import Path

# The noise levels that EDM samples between (Karras et al. 2022, table 1). A path that reaches no
# noise or pure noise, where rho is 0 or infinite, jumps there in the first or last cell.
LOWEST_RHO, HIGHEST_RHO = 0.002, 80.0
# rho above this is pure noise: float32 makes 2e7 of an infinite one.
PURE_NOISE = 1e6


class Spacing(NamedTuple):
    """time: fraction in [0, 1] -> t, rising from t_min to t_max, exact at both ends.

    fraction: its inverse.
    """

    time: Callable[[Array], Array]
    fraction: Callable[[Array], Array]


def uniform_spacing(path: Path) -> Spacing:
    """Equal steps in the path's own time."""
    return Spacing(
        time=lambda u: path.t_max * u + path.t_min * (1.0 - u),
        fraction=lambda t: (t - path.t_min) / (path.t_max - path.t_min),
    )


def karras_spacing(path: Path, power: float = 7.0) -> Spacing:
    """Equal steps in rho^(1/power), rho = sigma / alpha (Karras et al. 2022, eq. 5).

    rho covers the path, on `ve` sigma_min to sigma_max; 0.002 stands for 0, and 80 for infinity.
    """
    if power <= 0.0:
        raise ValueError(f"spacing.power={power} of a karras spacing must be positive")
    ends = jnp.asarray([path.t_min, path.t_max], jnp.float32)
    low, high = path.rho(ends).tolist()
    low, high = low or LOWEST_RHO, high if high < PURE_NOISE else HIGHEST_RHO
    low, high = low ** (1.0 / power), high ** (1.0 / power)

    def time(u: Array) -> Array:
        t = path.time_at((low + u * (high - low)) ** power)
        return jnp.where(u <= 0.0, path.t_min, jnp.where(u >= 1.0, path.t_max, t))

    def fraction(t: Array) -> Array:
        return jnp.clip((path.rho(t) ** (1.0 / power) - low) / (high - low), 0.0, 1.0)

    return Spacing(time, fraction)


SPACINGS: dict[str, Callable[..., Spacing]] = {"uniform": uniform_spacing, "karras": karras_spacing}
