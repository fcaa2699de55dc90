"""Spacings of a path: the time at each fraction between data (0) and noise (1).

A grid of N points is `time(i / (N - 1))`, so N may be traced and change during training.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from fewstep.diffusion.path import Path

# EDM's range of noise levels (Karras et al. 2022, table 1). Where a path ends at rho = 0 or at
# infinity, its first or last cell reaches from this range to that end.
LOWEST_RHO, HIGHEST_RHO = 0.002, 80.0
# Larger rho is pure noise; in float32 an infinite one may come out as 2e7.
PURE_NOISE = 1e6


class Spacing(NamedTuple):
    """A spacing and its inverse.

    time: fraction in [0, 1] -> t, increasing from t_min to t_max, exact at both ends.
    fraction: t -> fraction.
    """

    time: Callable[[Array], Array]
    fraction: Callable[[Array], Array]


def uniform_spacing(path: Path) -> Spacing:
    """Equal steps in the path's own time."""
    return Spacing(
        time=lambda u: path.t_max * u + path.t_min * (1.0 - u),
        fraction=lambda t: (t - path.t_min) / (path.t_max - path.t_min),
    )


def quadratic_spacing(path: Path) -> Spacing:
    """Equal steps in the root of the path's time, so finer near the data (Song et al. 2021, D.2).

    Samplers of densities with narrow modes need it (docs/densities.md).
    """
    length = path.t_max - path.t_min
    return Spacing(
        time=lambda u: jnp.where(u >= 1.0, path.t_max, path.t_min + length * u**2),
        fraction=lambda t: jnp.sqrt(jnp.clip((t - path.t_min) / length, 0.0, 1.0)),
    )


def karras_spacing(path: Path, power: float = 7.0) -> Spacing:
    """Equal steps in rho^(1/power), rho = sigma / alpha (Karras et al. 2022, eq. 5).

    rho runs over the path, on `ve` sigma_min to sigma_max; 0.002 replaces 0 and 80 replaces
    infinity. Raises ValueError unless power > 0.
    """
    if power <= 0.0:
        raise ValueError(f"spacing.power={power} must be positive for spacing.name=karras")
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


SPACINGS: dict[str, Callable[..., Spacing]] = {
    "uniform": uniform_spacing,
    "quadratic": quadratic_spacing,
    "karras": karras_spacing,
}
