"""Fidelity and coverage of generated features by balls around k nearest neighbours.

The ball of a point reaches to its k-th nearest neighbour in the same set, itself not counted, and
holds its border. Kynkaanniemi et al. 2019, eqs. 1 and 2, k = 3:

    precision = share of generated points inside any ball of a real one           (fidelity)
    recall    = share of real points inside any ball of a generated one           (coverage)

Naeem et al. 2020, k = 5, with balls of the N real points alone:

    density   = number of (generated point, ball that holds it) / (k M)           (fidelity)
    coverage  = share of the balls that hold a generated point                    (coverage)

Where M generated and N real points are of one continuous law, the others come in random order of
their distance to a real x, M generated among N - 1 real ones. The ball of x holds k M / N generated
ones on average, so the expected density is 1. It holds none if the k nearest are all real, so

    E coverage = 1 - (N-1) ... (N-k) / ((M+N-1) ... (M+N-k)),    0.97 for k = 5 and large M = N

Traps of the protocol:
- All depend on k and on the numbers of points: more points mean smaller balls. Compare only values
  with the same k and the same counts, real and generated counts alike. E coverage is the value to
  reach, not 1; precision and recall have no such value.
- A copy of the training images has precision, recall and coverage 1; none sees memorization.
- One outlier has a large ball, so precision can be high for bad samples near it. Density counts
  balls, so one weighs little; it is above 1 for samples that crowd where real points are dense.
- Balls of generated points are large where they are few, so recall can be high for samples spread
  too wide. Coverage has balls of real points alone.
- The published code of Naeem et al. 2020 leaves the border out and has one k for all four. The
  border matters only where distances tie, as those of small images may.
- Numbers in the literature are on VGG-16 or Inception features and cannot be compared with pixels.
"""

from typing import NamedTuple

import numpy as np
from sklearn.metrics import pairwise_distances_chunked
from sklearn.neighbors import NearestNeighbors

from fewstep.eval.features.feature_network import check_dimensions, check_features

# The choice of Kynkaanniemi et al. 2019.
NEIGHBOURS = 3
# The choice of Naeem et al. 2020.
DENSITY_NEIGHBOURS = 5
# Of the largest squared norm: far above float64's 2e-16, far below what tells images apart.
ROUNDING = 1e-12


class ManifoldMetrics(NamedTuple):
    """Three shares in [0, 1], and a density that is at least 0 and may exceed 1."""

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
    """All four of generated features [M, D] against real ones [N, D].

    k is of precision and recall, density_k of density and coverage. Distances between the sets are
    made once, in blocks of rows, so memory stays bounded for any M and N.
    Raises ValueError if D differs, a k < 1, N <= k or density_k, M <= k, or a value is not finite.
    """
    if min(k, density_k) < 1:
        raise ValueError(f"k = {k} and density_k = {density_k} neighbours; at least 1 is needed")
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
    """Distances of each of [N, D] to its k nearest neighbours, itself not counted: [N, k]."""
    neighbours = NearestNeighbors(n_neighbors=k).fit(features)
    # Called without points, it leaves each point out of its own neighbours, duplicates included.
    distances, _ = neighbours.kneighbors()
    return distances


def rounding_error(*sets: np.ndarray) -> float:
    """The error that a squared distance between points of sets [N, D] may have.

    Distances are expanded to |x|^2 + |y|^2 - 2 x . y, so the same one made twice differs. Without
    this much slack, chance would decide on copies and on the ties of small images.
    """
    return ROUNDING * max(np.einsum("nd,nd->n", points, points).max() for points in sets)
