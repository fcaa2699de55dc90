"""Mean and confidence interval of the results of several seeds.

The percentile bootstrap of Efron & Tibshirani 1993, section 13.3: draw k of the k results with
replacement, many times, and take quantiles of the means of the draws.

Traps of the protocol:
- Few seeds make the interval too narrow. Share of 95 % intervals that hold the true mean, from
  2,000 draws of a normal distribution:

      seeds    2     3     4     5    10    20
      share  0.50  0.75  0.81  0.84  0.91  0.94

- Two seeds have only a range: the ends of their interval are the two results (`spread_name`).
- One seed has no spread: its interval is nan, because the spread is unknown, not zero.
- Papers that publish the best of several runs report the minimum. It falls with the number of
  seeds, so compare it only between equal numbers. For metrics that are better when larger, it is
  the worst run.
- The seeds of training, of sampling and of the choice of real images are three sources of spread.
  An interval covers only those that changed between the results.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 9_999
RANGE, INTERVAL = "range", "95 % interval"


class Interval(NamedTuple):
    """Mean of the results, ends of its confidence interval, and smallest result."""

    mean: float
    low: float
    high: float
    minimum: float


def interval(
    values: Sequence[float] | np.ndarray, *, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Mean of results [k], one per seed, with its confidence interval. Deterministic.

    low and high are nan if k = 1.
    Raises ValueError unless k >= 1, all values are finite and 0 < confidence < 1.
    """
    from scipy import stats

    values = np.asarray(values, np.float64)
    check_values(values)
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence = {confidence:g}; it must be in (0, 1)")
    low = high = math.nan
    if len(values) > 1:
        low, high = stats.bootstrap(
            (values,),
            np.mean,
            method="percentile",
            confidence_level=confidence,
            n_resamples=RESAMPLES,
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return Interval(float(values.mean()), float(low), float(high), float(values.min()))


def spread_name(count: int) -> str:
    """What `low` and `high` of `count` results are: "range", "95 % interval", or "" for one."""
    return INTERVAL if count > 2 else RANGE if count == 2 else ""


def check_values(values: np.ndarray) -> None:
    """Raises ValueError unless `values` are finite [k] with k >= 1."""
    if values.ndim != 1 or not len(values):
        raise ValueError(f"values have shape {list(values.shape)}; give one number for each seed")
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        raise ValueError(
            f"{bad} of {len(values)} values are not finite; check the runs that they come from"
        )
