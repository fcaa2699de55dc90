import numpy as np
import pytest

from fewstep.data.spaces.grid import (
    CAPTION_HEIGHT,
    GAP,
    MARGIN,
    PAPER,
    TITLE_HEIGHT,
    comparison,
    cut_text,
    enlarged_grid,
    grid_picture,
    image_grid,
)


def solid(*values, size=(2, 3), channels=1):
    return np.stack([np.full((*size, channels), value, np.uint8) for value in values])


def test_grid_by_hand():
    grid = image_grid(solid(1, 2, 3), columns=2)
    expected = np.array(
        [
            [1, 1, 1, 128, 2, 2, 2],
            [1, 1, 1, 128, 2, 2, 2],
            [128, 128, 128, 128, 128, 128, 128],
            [3, 3, 3, 128, 128, 128, 128],
            [3, 3, 3, 128, 128, 128, 128],
        ]
    )
    np.testing.assert_array_equal(grid[..., 0], expected)


def test_each_image_keeps_its_orientation_and_colours():
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
    grid = image_grid(images, columns=3)
    assert grid.shape == (2 * 5 - 1, 3 * 6 - 1, 3)
    np.testing.assert_array_equal(grid[5:9, 6:11], images[4])


def test_more_columns_than_images_leave_no_empty_place():
    assert image_grid(solid(1, 2), columns=9).shape == (2, 7, 1)


def test_an_enlarged_grid_has_blocks_for_pixels():
    images = np.random.default_rng(1).integers(0, 256, (2, 2, 2, 1), dtype=np.uint8)
    saved = np.asarray(enlarged_grid(images, columns=2, scale=3))
    assert saved.shape == (6, 15)
    np.testing.assert_array_equal(saved[:, 9:], np.kron(images[1, ..., 0], np.ones((3, 3))))


@pytest.mark.parametrize(("side", "saved"), [(8, 32), (28, 56), (32, 32), (64, 64), (12, 36)])
def test_default_scale_makes_images_visible(side, saved):
    assert enlarged_grid(solid(9, size=(side, side)), columns=1).size == (saved, saved)


def test_comparison_holds_each_row_below_its_title():
    rows = {"1 step": solid(10, 20, size=(32, 32)), "real": solid(30, 40, size=(32, 32))}
    saved = np.asarray(comparison(rows))
    for row, (_, images) in enumerate(rows.items()):
        top = row * (TITLE_HEIGHT + 32) + TITLE_HEIGHT
        for column in range(2):
            left = MARGIN + column * 33
            tile = saved[top : top + 32, left : left + 32]
            assert (tile == images[column, 0, 0, 0]).all()
        title = saved[top - TITLE_HEIGHT : top]
        assert title.max() > 200
        assert (title[:2] == PAPER).all() and (title[-2:] == PAPER).all()


def test_rows_may_be_of_different_length():
    rows = {"a": solid(10, size=(32, 32)), "b": solid(*range(9), size=(32, 32))}
    saved = np.asarray(comparison(rows))
    top = TITLE_HEIGHT
    assert (saved[top : top + 32, MARGIN : MARGIN + 32] == 10).all()
    assert (saved[top : top + 32, MARGIN + 32 :] == PAPER).all()
    assert saved.shape[1] == 2 * MARGIN + 9 * 33 - 1


def test_titles_differ_and_a_long_one_is_not_cut():
    image = solid(10, size=(32, 32))
    long = "a title that is far wider than its row of images"
    a, b, c = (np.asarray(comparison({title: image})) for title in ("1 step", "2 steps", long))
    width = min(a.shape[1], b.shape[1])
    assert (a[:TITLE_HEIGHT, :width] != b[:TITLE_HEIGHT, :width]).any()
    assert (c[:, -MARGIN:] == PAPER).all()
    assert c.shape[1] > 2 * a.shape[1]


def test_each_image_stands_above_its_own_caption_which_is_cut_to_its_width():
    images = solid(10, 20, 30, size=(8, 8))
    captions = ["0\nseed 1", "a name that is far too long\nseed 2", "2\nseed 3"]
    saved = np.asarray(grid_picture(images, 2, captions))
    right, down = 64 + GAP, 64 + 2 * CAPTION_HEIGHT + GAP
    assert saved.shape == (2 * down + GAP, 2 * right + GAP, 3)
    for place, value in enumerate((10, 20, 30)):
        x, y = GAP + place % 2 * right, GAP + place // 2 * down
        assert (saved[y : y + 64, x : x + 64] == value).all()
        for line in range(2):
            top = y + 64 + line * CAPTION_HEIGHT
            assert saved[top : top + CAPTION_HEIGHT, x : x + 64].max() > 200
    assert (saved[:, right : right + GAP] == PAPER).all()  # between the columns
    assert cut_text("a name that is far too long", 64).endswith("…") and cut_text("7", 64) == "7"
    assert grid_picture(images, 2) == enlarged_grid(images, 2)


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="0 columns"):
        image_grid(solid(1), columns=0)
    with pytest.raises(ValueError, match="0 images"):
        image_grid(solid(1)[:0], columns=1)
    with pytest.raises(ValueError, match="must be uint8"):
        image_grid(solid(1) / 255, columns=1)
    with pytest.raises(ValueError, match="2 channels"):
        enlarged_grid(solid(1, channels=2), columns=1)
    with pytest.raises(ValueError, match="scale = 0"):
        enlarged_grid(solid(1), columns=1, scale=0)
    with pytest.raises(ValueError, match="rows is empty"):
        comparison({})
    with pytest.raises(ValueError, match="rows differ in shape"):
        comparison({"a": solid(1), "b": solid(1, size=(3, 3))})
