"""Time grids for sampling: [steps + 1] times from noise (t_max) to data (t_min).

On `ve` the last time of `time_grid` is sigma_min. EDM (Karras et al. 2022) reaches sigma_min in
steps - 1 intervals, and its last step goes to 0; `grid_to_data` is that grid.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax.numpy as jnp
from jax import Array

from fewstep.diffusion.path import Path
from fewstep.diffusion.spacing import Spacing

# (path, spacing, steps) -> [steps + 1] times
Grid = Callable[[Path, Spacing, int], Array]


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


def grid_to_path_end(path: Path, spacing: Spacing, steps: int) -> Array:
    """`time_grid`: the last time is the path's t_min."""
    return time_grid(spacing, steps)


def grid_to_data(path: Path, spacing: Spacing, steps: int) -> Array:
    """steps - 1 intervals to t_min, then one to the data (Karras et al. 2022, algorithm 1).

    A path that ends at the data has no such interval: its grid is `time_grid`. Raises StepsError
    for fewer than one step.
    """
    usual = time_grid(spacing, steps)
    inner = time_grid(spacing, steps - 1) if steps > 1 else usual[:1]
    data = jnp.broadcast_to(path.time_at(jnp.float32(0.0)), (1,))
    at_data = path.sigma(jnp.float32(path.t_min)) == 0.0
    return jnp.where(at_data, usual, jnp.concatenate([inner, data]))


# By where the last sampling step ends.
GRIDS: dict[str, Grid] = {"path": grid_to_path_end, "data": grid_to_data}
