import numpy as np
import pytest

from eval.features import FEATURES, pixels


def test_pixels_run_from_minus_one_to_one():
    images = np.array([0, 255, 51], np.uint8).reshape(1, 1, 3, 1)
    np.testing.assert_allclose(pixels(images), [[-1.0, 1.0, -0.6]], rtol=0, atol=1e-15)


def test_pixels_are_one_row_per_image_in_float64():
    images = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    features = FEATURES["pixels"](images)
    assert features.dtype == np.float64
    np.testing.assert_allclose((features[1] + 1) * 127.5, np.arange(12, 24))


@pytest.mark.parametrize("images", [np.zeros((2, 4, 4, 1)), np.zeros((2, 4, 4), np.uint8)])
def test_only_uint8_images_have_pixels(images):
    with pytest.raises(ValueError, match="images must be uint8"):
        pixels(images)
