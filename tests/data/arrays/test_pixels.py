import numpy as np
import pytest
from PIL import Image

from fewstep.data import to_float, to_uint8
from fewstep.data.arrays.pixels import LARGEST_SIZE, check_size, fit, fit_array


def test_to_float_is_affine_between_minus_one_and_one():
    x = to_float(np.array([0, 51, 204, 255], np.uint8))
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, [-1.0, -0.6, 0.6, 1.0], atol=1e-7)


def test_to_uint8_inverts_to_float_on_every_value():
    values = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8(to_float(values)), values)


def test_to_uint8_clips_and_rounds_halves_upwards():
    x = np.array([-np.inf, -1.5, 0.0, 2 / 255, 1.5, np.inf])  # 0.0 is 127.5, 2 / 255 is 128.5
    np.testing.assert_array_equal(to_uint8(x), [0, 0, 128, 129, 255, 255])


def test_to_uint8_refuses_nan():
    with pytest.raises(ValueError, match="NaN"):
        to_uint8(np.array([0.0, np.nan]))


@pytest.mark.parametrize(
    ("size", "channels", "field"),
    [(-1, 0, "image_size"), (LARGEST_SIZE + 1, 0, "image_size"), (8, 2, "channels")],
)
def test_check_size_names_the_field(size, channels, field):
    with pytest.raises(ValueError, match=field):
        check_size(size, channels)


def test_fit_leaves_a_fitting_image_unchanged(draw_images):
    pixels = draw_images(1, 8, 8, 3)[0]
    np.testing.assert_array_equal(fit(Image.fromarray(pixels), 8, 3), pixels)


def test_fit_crops_the_centre(draw_images):
    pixels = draw_images(1, 8, 14, 3)[0]
    np.testing.assert_array_equal(fit(Image.fromarray(pixels), 8, 3), pixels[:, 3:11])
    upright = pixels.transpose(1, 0, 2)
    np.testing.assert_array_equal(fit(Image.fromarray(upright), 8, 3), upright[3:11])


def test_fit_averages_boxes_for_powers_of_two(draw_images):
    pixels = draw_images(1, 16, 16)[0].astype(int)
    columns = (pixels[:, ::2] + pixels[:, 1::2] + 1) // 2  # Pillow rounds after each axis
    expected = (columns[::2] + columns[1::2] + 1) // 2
    halved = fit(Image.fromarray(pixels.astype(np.uint8)), 8, 1)
    np.testing.assert_array_equal(halved[..., 0], expected)


def test_fit_halves_before_it_interpolates(draw_images):
    pixels = draw_images(1, 20, 20)[0]
    box = Image.fromarray(pixels).resize((10, 10), Image.Resampling.BOX)
    expected = np.asarray(box.resize((8, 8), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(fit(Image.fromarray(pixels), 8, 1)[..., 0], expected)


def test_fit_array_converts_channels(draw_images):
    grey = draw_images(1, 4, 4, 1)[0]
    np.testing.assert_array_equal(fit_array(grey, 4, 3), np.repeat(grey, 3, axis=-1))
    colour = draw_images(1, 4, 4, 4)[0]
    np.testing.assert_array_equal(fit_array(colour, 4, 3), colour[..., :3])


def test_sizes_and_channels_of_the_data_s_own_are_allowed():
    for size, channels in ((0, 0), (1, 1), (8, 3), (LARGEST_SIZE, 0)):
        check_size(size, channels)
