"""The contract of a target: rho(x), an unnormalised density of points in R^D, and its truth.

    pi(x) = rho(x) / Z,    log Z = log integral rho

Networks see y = x / scale, whose density is rho(scale y) scale^D with the same Z. So the prior of
every sampler is N(0, I) in y, which is N(0, scale^2 I) in x.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Draw = Callable[[np.random.Generator, int], np.ndarray]


@dataclass(frozen=True)
class Modes:
    """The modes of a density.

    assign: points [N, D] -> index of the mode of each, int [N]. weight: [K], their probabilities.
    """

    assign: Callable[[np.ndarray], np.ndarray]
    weight: np.ndarray


@dataclass(frozen=True)
class Density:
    """An unnormalised density and what is known of it; None where it is not known.

    log_density: log rho of one point, [D] -> scalar, differentiable by JAX.
    scale: typical size of a coordinate, in whose units networks see points.
    sample: (random generator, count) -> exact samples, float64 [count, D].
    log_z: log Z. modes: the modes and their weights.
    symmetries: maps of points [N, D] -> [N, D] that preserve the density and volumes.
    digest: SHA-256 of the file that defines it, "" if a name does.
    """

    name: str
    dim: int
    log_density: Callable[[Array], Array]
    scale: float = 1.0
    sample: Draw | None = None
    log_z: float | None = None
    modes: Modes | None = None
    symmetries: tuple[Callable[[np.ndarray], np.ndarray], ...] = ()
    digest: str = ""

    def log_densities(self, x: Array) -> Array:
        """log rho of points: [B, D] -> [B]."""
        return jax.vmap(self.log_density)(x)

    def scaled_log_density(self, y: Array) -> Array:
        """log(rho(scale y) scale^D) of points in units of the scale: [B, D] -> [B]."""
        return self.log_densities(self.scale * y) + self.dim * math.log(self.scale)

    def scaled_score(self, y: Array) -> Array:
        """The gradient of `scaled_log_density`, [B, D] -> [B, D].

        Its name marks it in a program, by which gradients are counted.
        """

        def gradient_of_density(y: Array) -> Array:
            return self.scale * jax.vmap(jax.grad(self.log_density))(self.scale * y)

        return jax.jit(gradient_of_density)(y)


def check_density(density: Density) -> Density:
    """The density, if its log density is one finite number at draws from the prior.

    Its gradient must be finite there too. Raises ValueError that names the density otherwise.
    """
    check_scale(density)
    y = jax.random.normal(jax.random.key(0), (16, density.dim))
    x = density.scale * y
    try:
        shape = jax.eval_shape(density.log_density, jax.ShapeDtypeStruct((density.dim,), x.dtype))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"log_density of density:{density.name} cannot take a point of {density.dim} numbers: "
            f"{error}"
        ) from error
    if getattr(shape, "shape", None) != () or not jnp.issubdtype(shape.dtype, jnp.floating):
        raise ValueError(
            f"log_density of density:{density.name} must return one float for one point "
            f"[{density.dim}], not {getattr(shape, 'dtype', type(shape).__name__)} "
            f"{list(getattr(shape, 'shape', ()))}"
        )
    check_finite(
        f"log_density of density:{density.name}",
        density.log_densities(x),
        density.scale,
        "give a density that is positive everywhere, or another scale",
    )
    check_finite(
        f"the gradient of log_density of density:{density.name}",
        density.scaled_score(y),
        density.scale,
        "jnp.where keeps the gradient of the branch that it does not take, so give that branch an "
        "argument at which its gradient is finite",
    )
    return density


def check_finite(name: str, values: Array, scale: float, remedy: str) -> None:
    """Raises ValueError that has the name and the remedy unless all values are finite."""
    odd = np.asarray(values)[~np.isfinite(values)]
    if odd.size:
        raise ValueError(f"{name} is {odd[0]} at a draw from N(0, {scale:g}^2 I); {remedy}")


def check_scale(density: Density) -> None:
    """Raises ValueError unless the scale is a finite number above 0."""
    try:
        good = 0.0 < float(density.scale) < math.inf
    except (TypeError, ValueError):
        good = False
    if not good:
        given = f"scale={density.scale!r} of density:{density.name}"
        raise ValueError(f"{given} must be a finite number above 0")


def quadrature(log_density: Callable[[np.ndarray], np.ndarray], grid: np.ndarray) -> float:
    """log integral exp(log_density) over an even grid, which must hold all the mass."""
    values = log_density(grid)
    top = values.max()
    return float(top + np.log(np.exp(values - top).sum() * (grid[1] - grid[0])))


def inverse_cdf(log_density: Callable[[np.ndarray], np.ndarray], grid: np.ndarray) -> Draw:
    """Exact samples [count] of a density of one number, by its CDF on an even grid."""
    values = log_density(grid)
    mass = np.exp(values - values.max())
    cdf = np.concatenate([[0.0], np.cumsum(0.5 * (mass[1:] + mass[:-1]))])
    return lambda rng, count: np.interp(rng.random(count), cdf / cdf[-1], grid)
