"""Temporal Fourier layers (Zheng et al. 2023, arXiv:2211.13449), between the blocks of a network.

The rows of a batch are the times of trajectories: `times` rows in a row belong to one trajectory.
A layer mixes the tokens of a trajectory along time by its lowest Fourier modes,

    u + GELU(K u),     K u = inverse transform of R_m (transform of u)_m,  m = 0 ... modes - 1,

with one complex matrix R_m for each mode. The matrices start at zero, so the layer starts as the
identity.
"""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fewstep.models.network import Array

MODES = 2  # as published for trajectories of 4 times


class TemporalFourier(nn.Module):
    """Mixes tokens [B times, ..., D] along the times of each trajectory.

    Raises ValueError for rows that are no whole trajectories.
    """

    times: int
    modes: int = MODES

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        width = tokens.shape[-1]
        modes = min(self.modes, self.times // 2 + 1)
        shape = (2, modes, width, width)
        real, imaginary = self.param("modes", nn.initializers.zeros_init(), shape)
        if self.is_initializing():
            return tokens
        if tokens.shape[0] % self.times:
            raise ValueError(
                f"{tokens.shape[0]} rows are no whole trajectories of {self.times} times; use a "
                "multiple"
            )
        u = tokens.reshape(-1, self.times, tokens[0].size // width, width)
        cos, sin, weight = fourier_basis(self.times, modes)
        a, b = (jnp.einsum("tm,btnd->bmnd", basis, u) for basis in (cos, -sin))
        mixed_a = product(real, a) - product(imaginary, b)
        mixed_b = product(real, b) + product(imaginary, a)
        mixed = jnp.einsum("tm,bmnd->btnd", weight * cos, mixed_a)
        mixed -= jnp.einsum("tm,bmnd->btnd", weight * sin, mixed_b)
        return tokens + nn.gelu(mixed).reshape(tokens.shape)


def product(matrices: Array, u: Array) -> Array:
    """One matrix [modes, D, D] for each mode of u: [B, modes, N, D]."""
    return jnp.einsum("mde,bmnd->bmne", matrices, u)


def fourier_basis(times: int, modes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(cos, sin) of 2 pi t m / times [times, modes], and the weights of the inverse [modes].

    The inverse of a real transform counts every mode but the first and the highest twice.
    """
    angles = 2.0 * np.pi / times * np.outer(np.arange(times), np.arange(modes))
    once = (np.arange(modes) == 0) | (2 * np.arange(modes) == times)
    weight = np.where(once, 1.0, 2.0) / times
    return tuple(a.astype(np.float32) for a in (np.cos(angles), np.sin(angles), weight))
