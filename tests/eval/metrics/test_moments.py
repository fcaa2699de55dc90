from functools import reduce

import numpy as np
import pytest

from fewstep.eval.metrics.frechet import statistics
from fewstep.eval.metrics.moments import (
    empty_moments,
    final_statistics,
    merge_moments,
    update_moments,
)


def assert_same(measured, expected, tolerance=1e-10):
    np.testing.assert_allclose(measured.mean, expected.mean, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(
        measured.covariance, expected.covariance, rtol=tolerance, atol=tolerance
    )
    assert measured.count == expected.count


def stream_statistics(features, cuts):
    return reduce(update_moments, np.split(features, cuts), empty_moments(features.shape[1]))


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    return rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6)) + np.arange(6)


@pytest.mark.parametrize(
    "cuts", [[], [1], [199], [7, 7, 100], range(1, 200), range(0, 200, 32)], ids=str
)
def test_equals_the_statistics_of_all_whatever_the_batches(features, cuts):
    assert_same(final_statistics(stream_statistics(features, cuts)), statistics(features))


def test_order_of_the_points_does_not_matter(features):
    shuffled = np.random.default_rng(1).permutation(features)
    assert_same(final_statistics(stream_statistics(shuffled, [50, 90])), statistics(features))
    # Batches of different distributions, the hardest case for the term between them.
    ordered = features[np.argsort(features[:, 0])]
    assert_same(final_statistics(stream_statistics(ordered, [20, 150])), statistics(features))


@pytest.mark.parametrize("seed", range(5))
def test_merge_tree_does_not_matter(features, seed):
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.integers(0, 200, 11))
    parts = [update_moments(empty_moments(6), batch) for batch in np.split(features, cuts)]
    while len(parts) > 1:
        a, b = (parts.pop(rng.integers(len(parts))) for _ in range(2))
        parts.append(merge_moments(a, b))
    assert_same(final_statistics(parts[0]), statistics(features))


@pytest.mark.parametrize("batch", [10, 333, 5000])
def test_a_large_mean_costs_no_digits_of_the_covariance(batch):
    centred = np.random.default_rng(2).normal(size=(5000, 4))
    # Multiples of 2^-20, so that adding the mean rounds nothing off and the covariance is the same.
    centred = np.round(centred * 2**20) / 2**20
    measured = final_statistics(stream_statistics(centred + 1e6, range(batch, 5000, batch)))
    np.testing.assert_allclose(measured.covariance, statistics(centred).covariance, atol=1e-9)
    np.testing.assert_allclose(measured.mean - 1e6, centred.mean(axis=0), atol=1e-8)


def test_float32_batches_are_summed_in_float64():
    features = (np.random.default_rng(3).normal(size=(300, 3)) + 1000).astype(np.float32)
    measured = final_statistics(stream_statistics(features, range(10, 300, 10)))
    assert measured.mean.dtype == measured.covariance.dtype == np.float64
    assert_same(measured, statistics(features))


def test_nothing_added_changes_nothing(features):
    moments = update_moments(empty_moments(6), features)
    assert_same(final_statistics(update_moments(moments, features[:0])), statistics(features))
    assert_same(final_statistics(merge_moments(moments, empty_moments(6))), statistics(features))
    assert_same(final_statistics(merge_moments(empty_moments(6), moments)), statistics(features))
    assert merge_moments(empty_moments(6), empty_moments(6)).count == 0


def test_arguments_stay_as_they_were(features):
    moments = update_moments(empty_moments(6), features)
    mean, scatter = moments.mean.copy(), moments.scatter.copy()
    merge_moments(update_moments(moments, features + 1), moments)
    np.testing.assert_array_equal(moments.mean, mean)
    np.testing.assert_array_equal(moments.scatter, scatter)


def test_errors_name_what_is_wrong(features):
    broken = features.copy()
    broken[3, 1] = broken[3, 2] = np.nan
    broken[9, 0] = np.inf
    moments = empty_moments(6)
    with pytest.raises(ValueError, match="2 of 200 rows of features are not finite"):
        update_moments(moments, broken)
    with pytest.raises(ValueError, match="6 and 5 dimensions"):
        update_moments(moments, features[:, :5])
    with pytest.raises(ValueError, match="6 and 5 dimensions"):
        merge_moments(moments, empty_moments(5))
    with pytest.raises(ValueError, match=r"\[N, D\]"):
        update_moments(moments, features[0])
    with pytest.raises(ValueError, match="1 rows; at least 2"):
        final_statistics(update_moments(moments, features[:1]))


def test_two_rows_are_enough(features):
    assert_same(
        final_statistics(update_moments(empty_moments(6), features[:2])), statistics(features[:2])
    )
