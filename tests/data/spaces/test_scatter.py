import numpy as np
import pytest

from fewstep.data.spaces.grid import INK
from fewstep.data.spaces.scatter import COLUMNS, DPI, PANEL, scatters, window

SIDE = round(PANEL * DPI)


def ink(picture, panel):
    """The bright pixels of a panel, without its frame, ticks and title."""
    pixels = np.asarray(picture)[:SIDE, panel * SIDE : (panel + 1) * SIDE]
    return (pixels[60:-60, 60:-60].min(axis=-1) > INK[0] - 30).sum()


def test_the_window_holds_every_point_and_more():
    points = np.array([[0.0, 5.0], [10.0, 5.0]])
    np.testing.assert_allclose(window(points), [[-0.5, 10.5], [4.95, 5.05]])


def test_panels_have_the_same_axes():
    wide = np.random.default_rng(0).uniform(-1, 1, (4000, 2))
    far = wide + 4
    alone, beside = scatters({"a": wide}), scatters({"a": wide, "b": far})
    assert beside.size == (2 * SIDE, SIDE) and alone.size == (SIDE, SIDE)
    # Beside points far away it takes less of its panel, and these are not in its middle.
    assert ink(beside, 0) < 0.5 * ink(alone, 0)


def test_more_titles_than_columns_go_on_below():
    rows = {str(i): np.zeros((1, 2)) for i in range(COLUMNS + 1)}
    assert scatters(rows).size == (COLUMNS * SIDE, 2 * SIDE)


@pytest.mark.parametrize("rows", [{}, {"a": np.empty((0, 2))}])
def test_nothing_to_show_is_named(rows):
    with pytest.raises(ValueError, match="at least one title, and points for each"):
        scatters(rows)
