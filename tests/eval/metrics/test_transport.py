import math

import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.densities.density import Density
from fewstep.densities.table import find_density
from fewstep.eval.metrics.transport import mode_distance, mode_entropy, spread, transport
from fewstep.eval.points import (
    POINTS,
    collapse_warnings,
    floor_metrics,
    point_metrics,
    prior_metrics,
)
from fewstep.eval.reference import Reference

RNG = np.random.default_rng(0)


def test_a_shift_is_the_distance():
    x = RNG.standard_normal((200, 3))
    moved = x + np.array([3.0, 0.0, 4.0])
    found = transport(RNG.permutation(moved), x)
    assert found.wasserstein_1 == pytest.approx(5.0) and found.wasserstein_2 == pytest.approx(5.0)
    same = transport(RNG.permutation(x), x)
    assert same.wasserstein_1 == pytest.approx(0.0, abs=1e-12)


def test_both_distances_of_two_points():
    """One point stays, the other moves by 2: means of |x| and of x^2."""
    found = transport(np.array([[0.0], [0.0]]), np.array([[0.0], [2.0]]))
    assert found.wasserstein_1 == pytest.approx(1.0)
    assert found.wasserstein_2 == pytest.approx(math.sqrt(2.0))


def test_the_energy_distance_is_unbiased_and_that_of_gaussians():
    pairs = [RNG.standard_normal((2, 60, 1)) for _ in range(300)]
    values = np.array([transport(*pair).energy for pair in pairs])
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(300)
    moved = np.array([transport(x + 1.0, y).energy for x, y in pairs])
    # E|N(m, 2)| = sqrt(2) (sqrt(2 / pi) exp(-m^2 / 4) + m / sqrt(2) erf(m / 2))
    apart = lambda m: (
        math.sqrt(2)
        * (math.sqrt(2 / math.pi) * math.exp(-m * m / 4) + m / math.sqrt(2) * math.erf(m / 2))
    )
    assert moved.mean() == pytest.approx(2 * (apart(1.0) - apart(0.0)), rel=0.06)


def test_spread_shows_a_collapse_along_one_coordinate():
    x = RNG.standard_normal((4000, 5))
    squeezed = x * np.array([1.0, 1.0, 0.5, 1.0, 1.0]) + np.array([0.0, 0.3, 0.0, 0.0, 0.0])
    found = spread(squeezed, x)
    assert found.deviation == pytest.approx(0.5) and found.quartiles == pytest.approx(0.5)
    assert found.mean == pytest.approx(0.3, rel=0.05) and found.narrowest == found.quartiles


def test_spread_shows_an_explosion_and_a_shift_in_units_of_the_deviation():
    x = 2.0 * RNG.standard_normal((4000, 3))
    found = spread(x * np.array([3.0, 0.8, 1.0]) - np.array([0.0, 0.0, 1.0]), x)
    assert found.deviation == pytest.approx(3.0) and found.quartiles == pytest.approx(3.0)
    assert found.mean == pytest.approx(0.5, rel=0.05)


def test_modes():
    weights = np.array([0.5, 0.25, 0.25, 0.0])
    assert mode_entropy(np.repeat([0, 1, 2, 3], 25), weights) == pytest.approx(1.0)
    assert mode_entropy(np.zeros(9, int), weights) == 0.0
    assert mode_distance(np.repeat([0, 0, 1, 2], 25), weights) == pytest.approx(0.0)
    assert mode_distance(np.full(8, 3), weights) == pytest.approx(1.0)


def test_points_of_a_density_have_a_floor_and_a_prior():
    density = find_density("gmm9")
    draw = lambda seed, count=400: density.sample(np.random.default_rng(seed), count)
    floor = point_metrics(draw(1), draw(2), density)
    assert floor["mode_entropy"] > 0.98 and floor["mode_distance"] < 0.1
    reference = Reference(None, draw(3), None, None, 0.0)
    prior = prior_metrics(reference, density, 400)
    assert prior["wasserstein_1"] > 2 * floor["wasserstein_1"]
    assert prior["deviation_ratio"] == pytest.approx(1.0, abs=0.15)  # the scale is that of gmm9
    assert not collapse_warnings(floor, floor) and not collapse_warnings(prior, floor)


def test_the_floor_is_of_as_many_exact_points_as_there_are_samples():
    density = find_density("gmm9")
    real = density.sample(np.random.default_rng(3), 1000)
    reference = Reference(None, real, None, None, 0.0)
    expected = point_metrics(real[300:600], real[:300], density)
    assert floor_metrics(reference, density, 300) == expected
    assert floor_metrics(reference, density, 501) == {}


def test_all_metrics_read_as_many_points():
    density = find_density("gmm9")
    points = density.sample(np.random.default_rng(0), POINTS + 1000)
    more = np.concatenate([points[:POINTS], np.repeat(points[:1], 1000, axis=0)])
    found = (point_metrics(x, points[:100], density)["mode_distance"] for x in (points, more))
    assert next(found) == next(found)


def test_below_the_floor_is_a_collapse():
    """In 50 dimensions points at the mean are nearer to exact ones than exact ones are."""
    x, y = RNG.standard_normal((2, 300, 50))
    floor = point_metrics(x, y, None)
    collapsed = point_metrics(0.7 * x, y, None)
    (first, _) = collapse_warnings(collapsed, floor)
    assert "wasserstein_1" in first and "collapsed, which is no win" in first
    # A set as wide as the exact one may be as close by chance.
    assert collapsed["quartile_ratio"] < 0.9
    wide = {**collapsed, "quartile_ratio": 0.95, "narrowest_ratio": 0.95}
    assert not collapse_warnings(wide, floor)
    # One coordinate that is too wide does not hide that the others are too narrow.
    mixed = point_metrics(x * np.where(np.arange(50) == 0, 2.0, 0.7), y, None)
    assert mixed["quartile_ratio"] > 1.6 and collapse_warnings(mixed, floor)


def test_the_prior_is_not_made_of_the_draws_of_the_exact_points():
    standard = Density("normal", 10, lambda x: -0.5 * jnp.sum(x**2))
    real, other = (np.random.default_rng(seed).standard_normal((1000, 10)) for seed in (0, 7))
    found = prior_metrics(Reference(None, real, None, None, 0.0), standard, 1000)
    floor = point_metrics(other, real, standard)
    assert found["wasserstein_1"] == pytest.approx(floor["wasserstein_1"], rel=0.02)
