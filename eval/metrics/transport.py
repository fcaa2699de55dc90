"""Distances between two sets of points as they are, without features.

    W_p = (min over assignments of the mean |x - y|^p)^(1/p)        exact, by linear programming
    E   = 2 E|X - Y| - E|X - X'| - E|Y - Y'|                          energy distance, unbiased

Both sets have the same number of points. W_p of two exact sets is not 0, and in many dimensions it
is nearly that of any two sets: compare it with this floor. A distance below the floor means that
the points lie closer together than they should, as those of a collapsed sampler do. The unbiased E
has mean 0 for two exact sets and may be negative.

Spreads are compared for each coordinate. The ratio that is farthest from 1 counts, and beside it
the smallest one, so a collapse along any coordinate shows.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

# Points of each set; the cost of an assignment is of third order in it.
POINTS = 2_000
# Fewer points say nothing about a spread.
FEWEST = 20
# Metrics that show a collapse when they are below those of two exact sets.
FLOORED = ("wasserstein_1", "wasserstein_2")
# Share of the floor by which a collapsed set is closer, and its largest ratio of quartiles. Exact
# sets of several modes may be as close by chance, but they are as wide.
MARGIN, NARROW = 0.05, 0.9


def collapsed(metrics: Mapping[str, float], floor: Mapping[str, float]) -> list[str]:
    """Names of the distances of a narrow set that are below those of two exact sets, `floor`."""
    # Results of earlier versions have the ratio that is farthest from 1 alone.
    if metrics.get("narrowest_ratio", metrics.get("quartile_ratio", 0.0)) > NARROW:
        return []
    both = [name for name in FLOORED if name in metrics and name in floor]
    return [name for name in both if metrics[name] < (1.0 - MARGIN) * floor[name]]


class Transport(NamedTuple):
    """Wasserstein distances and energy distance."""

    wasserstein_1: float
    wasserstein_2: float
    energy: float


class Spread(NamedTuple):
    """Ratios to the true spread, of the coordinate where it is farthest from 1.

    deviation: of standard deviations. quartiles: of interquartile ranges, for heavy tails.
    narrowest: the smallest of these. mean: the largest error of a mean, in true deviations.
    """

    deviation: float
    quartiles: float
    narrowest: float
    mean: float


def transport(points: np.ndarray, real: np.ndarray) -> Transport:
    """Exact distances between as many points of both sets: [N, D], [M, D]."""
    x, y = same_number(points, real)
    between = cdist(x, y)
    first = between[linear_sum_assignment(between)].mean()
    square = between**2
    second = square[linear_sum_assignment(square)].mean() ** 0.5
    count = len(x)
    within = sum(cdist(each, each).sum() for each in (x, y)) / (count * (count - 1))
    return Transport(float(first), float(second), float(2.0 * between.mean() - within))


def spread(points: np.ndarray, real: np.ndarray) -> Spread:
    """Ratios of the spread of points [N, D] to that of real ones [M, D]."""
    x, y = (np.asarray(each, np.float64) for each in (points, real))
    ranges = [np.subtract(*np.quantile(each, [0.75, 0.25], axis=0)) for each in (x, y)]
    quartiles = ranges[0] / ranges[1]
    deviation = y.std(axis=0)
    return Spread(
        farthest_from_one(x.std(axis=0) / deviation),
        farthest_from_one(quartiles),
        float(quartiles.min()),
        float(np.abs((x.mean(axis=0) - y.mean(axis=0)) / deviation).max()),
    )


def farthest_from_one(ratios: np.ndarray) -> float:
    """The ratio whose logarithm is largest in size."""
    return float(ratios[np.argmax(np.abs(np.log(np.maximum(ratios, 1e-12))))])


def mode_entropy(modes: np.ndarray, weights: np.ndarray) -> float:
    """Entropy of the shares of the modes over log K: 1 if all K modes have the same share.

    modes: [N], indices of modes. weights: [K], the true shares.
    """
    share = mode_shares(modes, len(weights))
    found = share[share > 0.0]
    return float(-(found * np.log(found)).sum() / np.log(len(weights)))


def mode_distance(modes: np.ndarray, weights: np.ndarray) -> float:
    """Total variation between the shares of the modes and their true weights, in [0, 1]."""
    return float(0.5 * np.abs(mode_shares(modes, len(weights)) - weights).sum())


def mode_shares(modes: np.ndarray, count: int) -> np.ndarray:
    """The share of each of `count` modes: [count]."""
    return np.bincount(modes, minlength=count) / len(modes)


def same_number(points: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As many points of both sets, at most POINTS."""
    count = min(len(points), len(real), POINTS)
    return np.asarray(points[:count], np.float64), np.asarray(real[:count], np.float64)
