import numpy as np
import pytest
import sklearn

from fewstep.eval.metrics.neighbours import manifold_metrics, neighbour_distances


def brute_force(real, generated, k, density_k):
    """The definitions, one point at a time."""

    def balls(centres, k):
        for i, centre in enumerate(centres):
            others = np.delete(centres, i, axis=0)
            yield centre, np.sort(np.linalg.norm(others - centre, axis=1))[k - 1]

    def held(points, centres, k):
        """[points, centres]: whether the ball of the centre holds the point."""
        return np.array(
            [[np.linalg.norm(p - c) <= r for c, r in balls(centres, k)] for p in points]
        )

    in_real_balls = held(generated, real, density_k)
    return (
        held(generated, real, k).any(axis=1).mean(),
        held(real, generated, k).any(axis=1).mean(),
        in_real_balls.sum() / (density_k * len(generated)),
        in_real_balls.any(axis=0).mean(),
    )


def expected_coverage(real, generated, k):
    """1 - (N-1) ... (N-k) / ((M+N-1) ... (M+N-k)) for two sets of one continuous distribution."""
    j = np.arange(1, k + 1)
    return 1 - np.prod((real - j) / (real + generated - j))


@pytest.mark.parametrize("dimension", [2, 30])
@pytest.mark.parametrize(("k", "density_k"), [(1, 1), (3, 5), (5, 3)])
def test_equals_brute_force(dimension, k, density_k):
    rng = np.random.default_rng(dimension + k)
    real = rng.normal(size=(50, dimension))
    generated = 0.8 * rng.normal(size=(40, dimension)) + 0.3
    measured = manifold_metrics(real, generated, k=k, density_k=density_k)
    assert measured == pytest.approx(brute_force(real, generated, k, density_k))
    assert len({*measured}) == 4
    assert min(measured) > 0


def test_the_defaults_are_those_of_the_papers():
    rng = np.random.default_rng(0)
    real, generated = rng.normal(size=(2, 40, 3))
    assert manifold_metrics(real, generated) == pytest.approx(brute_force(real, generated, 3, 5))


def test_distances_in_many_blocks_change_nothing():
    rng = np.random.default_rng(1)
    real, generated = rng.normal(size=(150, 3)), 0.9 * rng.normal(size=(131, 3))
    whole = manifold_metrics(real, generated)
    # Ten rows of 150 distances.
    with sklearn.config_context(working_memory=10 * 150 * 8 / 2**20):
        assert manifold_metrics(real, generated) == whole


@pytest.mark.parametrize(("real", "generated"), [(30, 30), (20, 50)])
def test_density_and_coverage_of_equal_distributions(real, generated):
    rng = np.random.default_rng(2)
    measured = np.array(
        [
            manifold_metrics(rng.normal(size=(real, 2)), rng.normal(size=(generated, 2)))
            for _ in range(600)
        ]
    )
    mean, error = measured.mean(axis=0), measured.std(axis=0) / np.sqrt(len(measured))
    expected = expected_coverage(real, generated, k=5)
    assert abs(mean[2] - 1) < 4 * error[2] < 0.05
    assert abs(mean[3] - expected) < 4 * error[3] < 0.01


def test_expected_coverage_of_many_points():
    assert expected_coverage(100_000, 100_000, k=5) == pytest.approx(1 - 2**-5, abs=1e-4)


def test_radius_is_the_distance_to_the_kth_other_point():
    line = np.array([[0.0], [1.0], [3.0], [7.0], [7.0]])
    distances = neighbour_distances(line, 3)
    np.testing.assert_allclose(distances[:, 0], [1, 1, 2, 0, 0])
    np.testing.assert_allclose(distances[:, 2], [7, 6, 4, 6, 6])


def test_a_ball_holds_its_border():
    real = np.array([[0.0], [1.0], [3.0], [7.0]])
    generated = np.array([[-1.0], [-1.25], [11.0], [11.25]])
    precision, _, density, coverage = manifold_metrics(real, generated, k=1, density_k=1)
    assert (precision, density, coverage) == (0.5, 0.5, 0.5)


