"""Precision and recall of generated features by k nearest neighbours.

Kynkaanniemi et al. 2019, eqs. 1 and 2: the manifold of a set is the union of one ball for each of
its points, whose radius is the distance to that point's k-th nearest neighbour in the same set,
itself not counted.

    precision = share of generated points inside the manifold of the real ones    (fidelity)
    recall    = share of real points inside the manifold of the generated ones    (coverage)

Traps of the protocol:
- Both depend on k and on the numbers of points: more points mean smaller balls. Compare only
  values with the same k and the same counts, real and generated counts alike.
- A copy of the training images has precision 1 and recall 1; neither sees memorization.
- One outlier has a large ball, so precision can be high for bad samples near it.
- Numbers in the literature are on VGG-16 features and cannot be compared with pixels.
"""

from typing import NamedTuple

import numpy as np
from sklearn.metrics import pairwise_distances_chunked
from sklearn.neighbors import NearestNeighbors

from eval.features import check_features

# The choice of Kynkaanniemi et al. 2019.
NEIGHBOURS = 3


class PrecisionRecall(NamedTuple):
    """Two shares in [0, 1]."""

    precision: float
    recall: float


def precision_recall(
    real: np.ndarray, generated: np.ndarray, k: int = NEIGHBOURS
) -> PrecisionRecall:
    """Precision and recall of generated features [M, D] against real ones [N, D].

    Raises ValueError if D differs, k < 1, a set has no more than k points or is not finite.
    """
    if k < 1:
        raise ValueError(f"k = {k} neighbours; at least 1 is needed")
    check_features(real, least=k + 1, name="real features")
    check_features(generated, least=k + 1, name="generated features")
    if real.shape[1] != generated.shape[1]:
        raise ValueError(
            f"real features have {real.shape[1]} dimensions, generated ones {generated.shape[1]}; "
            "use the same feature function and image size on both sides"
        )
    precision = inside(generated, real, radii(real, k)).mean()
    recall = inside(real, generated, radii(generated, k)).mean()
    return PrecisionRecall(float(precision), float(recall))


def radii(features: np.ndarray, k: int) -> np.ndarray:
    """Distance of each point of [N, D] to its k-th nearest neighbour, itself not counted: [N]."""
    neighbours = NearestNeighbors(n_neighbors=k).fit(features)
    # Called without points, it leaves each point out of its own neighbours, duplicates included.
    distances, _ = neighbours.kneighbors()
    return distances[:, -1]


def inside(points: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Whether each point [M, D] lies in any ball of centre [N, D] and radius [N]: bool [M].

    Distances are made in blocks of rows, so memory stays bounded for any M and N.
    """
    blocks = pairwise_distances_chunked(
        points, centres, reduce_func=lambda distances, _: (distances <= radii).any(axis=1)
    )
    return np.concatenate(list(blocks))
