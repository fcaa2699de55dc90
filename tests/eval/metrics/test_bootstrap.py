import itertools

import numpy as np
import pytest
from scipy import stats

from fewstep.eval.metrics.bootstrap import interval


def coverage(seeds, confidence, trials=300):
    draws = np.random.default_rng(seeds).normal(loc=5.0, size=(trials, seeds))
    ends = np.array([interval(values, confidence=confidence)[1:3] for values in draws])
    return np.mean((ends[:, 0] <= 5) & (ends[:, 1] >= 5))


def test_mean_and_minimum_by_hand():
    measured = interval([3.0, 1.0, 8.0])
    assert (measured.mean, measured.minimum) == (4.0, 1.0)
    assert 1.0 <= measured.low < 4.0 < measured.high <= 8.0


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95])
def test_ends_are_the_quantiles_of_the_means_of_all_draws(confidence):
    values = np.array([0.0, 1.0, 4.0, 9.0, 20.0])
    means = [np.mean(draw) for draw in itertools.product(values, repeat=5)]
    expected = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    measured = interval(values, confidence=confidence)
    np.testing.assert_allclose([measured.low, measured.high], expected, atol=0.4)


@pytest.mark.parametrize(
    ("seeds", "confidence", "expected"), [(3, 0.95, 0.75), (20, 0.95, 0.94), (20, 0.6, 0.58)]
)
def test_share_of_the_intervals_that_hold_the_mean_of_a_normal_distribution(
    seeds, confidence, expected
):
    assert coverage(seeds, confidence) == pytest.approx(expected, abs=0.055)


def test_the_same_every_time_and_another_for_another_seed():
    values = np.random.default_rng(0).normal(size=12)
    assert interval(values) == interval(values)
    assert interval(values) != interval(values, seed=1)
    assert interval(values, seed=1) == pytest.approx(interval(values), abs=0.05)


def test_one_seed_has_no_interval():
    mean, low, high, minimum = interval([2.5])
    assert (mean, minimum) == (2.5, 2.5)
    assert np.isnan([low, high]).all()


def test_equal_results_have_an_interval_of_one_point():
    assert interval([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0, 2.0)


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="2 of 3 values are not finite"):
        interval([1.0, np.nan, np.inf])
    with pytest.raises(ValueError, match=r"shape \[0\]"):
        interval([])
    with pytest.raises(ValueError, match=r"shape \[1, 2\]"):
        interval([[1.0, 2.0]])
    with pytest.raises(ValueError, match="confidence = 1;"):
        interval([1.0, 2.0], confidence=1.0)


def test_confidence_lies_between_its_ends():
    for confidence in (0.0, 1.0, -0.1, 1.1):
        with pytest.raises(ValueError, match="must be in"):
            interval([1.0, 2.0], confidence=confidence)
    for confidence in (1e-6, 1.0 - 1e-6):
        assert 1.0 <= interval([1.0, 2.0], confidence=confidence).low <= 2.0


def test_default_is_an_interval_of_95_percent_by_9999_draws(monkeypatch):
    values, asked = [1.0, 2.0, 5.0, 9.0], {}
    assert interval(values) == interval(values, confidence=0.95, seed=0)
    draw = stats.bootstrap
    monkeypatch.setattr(
        stats,
        "bootstrap",
        lambda *a, **fields: asked.update(fields) or draw(*a, **fields),
    )
    interval(values)
    assert asked["n_resamples"] == 9_999 and asked["method"] == "percentile"
