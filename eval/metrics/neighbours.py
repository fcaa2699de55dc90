"""Precision, recall, density and coverage of generated features, by k nearest neighbours.

The ball of a point is closed and reaches to its k-th nearest neighbour in the same set, without
itself. Kynkaanniemi et al. 2019, eqs. 1 and 2, k = 3:

    precision = share of generated points inside any ball of a real one           (fidelity)
    recall    = share of real points inside any ball of a generated one           (coverage)

Naeem et al. 2020, k = 5, with balls of the N real points only:

    density   = number of (generated point, ball that holds it) / (k M)           (fidelity)
    coverage  = share of the balls that hold a generated point                    (coverage)

Let M generated and N real points come from one continuous distribution. Sorted by distance to a
real point x, the M generated and N - 1 other real ones are in random order. The ball of x holds
k M / N generated points on average, so the expected density is 1. It holds none if the k nearest
points are all real, so

    E coverage = 1 - (N-1) ... (N-k) / ((M+N-1) ... (M+N-k)),    0.97 for k = 5 and large M = N

Traps of the protocol:
- All four depend on k and on the numbers of points: more points mean smaller balls. Compare only
  values with the same k, the same real count and the same generated count. The ideal coverage is
  E coverage, not 1; precision and recall have no known ideal.
- Copies of the training images have precision, recall and coverage 1: none detects memorization.
- An outlier has a large ball, so bad samples near it can have a high precision. Density counts
  balls, so one outlier weighs little; it exceeds 1 for samples that crowd where real points are
  dense.
- Sparse generated points have large balls, so samples that spread too wide can have a high recall.
  Coverage uses balls of real points only.
- The published code of Naeem et al. 2020 uses open balls and one k for all four. The border matters
  only if distances tie, as they may for small images.
- Literature uses VGG-16 or Inception features; its numbers cannot be compared with those on pixels.
"""

from typing import NamedTuple

import numpy as np

from fewstep.eval.features.feature_network import check_dimensions, check_features

# The choice of Kynkaanniemi et al. 2019.
NEIGHBOURS = 3
# The choice of Naeem et al. 2020.
DENSITY_NEIGHBOURS = 5
# Share of the largest squared norm: far above float64's 2e-16, far below distances between images.
ROUNDING = 1e-12


class ManifoldMetrics(NamedTuple):
    """Precision, recall and coverage in [0, 1]; density at least 0, possibly above 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def manifold_metrics(
    real: np.ndarray,
    generated: np.ndarray,
    *,
    k: int = NEIGHBOURS,
    density_k: int = DENSITY_NEIGHBOURS,
) -> ManifoldMetrics:
    """All four metrics of generated features [M, D] against real ones [N, D].

    k: for precision and recall. density_k: for density and coverage. Distances between the sets are
    computed once, in blocks of rows, so memory stays bounded.
    Raises ValueError if D differs, a k < 1, N <= k or density_k, M <= k, or a value is not finite.
    """
    if min(k, density_k) < 1:
        raise ValueError(f"k = {k} and density_k = {density_k} neighbours; at least 1 is needed")
    from sklearn.metrics import pairwise_distances_chunked

    real, generated = np.asarray(real, np.float64), np.asarray(generated, np.float64)
    check_features(real, least=max(k, density_k) + 1, name="real features")
    check_features(generated, least=k + 1, name="generated features")
    check_dimensions(real, generated)
    slack = rounding_error(real, generated)
    near = np.sqrt(neighbour_distances(real, max(k, density_k)) ** 2 + slack)
    real_radii, density_radii = near[:, k - 1], near[:, density_k - 1]
    generated_radii = np.sqrt(neighbour_distances(generated, k)[:, k - 1] ** 2 + slack)
    precise = held = done = 0
    recalled, covered = np.zeros((2, len(real)), bool)
    for distances in pairwise_distances_chunked(generated, real):
        rows = slice(done, done + len(distances))
        within = distances <= density_radii
        precise += np.count_nonzero((distances <= real_radii).any(axis=1))
        recalled |= (distances <= generated_radii[rows, None]).any(axis=0)
        held += np.count_nonzero(within)
        covered |= within.any(axis=0)
        done += len(distances)
    return ManifoldMetrics(
        precision=float(precise / len(generated)),
        recall=float(recalled.mean()),
        density=float(held / (density_k * len(generated))),
        coverage=float(covered.mean()),
    )


def neighbour_distances(features: np.ndarray, k: int) -> np.ndarray:
    """Distances [N, k] from each point [N, D] to its k nearest neighbours, without itself."""
    from sklearn.neighbors import NearestNeighbors

    neighbours = NearestNeighbors(n_neighbors=k).fit(features)
    # Without arguments, kneighbors leaves out each point itself, but not its duplicates.
    distances, _ = neighbours.kneighbors()
    return distances


def rounding_error(*sets: np.ndarray) -> float:
    """Bound on the rounding error of a squared distance between points of sets [N, D].

    Distances are computed as |x|^2 + |y|^2 - 2 x . y, so two computations of one distance differ.
    Without this slack, chance would decide about copies and about ties, as in small images.
    """
    return ROUNDING * max(np.einsum("nd,nd->n", points, points).max() for points in sets)
