"""Time grids for sampling: [steps + 1] times from noise (t_max) to data (t_min).

On `ve` the last time is sigma_min. EDM (Karras et al. 2022) instead reaches sigma_min in steps - 1
intervals, then takes an Euler step to 0.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import jax.numpy as jnp
from jax import Array

from fewstep.diffusion.spacing import Spacing


class StepsError(ValueError):
    """A number of sampling steps that a method does not sample in."""


@contextmanager
def named_steps(given: str) -> Iterator[None]:
    """Names, in a StepsError of the block, what was given: "evaluate.steps=(1, 3)"."""
    try:
        yield
    except StepsError as error:
        raise ValueError(f"{given}: {error}") from error


def time_grid(spacing: Spacing, steps: int) -> Array:
    """The end points of `steps` equal steps of a spacing, from noise to data: [steps + 1].

    Raises StepsError for fewer than one.
    """
    if steps < 1:
        raise StepsError(f"sampling needs at least 1 step, not {steps}")
    return spacing.time(1.0 - jnp.arange(steps + 1, dtype=jnp.float32) / steps)
