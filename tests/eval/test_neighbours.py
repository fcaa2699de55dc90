import numpy as np
import pytest

from eval.neighbours import precision_recall, radii


def brute_force(real, generated, k):
    """The definition, one point at a time."""

    def share_inside(points, centres):
        balls = []
        for i, centre in enumerate(centres):
            others = np.delete(centres, i, axis=0)
            balls.append(np.sort(np.linalg.norm(others - centre, axis=1))[k - 1])
        return np.mean([np.any(np.linalg.norm(centres - p, axis=1) <= balls) for p in points])

    return share_inside(generated, real), share_inside(real, generated)


@pytest.mark.parametrize("dimension", [2, 30])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_equals_brute_force(dimension, k):
    rng = np.random.default_rng(dimension + k)
    real = rng.normal(size=(80, dimension))
    generated = 0.8 * rng.normal(size=(60, dimension)) + 0.3
    measured = precision_recall(real, generated, k)
    assert measured == pytest.approx(brute_force(real, generated, k))
    assert 0 < measured.precision != measured.recall > 0


def test_radius_is_the_distance_to_the_kth_other_point():
    line = np.array([[0.0], [1.0], [3.0], [7.0], [7.0]])
    np.testing.assert_allclose(radii(line, 1), [1, 1, 2, 0, 0])
    np.testing.assert_allclose(radii(line, 3), [7, 6, 4, 6, 6])


def test_a_ball_holds_its_border():
    real = np.array([[0.0], [1.0], [3.0], [7.0]])
    generated = np.array([[-1.0], [-1.25], [11.0], [11.25]])
    assert precision_recall(real, generated, k=1).precision == 0.5


@pytest.fixture
def clusters():
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(2, 40, 6)) * 0.1
    return left - 5, right + 5


def test_a_dropped_cluster_halves_recall(clusters):
    left, right = clusters
    assert precision_recall(np.concatenate([left, right]), left) == (1.0, 0.5)


def test_an_invented_cluster_halves_precision(clusters):
    left, right = clusters
    assert precision_recall(left, np.concatenate([left, right])) == (0.5, 1.0)


def test_disjoint_sets_have_neither(clusters):
    assert precision_recall(*clusters) == (0.0, 0.0)


def test_a_collapse_to_one_point_keeps_precision_and_loses_recall(clusters):
    left, _ = clusters
    measured = precision_recall(left, np.tile(left.mean(axis=0), (40, 1)))
    assert measured == (1.0, 0.0)


def test_errors_name_what_is_wrong():
    points = np.random.default_rng(1).normal(size=(10, 3))
    broken = points.copy()
    broken[0, 0] = np.nan
    with pytest.raises(ValueError, match="generated features: 1 of 30"):
        precision_recall(points, broken)
    with pytest.raises(ValueError, match="real features has 3 rows; at least 4"):
        precision_recall(points[:3], points)
    with pytest.raises(ValueError, match="real features have 3 dimensions, generated ones 2"):
        precision_recall(points, points[:, :2])
    with pytest.raises(ValueError, match="k = 0"):
        precision_recall(points, points, k=0)
