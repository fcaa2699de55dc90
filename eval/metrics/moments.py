"""Mean and covariance of features that come in batches, one batch in memory at a time.

n points have a mean m and a scatter S = sum (x - m)(x - m)^T. Two sets merge as (Chan et al. 1979)

    d = m_b - m_a,    m = m_a + d n_b / n,    S = S_a + S_b + d d^T n_a n_b / n,    n = n_a + n_b

and a batch is such a set. The covariance is S / (n - 1), as in eval.metrics.frechet. Unlike
sum x x^T - n m m^T, this never subtracts two large numbers, so a large mean does not cost the
covariance digits.

Traps of the protocol:
- Each image counts once: cut off the padding of a last batch before `update_moments`.
- Processes can merge their moments. JAX turns float64 into float32 unless x64 is enabled, between
  processes too: exchange moments as files or as bytes.
- Feature functions often return float32, which has already lost digits.
"""

from typing import NamedTuple

import numpy as np

from fewstep.eval.metrics.frechet import Statistics


class Moments(NamedTuple):
    """Number of points, their mean [D] and scatter [D, D], both float64."""

    count: int
    mean: np.ndarray
    scatter: np.ndarray


def empty_moments(dimension: int) -> Moments:
    """The moments of no points, with features of this dimension."""
    return Moments(0, np.zeros(dimension), np.zeros((dimension, dimension)))


def update_moments(moments: Moments, features: np.ndarray) -> Moments:
    """The moments with a batch of features [N, D] added; N may be 0.

    Raises ValueError if D differs or a value is not finite.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2:
        raise ValueError(f"features must be [N, D], not {list(features.shape)}")
    bad = int(np.count_nonzero(~np.isfinite(features).all(axis=1)))
    if bad:
        raise ValueError(
            f"{bad} of {len(features)} rows of features are not finite; "
            "look for diverged samples before measuring"
        )
    mean = features.sum(axis=0) / max(len(features), 1)
    centred = features - mean
    return merge_moments(moments, Moments(len(features), mean, centred.T @ centred))


def merge_moments(a: Moments, b: Moments) -> Moments:
    """The moments of both sets together. Raises ValueError if the dimensions differ."""
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"features of {a.mean.size} and {b.mean.size} dimensions cannot be merged; "
            "use the same feature function everywhere"
        )
    count = a.count + b.count
    if not count:
        return a
    difference = b.mean - a.mean
    between = np.outer(difference, difference) * (a.count * b.count / count)
    return Moments(count, a.mean + difference * (b.count / count), a.scatter + b.scatter + between)


def final_statistics(moments: Moments) -> Statistics:
    """Mean and covariance (divided by N - 1) of all points, as `frechet.statistics`.

    Raises ValueError if there are fewer than 2 points.
    """
    if moments.count < 2:
        raise ValueError(f"features has {moments.count} rows; at least 2 are needed")
    return Statistics(moments.mean, moments.scatter / (moments.count - 1), moments.count)
