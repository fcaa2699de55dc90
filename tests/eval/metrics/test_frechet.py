import numpy as np
import pytest
from scipy.linalg import sqrtm

from fewstep.eval.metrics.frechet import Statistics, frechet_distance, statistics


def gaussian(mean, covariance):
    return Statistics(np.asarray(mean, float), np.asarray(covariance, float), 100)


def random_rotation(rng, dimension):
    return np.linalg.qr(rng.normal(size=(dimension, dimension)))[0]


def test_statistics_are_the_unbiased_moments_of_float32_features_with_an_offset():
    features = (np.random.default_rng(0).normal(size=(50, 4)) + 1000).astype(np.float32)
    mean, covariance, count = statistics(features)
    np.testing.assert_allclose(mean, features.astype(np.float64).mean(0), rtol=1e-14)
    np.testing.assert_allclose(covariance, np.cov(features.astype(np.float64).T), rtol=1e-10)
    assert count == 50


def test_full_rank_equals_the_formula_with_the_root_of_the_product():
    rng = np.random.default_rng(1)
    a = statistics(rng.normal(size=(200, 12)) @ rng.normal(size=(12, 12)))
    b = statistics(rng.normal(size=(300, 12)) @ rng.normal(size=(12, 12)) + 0.5)
    root = sqrtm(a.covariance @ b.covariance).real
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_one_dimension_by_hand():
    # (1 - 4)^2 + (3 - 5)^2, with deviations 3 and 5.
    assert frechet_distance(gaussian([1], [[9]]), gaussian([4], [[25]])) == pytest.approx(13)


def test_commuting_singular_covariances():
    # In a common basis the distance is the sum of (sqrt a - sqrt b)^2.
    basis = random_rotation(np.random.default_rng(2), 5)
    a, b = np.array([4.0, 1.0, 0.0, 0.0, 9.0]), np.array([1.0, 0.0, 4.0, 0.0, 16.0])
    distance = frechet_distance(
        gaussian(np.zeros(5), basis * a @ basis.T), gaussian(np.zeros(5), basis * b @ basis.T)
    )
    assert distance == pytest.approx(1 + 1 + 4 + 0 + 1, abs=1e-6)


def test_rank_one_covariances_that_do_not_commute():
    # A = u u^T, B = v v^T: tr (A B)^{1/2} = |u . v|.
    u, v = np.array([1.0, 2.0, 0.0, -1.0]), np.array([0.5, -3.0, 1.0, 0.0])
    distance = frechet_distance(
        gaussian(np.zeros(4), np.outer(u, u)), gaussian(np.zeros(4), np.outer(v, v))
    )
    assert distance == pytest.approx(u @ u + v @ v - 2 * abs(u @ v), abs=1e-6)


@pytest.mark.parametrize("count", [8, 100])
def test_shift_and_scale_of_one_set_with_fewer_and_more_samples_than_dimensions(count):
    features = np.random.default_rng(3).normal(size=(count, 20))
    a = statistics(features)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    shifted = frechet_distance(a, statistics(features + 0.3))
    assert shifted == pytest.approx(20 * 0.3**2, abs=1e-6)
    halved = frechet_distance(a, statistics(features / 2))
    mean_part = np.sum((a.mean / 2) ** 2)
    assert halved == pytest.approx(mean_part + np.trace(a.covariance) / 4, abs=1e-5)


def test_fewer_samples_of_one_distribution_measure_more():
    rng = np.random.default_rng(4)
    few, many = (
        frechet_distance(statistics(rng.normal(size=(n, 8))), statistics(rng.normal(size=(n, 8))))
        for n in (30, 3000)
    )
    assert few > 10 * many > 0


def test_errors_name_what_is_wrong():
    good = np.random.default_rng(5).normal(size=(10, 3))
    bad = good.copy()
    bad[2, 1], bad[5, 0] = np.nan, np.inf
    with pytest.raises(ValueError, match="2 of 30 values are not finite"):
        statistics(bad)
    with pytest.raises(ValueError, match="1 rows; at least 2"):
        statistics(good[:1])
    with pytest.raises(ValueError, match="3 and 2 dimensions"):
        frechet_distance(statistics(good), statistics(good[:, :2]))
    with pytest.raises(ValueError, match=r"\[N, D\]"):
        statistics(good[0])


def test_two_rows_are_enough():
    measured = statistics(np.array([[0.0, 1.0], [2.0, 5.0]]))
    np.testing.assert_allclose(measured.mean, [1.0, 3.0])
    np.testing.assert_allclose(measured.covariance, [[2.0, 4.0], [4.0, 8.0]])
