"""Memorisation: are samples nearer to the training images than held-out real images are?

    d(s) = min over training images t of |f(s) - f(t)|,    c = q-quantile of d over held-out images

    share closer = share of samples with d < c          q on average for new real images

The held-out images show how near an image of this distribution comes to a training image by chance,
as in the data-copying test of Meehan et al. 2020. A share far above q means copying or
near-copying. Look at the closest pairs, which `nearest` and `distances` give.

Traps of the protocol:
- A blurred or flat image is near to everything: the median of a bad model may be below that of the
  held-out images without any copy. Look at the pairs, and read precision and density beside it.
- Distances are those of the features. On pixels, a copy that is shifted by one column or mirrored
  is far. If training mirrors its images, pass the mirrored ones as training images too.
- Pass all training images, and no held-out ones. Fewer training images make d larger on both sides
  and hide copies.
- A held-out set may contain near-duplicates of training images, as CIFAR-10's does (Barz & Denzler
  2020). They make c small. If c is 0, no sample is closer and only `copies` says something.
- With few held-out images c is uncertain: of n images about q n lie below it.
"""

import math
from typing import NamedTuple

import numpy as np

from fewstep.eval.features.feature_network import check_dimensions, check_features

QUANTILE = 0.01
# Rows of feature differences in memory at once.
ROWS = 1024


class Memorisation(NamedTuple):
    """How near samples come to training images.

    median, held_out_median: of d. copies: samples with exactly the features of a training image.
    distances: d [N]. nearest: [N], indices of the nearest training images.
    """

    median: float
    held_out_median: float
    share_closer: float
    copies: int
    distances: np.ndarray
    nearest: np.ndarray


def memorisation(
    samples: np.ndarray, train: np.ndarray, held_out: np.ndarray, *, quantile: float = QUANTILE
) -> Memorisation:
    """Compare samples and held-out images by their distances to the training images.

    All arguments are features [N, D]. Raises ValueError if D differs, a set is empty or not finite,
    the quantile is not in (0, 1), or it needs more held-out images.
    """
    if not 0.0 < quantile < 1.0:
        raise ValueError(f"quantile = {quantile:g}; it must be in (0, 1)")
    samples, train, held_out = (np.asarray(f, np.float64) for f in (samples, train, held_out))
    check_features(train, least=1, name="training features")
    check_features(samples, least=1, name="sample features")
    check_features(held_out, least=1, name="held-out features")
    check_dimensions(train, samples, "training features", "sample ones")
    check_dimensions(train, held_out, "training features", "held-out ones")
    needed = fewest_held_out(quantile)
    if len(held_out) < needed:
        raise ValueError(
            f"held-out features has {len(held_out)} rows; their {quantile:g} quantile needs at "
            f"least {needed}; hold out more images or raise the quantile"
        )
    distances, nearest = nearest_training_image(samples, train)
    held_out_distances, _ = nearest_training_image(held_out, train)
    # Weibull's quantile: a new draw is below it with probability q for any n.
    closer = distances < np.quantile(held_out_distances, quantile, method="weibull")
    return Memorisation(
        median=float(np.median(distances)),
        held_out_median=float(np.median(held_out_distances)),
        share_closer=float(closer.mean()),
        copies=int(np.count_nonzero(distances == 0.0)),
        distances=distances,
        nearest=nearest,
    )


def fewest_held_out(quantile: float = QUANTILE) -> int:
    """Held-out images that a quantile needs. The lowest of n is their 1 / (n + 1) quantile."""
    return math.ceil(1.0 / quantile) - 1


def nearest_training_image(points: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance [N] from each point to the nearest training image, and the index [N] of that image.

    The search expands the squared distance, and rounding hides zeros. So the distances of the pairs
    are computed again from differences: for copies they are exactly 0.
    """
    from sklearn.metrics import pairwise_distances_argmin
    from sklearn.utils import gen_batches

    nearest = pairwise_distances_argmin(points, train)
    distances = np.concatenate(
        [
            np.linalg.norm(points[rows] - train[nearest[rows]], axis=1)
            for rows in gen_batches(len(points), ROWS)
        ]
    )
    return distances, nearest
