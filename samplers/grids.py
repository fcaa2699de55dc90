"""Time grids of samplers: [steps + 1] times from noise (t_max) to data (t_min).

On `ve` the last time is sigma_min. EDM (Karras et al. 2022) takes its levels down to sigma_min in
steps - 1 intervals and then one more, Euler's, to 0.
"""

import jax.numpy as jnp
from jax import Array

from fewstep.diffusion.spacing import Spacing


def time_grid(spacing: Spacing, steps: int) -> Array:
    """The ends of `steps` equal steps of a spacing, from noise to data."""
    if steps < 1:
        raise ValueError(f"sampling needs at least 1 step, not {steps}")
    return spacing.time(1.0 - jnp.arange(steps + 1, dtype=jnp.float32) / steps)
