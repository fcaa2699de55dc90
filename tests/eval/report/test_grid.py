import numpy as np
import pytest
from PIL import Image

from fewstep.eval.report.grid import (
    MARGIN,
    PAPER,
    TITLE_HEIGHT,
    image_grid,
    save_comparison,
    save_grid,
)


def solid(*values, size=(2, 3), channels=1):
    return np.stack([np.full((*size, channels), value, np.uint8) for value in values])


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


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


def test_saved_grid_enlarges_pixels_to_blocks(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (2, 2, 2, 1), dtype=np.uint8)
    save_grid(tmp_path / "grid.png", images, columns=2, scale=3)
    saved = read(tmp_path / "grid.png")
    assert saved.shape == (6, 15)
    np.testing.assert_array_equal(saved[:, 9:], np.kron(images[1, ..., 0], np.ones((3, 3))))


@pytest.mark.parametrize(("side", "saved"), [(8, 32), (28, 56), (32, 32), (64, 64), (12, 36)])
def test_default_scale_makes_images_visible(tmp_path, side, saved):
    save_grid(tmp_path / "grid.png", solid(9, size=(side, side)), columns=1)
    assert read(tmp_path / "grid.png").shape == (saved, saved)


def test_comparison_holds_each_row_below_its_title(tmp_path):
    rows = {"1 step": solid(10, 20, size=(32, 32)), "real": solid(30, 40, size=(32, 32))}
    save_comparison(tmp_path / "rows.png", rows)
    saved = read(tmp_path / "rows.png")
    for row, (_, images) in enumerate(rows.items()):
        top = row * (TITLE_HEIGHT + 32) + TITLE_HEIGHT
        for column in range(2):
            left = MARGIN + column * 33
            tile = saved[top : top + 32, left : left + 32]
            assert (tile == images[column, 0, 0, 0]).all()
        title = saved[top - TITLE_HEIGHT : top]
        assert title.max() > 200
        assert (title[:2] == PAPER).all() and (title[-2:] == PAPER).all()


def test_titles_differ_and_a_long_one_is_not_cut(tmp_path):
    image = solid(10, size=(32, 32))
    long = "a title that is far wider than its row of images"
    for name, title in {"a": "1 step", "b": "2 steps", "c": long}.items():
        save_comparison(tmp_path / f"{name}.png", {title: image})
    a, b, c = (read(tmp_path / f"{name}.png") for name in "abc")
    width = min(a.shape[1], b.shape[1])
    assert (a[:TITLE_HEIGHT, :width] != b[:TITLE_HEIGHT, :width]).any()
    assert (c[:, -MARGIN:] == PAPER).all()
    assert c.shape[1] > 2 * a.shape[1]


def test_a_failed_write_keeps_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "grid.png"
    save_grid(path, solid(1), columns=1)
    before = path.read_bytes()

    def refuse(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        save_grid(path, solid(2), columns=1)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["grid.png"]


def test_errors_name_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="0 columns"):
        image_grid(solid(1), columns=0)
    with pytest.raises(ValueError, match="0 images"):
        image_grid(solid(1)[:0], columns=1)
    with pytest.raises(ValueError, match="must be uint8"):
        image_grid(solid(1) / 255, columns=1)
    with pytest.raises(ValueError, match="2 channels"):
        save_grid(tmp_path / "a.png", solid(1, channels=2), columns=1)
    with pytest.raises(ValueError, match="scale = 0"):
        save_grid(tmp_path / "a.png", solid(1), columns=1, scale=0)
    with pytest.raises(ValueError, match="rows is empty"):
        save_comparison(tmp_path / "a.png", {})
    with pytest.raises(ValueError, match="rows differ in shape"):
        save_comparison(tmp_path / "a.png", {"a": solid(1), "b": solid(1, 2)})
