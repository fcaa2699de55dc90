"""Time grids of samplers: [steps + 1] times from noise (t_max) to data (t_min)."""

import jax.numpy as jnp
from jax import Array

from diffusion.path import Path


def uniform_grid(path: Path, steps: int) -> Array:
    """Equal steps in the path's own time, both ends met exactly."""
    if steps < 1:
        raise ValueError(f"sampling needs at least 1 step, not {steps}")
    fraction = jnp.arange(steps + 1, dtype=jnp.float32) / steps
    return path.t_max * (1.0 - fraction) + path.t_min * fraction
