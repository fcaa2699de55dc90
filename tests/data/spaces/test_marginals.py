"""Pictures of points of many coordinates show each coordinate over the truth."""

import numpy as np
import pytest

from fewstep.data.density_points import density_space
from fewstep.data.spaces.grid import INK, PAPER
from fewstep.data.spaces.marginals import BINS, coordinates, edges, marginal_panels
from fewstep.data.spaces.points import point_space
from fewstep.data.spaces.scatter import DPI, PANEL

SIDE = round(PANEL * DPI)
RNG = np.random.default_rng(0)
POINTS = RNG.standard_normal((2000, 4))


def drawn(picture, panel):
    """The number of pixels of a panel that are not paper."""
    pixels = np.asarray(picture).astype(int)[:, panel * SIDE : (panel + 1) * SIDE]
    return (np.abs(pixels - PAPER).max(axis=-1) > 20).sum()


def test_the_first_and_the_last_coordinates_are_shown():
    assert coordinates(4) == [0, 1, 2, 3] and coordinates(100) == [0, 1, 2, 98, 99]
    assert marginal_panels({"a": POINTS, "b": POINTS}).width == 4 * SIDE


def test_the_truth_is_filled_behind_every_line():
    alone = marginal_panels({"a": POINTS})
    behind = marginal_panels({"a": POINTS}, lambda: POINTS[:1000])
    assert all(drawn(behind, panel) > 1.5 * drawn(alone, panel) for panel in range(4))


def test_a_coordinate_that_is_wrong_looks_wrong():
    narrow = POINTS * [1.0, 0.2, 1.0, 1.0]
    right, wrong = (
        np.asarray(marginal_panels({"a": points}, lambda: POINTS)).astype(int)
        for points in (POINTS, narrow)
    )
    change = [np.abs(right - wrong)[:, i * SIDE : (i + 1) * SIDE].sum() for i in range(4)]
    assert change[1] > 2 * max(change[0], change[2], change[3])


def test_far_points_hide_no_shape():
    values = np.append(RNG.standard_normal(2000), [1e6])
    found = edges(values)
    assert len(found) == BINS + 1 and -5 < found[0] < -2.5 and 2.5 < found[-1] < 5
    assert np.isfinite(edges(np.zeros(5))).all()


@pytest.mark.parametrize(("name", "truth"), [("mw54", True), ("phi4-4-0.3-0.022", False)])
def test_a_density_of_many_dimensions_has_marginals(name, truth):
    space = density_space(name)
    points = RNG.standard_normal((50, *space.shape)).astype(np.float32)
    assert space.show(points, 10).width == 5 * SIDE
    compare = space.compare
    assert (compare.keywords["truth"] is not None) == truth
    if truth:
        assert compare.keywords["truth"]().shape == (4000, 5)
    assert compare({"a": points, "b": points}).height > 1.5 * compare({"a": points}).height


def test_points_of_the_plane_are_scattered_as_before():
    assert "log_density" in point_space(2).show.keywords
    assert np.asarray(INK).min() > np.asarray(PAPER).max()