@pytest.fixture
def clusters():
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(2, 40, 6)) * 0.1
    return left - 5, right + 5


def test_a_dropped_cluster_halves_recall_and_coverage(clusters):
    left, right = clusters
    measured = manifold_metrics(np.concatenate([left, right]), left)
    # Each copy lies in its own ball and in those that it is one of the 5 nearest points of, on
    # the border of one of five.
    assert measured == pytest.approx((1.0, 0.5, 6 / 5, 0.5))


def test_an_invented_cluster_halves_precision_and_density(clusters):
    left, right = clusters
    measured = manifold_metrics(left, np.concatenate([left, right]))
    assert measured == pytest.approx((0.5, 1.0, 3 / 5, 1.0))


def test_disjoint_sets_have_nothing(clusters):
    assert manifold_metrics(*clusters) == (0.0, 0.0, 0.0, 0.0)


def test_a_collapse_to_one_point_keeps_precision_and_loses_recall(clusters):
    left, _ = clusters
    precision, recall, density, _ = manifold_metrics(left, np.tile(left.mean(axis=0), (40, 1)))
    assert (precision, recall) == (1.0, 0.0)
    assert density > 1


def test_an_outlier_weighs_less_in_density_than_in_precision(clusters):
    left, right = clusters
    real = np.concatenate([left, right[:1]])
    between = np.zeros((40, 6))
    measured = manifold_metrics(real, between)
    assert measured == pytest.approx((1.0, 0.0, 1 / 5, 1 / 41))


@pytest.mark.parametrize("dimension", [2, 200])
def test_copies_lie_on_borders_whatever_the_rounding(dimension):
    real = 0.01 * np.random.default_rng(4).normal(size=(60, dimension)) + 10
    assert manifold_metrics(real, real[::-1]) == pytest.approx((1.0, 1.0, 6 / 5, 1.0))
    # Seven copies of one image: a ball of radius 0.
    blank = np.full((7, dimension), np.pi)
    assert manifold_metrics(blank, blank) == pytest.approx((1.0, 1.0, 7 / 5, 1.0))
    assert manifold_metrics(blank, blank + 1e-3) == (0.0, 0.0, 0.0, 0.0)


def test_errors_name_what_is_wrong():
    points = np.random.default_rng(1).normal(size=(10, 3))
    broken = points.copy()
    broken[0, 0] = np.nan
    with pytest.raises(ValueError, match="generated features: 1 of 30"):
        manifold_metrics(points, broken)
    with pytest.raises(ValueError, match="real features has 5 rows; at least 6"):
        manifold_metrics(points[:5], points)
    with pytest.raises(ValueError, match="generated features has 3 rows; at least 4"):
        manifold_metrics(points, points[:3])
    with pytest.raises(ValueError, match="real features have 3 dimensions, generated ones 2"):
        manifold_metrics(points, points[:, :2])
    with pytest.raises(ValueError, match="k = 0"):
        manifold_metrics(points, points, k=0)
    with pytest.raises(ValueError, match="density_k = 0"):
        manifold_metrics(points, points, density_k=0)


def test_one_neighbour_and_one_point_more_are_enough():
    points = np.random.default_rng(2).normal(size=(6, 3))
    manifold_metrics(points[:2], points[:2], k=1, density_k=1)
    manifold_metrics(points, points[:4])  # 3 neighbours of generated points, 5 of real ones
    assert manifold_metrics(points, points[:5]) == manifold_metrics(
        points, points[:5], k=3, density_k=5
    )
    with pytest.raises(ValueError, match="generated features has 1 rows; at least 2"):
        manifold_metrics(points, points[:1], k=1)


def test_balls_hold_their_border_even_without_rounding():
    # All points are one: every radius and every distance is 0.
    nothing = np.zeros((7, 2))
    assert manifold_metrics(nothing, nothing) == (1.0, 1.0, pytest.approx(7 / 5), 1.0)
