import numpy as np
import pytest

from fewstep.data.spaces.grid import INK, PAPER
from fewstep.data.spaces.scatter import COLUMNS, DPI, PANEL, axis_ranges, scatter_panels

SIDE = round(PANEL * DPI)


UPPER_RIGHT = (slice(40, SIDE // 2), slice(SIDE // 2, -30))
LOWER_LEFT = (slice(SIDE // 2, -40), slice(50, SIDE // 2))


def bright(picture, panel, quarter):
    """The number of bright pixels in a quarter of a panel, without its frame."""
    pixels = np.asarray(picture)[:, panel * SIDE : (panel + 1) * SIDE][quarter]
    return (pixels.min(axis=-1) > np.mean([INK, PAPER])).sum()


def test_axis_ranges_hold_every_point_and_a_margin():
    points = np.array([[0.0, 5.0], [10.0, 5.0]])
    np.testing.assert_allclose(axis_ranges(points), [[-0.5, 10.5], [4.95, 5.05]])


def test_panels_have_the_same_axes():
    wide = np.random.default_rng(0).uniform(-1, 1, (4000, 2))
    far = wide + 4
    alone, beside = scatter_panels({"a": wide}), scatter_panels({"a": wide, "b": far})
    assert beside.size == (2 * SIDE, SIDE) and alone.size == (SIDE, SIDE)
    assert bright(alone, 0, UPPER_RIGHT) > 100 < bright(alone, 0, LOWER_LEFT)
    # Compared with points above and to the right, it fills only the lower left corner.
    assert bright(beside, 0, UPPER_RIGHT) == 0 < bright(beside, 0, LOWER_LEFT)
    assert bright(beside, 1, UPPER_RIGHT) > 0 == bright(beside, 1, LOWER_LEFT)


def test_more_titles_than_columns_begin_another_row():
    rows = {str(i): np.zeros((1, 2)) for i in range(COLUMNS + 1)}
    assert scatter_panels(rows).size == (COLUMNS * SIDE, 2 * SIDE)


@pytest.mark.parametrize("rows", [{}, {"a": np.empty((0, 2))}])
def test_nothing_to_show_is_named(rows):
    with pytest.raises(ValueError, match="at least one title, and points for each"):
        scatter_panels(rows)
