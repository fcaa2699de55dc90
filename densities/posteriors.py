"""Posteriors: logistic regression, the log-Gaussian Cox process, and that of a decoder."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fewstep.densities.density import Density

# Of the Gaussian process (Moller et al. 1998, for the Finnish pines).
PROCESS_VARIANCE, PROCESS_LENGTH = 1.91, 1.0 / 33.0
SIDE = 40
DECODER_DEVIATION = 0.1  # of pixels in [-1, 1] around what a decoder makes


def logistic_regression(name: str, features: np.ndarray, labels: np.ndarray) -> Density:
    """log rho = sum_n log sigmoid(+-(w . x_n + b)) + log N((w, b); 0, I).

    features: [N, D], standardised here. labels: [N], 0 or 1. The prior is normalised, so Z is the
    marginal likelihood of the labels.
    """
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    design = jnp.asarray(np.concatenate([features, np.ones((len(features), 1))], axis=1))
    sign = jnp.asarray(2.0 * labels - 1.0)
    design, sign = design.astype(jnp.float32), sign.astype(jnp.float32)
    dim = design.shape[1]

    def log_density(w: Array) -> Array:
        prior = -0.5 * jnp.sum(w**2) - 0.5 * dim * math.log(2.0 * math.pi)
        return jnp.sum(jax.nn.log_sigmoid(sign * (design @ w))) + prior

    return Density(name, dim, log_density)


def cancer(name: str) -> Density:
    """Logistic regression of scikit-learn's breast-cancer data: 569 rows, 31 weights."""
    from sklearn.datasets import load_breast_cancer

    return logistic_regression(name, *load_breast_cancer(return_X_y=True))


def decoder_posterior(
    name: str,
    decode: Callable[[Array], Array],
    dim: int,
    image: np.ndarray,
    deviation: float = DECODER_DEVIATION,
    digest: str = "",
) -> Density:
    """log rho(z) = log N(z; 0, I) + log N(image; decode(z), deviation^2 I): which codes explain it.

    decode: code [dim] -> image, of the shape of `image`, with pixels in [-1, 1]. Prior and
    likelihood are normalised, so Z is the evidence of the image under the decoder.
    """
    pixels = jnp.asarray(image, jnp.float32)
    constant = -0.5 * dim * math.log(2.0 * math.pi)
    constant -= 0.5 * pixels.size * math.log(2.0 * math.pi * deviation**2)

    def log_density(z: Array) -> Array:
        error = jnp.sum((pixels - decode(z)) ** 2) / deviation**2
        return constant - 0.5 * (jnp.sum(z**2) + error)

    return Density(name, dim, log_density, digest=digest)


def cox_process(name: str, points: np.ndarray, side: int = SIDE) -> Density:
    """The log-intensities of a Cox process on side^2 cells, given points in the unit square.

        log rho(x) = log N(x; mu, K) + sum_cells n x - a e^x
        K = 1.91 exp(-33 |c - c'| / side), in cells;  mu = log(count) - 1.91 / 2;  a = 1 / side^2

    points: [N, 2], in [0, 1). n counts the points in a cell, a is its area. Factorials of n are
    left out. Raises ValueError for points outside the square.
    """
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or not ((points >= 0) & (points < 1)).all():
        raise ValueError(f"density:{name} needs points [N, 2] with coordinates in [0, 1)")
    cell = (points * side).astype(int)
    counts = np.zeros((side, side))
    np.add.at(counts, (cell[:, 0], cell[:, 1]), 1)
    covariance = process_covariance(side)
    factor = np.linalg.cholesky(covariance)
    precision = jnp.asarray(np.linalg.inv(covariance), jnp.float32)
    mean = math.log(len(points)) - 0.5 * PROCESS_VARIANCE
    constant = -np.log(np.diag(factor)).sum() - 0.5 * side**2 * math.log(2.0 * math.pi)
    count, area = jnp.asarray(counts.ravel(), jnp.float32), 1.0 / side**2

    def log_density(x: Array) -> Array:
        centred = x - mean
        prior = -0.5 * centred @ (precision @ centred) + constant
        return prior + jnp.sum(count * x - area * jnp.exp(x))

    return Density(name, side**2, log_density, scale=2.0)


def process_covariance(side: int) -> np.ndarray:
    """[side^2, side^2], of the Gaussian process between the centres of the cells."""
    place = np.stack(np.meshgrid(*[np.arange(side)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
    distance = np.linalg.norm(place[:, None] - place, axis=-1) / side
    return PROCESS_VARIANCE * np.exp(-distance / PROCESS_LENGTH)


def draw_points(rng: np.random.Generator, mean_count: float, side: int = SIDE) -> np.ndarray:
    """A pattern of points [N, 2] drawn from the model, with about `mean_count` points."""
    factor = np.linalg.cholesky(process_covariance(side))
    field = factor @ rng.standard_normal(side**2) + math.log(mean_count) - 0.5 * PROCESS_VARIANCE
    cells = np.repeat(np.arange(side**2), rng.poisson(np.exp(field) / side**2))
    corner = np.stack([cells // side, cells % side], axis=1)
    return (corner + rng.random((len(cells), 2))) / side


def is_number(text: str) -> bool:
    """Whether a text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_points(path: Path, name: str) -> Density:
    """The Cox process of the points in a CSV file, one "x,y" a line; a first line may be a header.

    Raises ValueError that names the file if it has no such points.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        start = 0 if lines and is_number(lines[0].partition(",")[0]) else 1
        points = np.loadtxt(lines[start:], delimiter=",", ndmin=2)
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no list of points, one 'x,y' a line: {error}") from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return replace(cox_process(name, points), digest=digest)
