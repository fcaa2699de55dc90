"""Memorisation: are samples nearer to the training images than held-out real images are?

    d(s) = min over training images t of |f(s) - f(t)|,    c = q-quantile of d over held-out images

    share closer = share of samples with d < c          q on average for new draws of the real law

The held-out images say how near an image of this law comes to that many training images by chance,
as in the data-copying test of Meehan et al. 2020. A share far above q is copying or near-copying;
`nearest` and `distances` are there to show the closest pairs, which is what to look at.

Traps of the protocol:
- A blurred or flat image is near to everything: the median of a bad model may be below that of the
  held-out images without a copy. Look at the pairs, and read it beside precision and density.
- Distances are those of the features. On pixels a copy that is moved or mirrored by one column is
  far; if training mirrors its images, give the mirrored ones as training images too.
- Give every image that was trained on, the held-out ones not among them. Fewer of them make d
  larger on both sides and hide copies.
- A held-out set may itself hold near-duplicates of training images, as that of CIFAR-10 does
  (Barz & Denzler 2020). They make c small; where c is 0 nothing is closer, and only copies count.
- Small held-out sets leave c uncertain: of n images about q n lie below it.
"""

import math
from typing import NamedTuple

import numpy as np
from sklearn.metrics import pairwise_distances_argmin
from sklearn.utils import gen_batches

from fewstep.eval.features.feature_network import check_dimensions, check_features

QUANTILE = 0.01
# Rows of differences of features that are in memory at once.
ROWS = 1024


class Memorisation(NamedTuple):
    """Medians of d, shares and counts of samples, and for each sample its nearest training image.

    distances, nearest: [N], the latter indices into the training images.
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
    """Distances of the features of samples [N, D] to training ones, beside those of held-out ones.

    A copy is a sample with exactly the features of a training image.
    Raises ValueError if D differs, a set is empty or not finite, the quantile is not in (0, 1) or
    there are too few held-out images for it.
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
            f"least {needed}; hold more images out or raise the quantile"
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
    """Held-out images that a quantile needs: the lowest of n is their 1 / (n + 1) quantile."""
    return math.ceil(1.0 / quantile) - 1


def nearest_training_image(points: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance [N] of each point to the nearest training one, and the index [N] of that one.

    The search expands the square of the distance, whose rounding hides zeros, so the distances of
    the pairs it finds are taken again from their differences: those of copies are exactly 0.
    """
    nearest = pairwise_distances_argmin(points, train)
    distances = np.concatenate(
        [
            np.linalg.norm(points[rows] - train[nearest[rows]], axis=1)
            for rows in gen_batches(len(points), ROWS)
        ]
    )
    return distances, nearest
