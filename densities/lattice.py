"""The scalar phi^4 field on a periodic square lattice, a field theory with two phases."""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from fewstep.densities.density import Density, Modes

KAPPA, LAMBDA = 0.3, 0.022  # Chen et al. 2025 (SCLD)


def phi4(name: str, side: int = 8, kappa: float = KAPPA, coupling: float = LAMBDA) -> Density:
    """log rho = sum_x 2 kappa phi_x (phi_{x+1} + phi_{x+2}) - (1 - 2 l) phi_x^2 - l phi_x^4.

    l is the coupling lambda.

    x + 1 and x + 2 are the neighbours of a site in the two directions; D = side^2. At lambda = 0
    and kappa < 1/4 the field is Gaussian, with log Z = D/2 log 2 pi - 1/2 sum_k log c_k, c_k = 2 -
    4 kappa (cos k_1 + cos k_2), and modes of variance 1 / c_k.

    The modes are the phases, by the sign of the mean field, which are equal by symmetry.
    Raises ValueError unless rho can be normalised.
    """
    if side < 2 or coupling < 0.0 or (coupling == 0.0 and abs(kappa) >= 0.25):
        raise ValueError(
            f"density:{name}: phi4-SIDE-KAPPA-LAMBDA needs a side of 2 or more, and lambda > 0, or "
            "lambda = 0 with kappa below 0.25"
        )

    def log_density(x: Array) -> Array:
        phi = x.reshape(side, side)
        neighbours = jnp.roll(phi, -1, axis=0) + jnp.roll(phi, -1, axis=1)
        site = (1.0 - 2.0 * coupling) * phi**2 + coupling * phi**4
        return jnp.sum(2.0 * kappa * phi * neighbours - site)

    def sample(rng: np.random.Generator, count: int) -> np.ndarray:
        white = np.fft.fft2(rng.standard_normal((count, side, side)))
        return np.fft.ifft2(white / np.sqrt(curvature)).real.reshape(count, -1)

    k = 2.0 * np.pi * np.arange(side) / side
    curvature = 2.0 - 4.0 * kappa * (np.cos(k)[:, None] + np.cos(k))
    gaussian = coupling == 0.0
    volume = side**2 * math.log(2.0 * math.pi)
    log_z = 0.5 * float(volume - np.log(curvature).sum()) if gaussian else None
    shift = lambda x: np.roll(x.reshape(-1, side, side), 1, axis=1).reshape(len(x), -1)
    phases = Modes(lambda x: (x.mean(axis=1) > 0.0).astype(int), np.full(2, 0.5))
    return Density(
        name,
        side**2,
        log_density,
        scale=1.0 if gaussian else 2.0,
        sample=sample if gaussian else None,
        log_z=log_z,
        modes=None if gaussian else phases,
        symmetries=(lambda x: -x, shift),
    )
