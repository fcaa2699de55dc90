import numpy as np
import pytest

from fewstep.data.spaces.points import point_space
from fewstep.eval.features.networks import NETWORKS


def draw(count=50, dimension=2, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)


def test_samples_stay_floats():
    space, samples = point_space(3), 1e3 * draw(dimension=3)
    for stage in (space.start, space.finish):
        np.testing.assert_array_equal(stage(samples), samples)
    finished = space.finish(samples)
    assert (finished.dtype, finished.shape[1:]) == (space.example.dtype, space.example.shape)
    assert space.shape == (3,) and space.image is None and space.rounding == "none"


def test_nan_and_no_dimension_are_refused():
    with pytest.raises(ValueError, match="points hold NaN"):
        point_space(2).finish(np.array([[0.0, np.nan]]))
    with pytest.raises(ValueError, match="dimension = 0; it must be"):
        point_space(0)


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_points_are_shown_in_any_dimension(dimension):
    space = point_space(dimension)
    pictures = [space.show(draw(dimension=dimension, seed=seed), 10) for seed in (0, 1)]
    assert pictures[0].mode == "RGB" and pictures[0].size == pictures[1].size
    assert pictures[0] != pictures[1]


def test_features_are_networks_that_see_points():
    assert set(point_space(2).features) < set(NETWORKS)
