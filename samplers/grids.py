"""Time grids for sampling: [steps + 1] times from noise (t_max) to data (t_min).

On `ve` the last time is sigma_min. EDM (Karras et al. 2022) instead reaches sigma_min in steps - 1
intervals, then takes an Euler step to 0.
"""

import jax.numpy as jnp
from jax import Array

from fewstep.diffusion.spacing import Spacing


def time_grid(spacing: Spacing, steps: int) -> Array:
    """The end points of `steps` equal steps of a spacing, from noise to data: [steps + 1]."""
    if steps < 1:
        raise ValueError(f"sampling needs at least 1 step, not {steps}")
    return spacing.time(1.0 - jnp.arange(steps + 1, dtype=jnp.float32) / steps)
