"""Frechet distance between two sets of features, each approximated by a Gaussian.

    d^2 = ||m_a - m_b||^2 + tr(A + B - 2 (A B)^{1/2})          Heusel et al. 2017, eq. 6

A B has the eigenvalues of the symmetric matrix A^{1/2} B A^{1/2}. So only symmetric matrices need
a square root, and the trace stays exact if A or B is singular.

Traps of the protocol:
- The value is biased upwards, more so for fewer samples (Chong & Forsyth 2020): two sets from one
  distribution never measure 0. Compare only values with the same numbers of images on both sides.
  Read them beside the distance between real images and other real images, which is not 0 either,
  and is larger on halves of the data.
- With N <= D the covariance is singular and the bias is large.
- The features decide what the distance sees. On pixels it is not FID: it sees only means and second
  moments of pixels, not whether an image looks like anything.
"""

from typing import NamedTuple

import numpy as np

from fewstep.eval.features.feature_network import check_features


class Statistics(NamedTuple):
    """Mean [D] and unbiased covariance [D, D], both float64, and the number of samples."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int


def statistics(features: np.ndarray) -> Statistics:
    """Mean and covariance (divided by N - 1) of features [N, D], computed in float64.

    Raises ValueError if N < 2 or a value is not finite.
    """
    features = np.asarray(features, np.float64)
    check_features(features, least=2)
    mean = features.mean(axis=0)
    centred = features - mean
    return Statistics(mean, centred.T @ centred / (len(features) - 1), len(features))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """||m_a - m_b||^2 + tr(A + B - 2 (A B)^{1/2}), at least 0 (Heusel et al. 2017, eq. 6).

    This is the squared 2-Wasserstein distance of the two Gaussians, in squared units of the
    features, like FID. On singular covariances rounding leaves about 1e-7 of tr(A + B).
    Raises ValueError if the dimensions differ.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"features of {a.mean.size} and {b.mean.size} dimensions cannot be compared; "
            "use the same feature function and image size on both sides"
        )
    root = symmetric_root(a.covariance)
    product = root @ b.covariance @ root
    overlap = np.sqrt(np.clip(np.linalg.eigvalsh(symmetrize(product)), 0.0, None)).sum()
    spread = np.trace(a.covariance) + np.trace(b.covariance) - 2.0 * overlap
    return float(max(np.sum((a.mean - b.mean) ** 2) + spread, 0.0))


def symmetric_root(matrix: np.ndarray) -> np.ndarray:
    """The symmetric square root of a positive semi-definite matrix [D, D].

    Eigenvalues that are negative by rounding count as 0.
    """
    values, vectors = np.linalg.eigh(symmetrize(matrix))
    return (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T


def symmetrize(matrix: np.ndarray) -> np.ndarray:
    """(M + M^T) / 2, which removes the asymmetry of rounding."""
    return 0.5 * (matrix + matrix.T)
