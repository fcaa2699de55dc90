"""Mixtures of Gaussians of equal weight: gmm9, gmm25 and gmm40."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from fewstep.densities.density import Density, Modes

GRID_VARIANCE = 0.3
# Means of gmm40, in [-40, 40]^2: of our own draw, since published ones belong to their generators.
SEED, RANGE, COUNT = 0, 40.0, 40


def grid_mixture(name: str, side: int) -> Density:
    """side^2 modes on a square grid with distance 5, each of variance 0.3 (gmm9, gmm25)."""
    line = 5.0 * (np.arange(side) - 0.5 * (side - 1))
    means = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    square = (lambda x: x[:, ::-1], lambda x: x * np.asarray([-1.0, 1.0]))
    return mixture(name, means, GRID_VARIANCE**0.5, symmetries=square)


def random_mixture(name: str) -> Density:
    """40 modes of deviation 1 at means drawn uniformly from [-40, 40]^2."""
    means = np.random.default_rng(SEED).uniform(-RANGE, RANGE, (COUNT, 2))
    return mixture(name, means, 1.0)


def mixture(name: str, means: np.ndarray, deviation: float, **known: tuple) -> Density:
    """The mixture of N(mean, deviation^2 I) of equal weights; its density is normalised.

    means: [K, D]. The scale is the deviation of a coordinate.
    """
    count, dim = means.shape
    centres = jnp.asarray(means, jnp.float32)
    variance = deviation**2
    constant = -np.log(count) - 0.5 * dim * np.log(2.0 * np.pi * variance)

    def log_density(x: Array) -> Array:
        nearest = centres[jnp.argmin(jnp.sum((x - centres) ** 2, axis=-1))]
        offset, others = x - nearest, centres - nearest
        # Linear in x, at most 0, and 0 for the nearest: squares of far points do not cancel.
        logits = (jnp.sum(others * offset, axis=-1) - 0.5 * jnp.sum(others**2, axis=-1)) / variance
        # Not jnp.minimum, which has half the gradient where two means are equally near.
        rest = jnp.log(jnp.sum(jnp.exp(jnp.where(logits > 0.0, 0.0, logits))))
        return rest - 0.5 * jnp.sum(offset**2) / variance + constant

    def sample(rng: np.random.Generator, size: int) -> np.ndarray:
        chosen = means[rng.integers(count, size=size)]
        return chosen + deviation * rng.standard_normal((size, dim))

    def assign(x: np.ndarray) -> np.ndarray:
        return ((x[:, None] - means) ** 2).sum(axis=-1).argmin(axis=1)

    scale = float(np.sqrt(means.var(axis=0).mean() + variance))
    modes = Modes(assign, np.full(count, 1.0 / count))
    return Density(name, dim, log_density, scale, sample, 0.0, modes, **known)
