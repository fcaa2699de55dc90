"""Preconditioned networks: D(x, sigma) = c_skip x + c_out F(c_in x, c_noise), Karras et al. 2022.

`sigma` here is the noise-to-signal ratio of the point x = x_0 + sigma eps, so a point of another
path enters as x_t / alpha at sigma = rho(t).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from diffusion.path import align

# Deviation of natural images scaled to [-1, 1], as EDM sets it (Karras et al. 2022, table 1).
SIGMA_DATA = 0.5


class Preconditioning(NamedTuple):
    """The four scalings as functions of sigma: [B]."""

    c_in: Callable[[Array], Array]
    c_skip: Callable[[Array], Array]
    c_out: Callable[[Array], Array]
    c_noise: Callable[[Array], Array]


def edm(sigma_data: float = SIGMA_DATA) -> Preconditioning:
    """EDM, table 1: unit variance of the input and of the regression target of F."""
    return Preconditioning(
        c_in=lambda sigma: 1.0 / jnp.sqrt(sigma**2 + sigma_data**2),
        c_skip=lambda sigma: sigma_data**2 / (sigma**2 + sigma_data**2),
        c_out=lambda sigma: sigma * sigma_data / jnp.sqrt(sigma**2 + sigma_data**2),
        c_noise=lambda sigma: 0.25 * jnp.log(sigma),
    )


def consistency(sigma_data: float = SIGMA_DATA, sigma_min: float = 0.002) -> Preconditioning:
    """EDM's scalings shifted so that f(x, sigma_min) = x for any F (Song et al. 2023, app. C)."""
    base = edm(sigma_data)
    return base._replace(
        c_skip=lambda sigma: sigma_data**2 / ((sigma - sigma_min) ** 2 + sigma_data**2),
        c_out=lambda sigma: (sigma - sigma_min) * sigma_data / jnp.sqrt(sigma**2 + sigma_data**2),
    )


def precondition(
    network: Callable[[Array, Array], Array], scalings: Preconditioning
) -> Callable[[Array, Array], Array]:
    """D(x, sigma) = c_skip x + c_out F(c_in x, c_noise) for a raw network F(x, noise).

    x: [B, ...]; sigma: [B].
    """

    def denoise(x: Array, sigma: Array) -> Array:
        raw = network(align(scalings.c_in(sigma), x) * x, scalings.c_noise(sigma))
        return align(scalings.c_skip(sigma), x) * x + align(scalings.c_out(sigma), x) * raw

    return denoise
