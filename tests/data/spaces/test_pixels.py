import numpy as np
import pytest

from fewstep.data.spaces.grid import comparison, enlarged_grid
from fewstep.data.spaces.pixels import pixel_space
from fewstep.eval.features.networks import NETWORKS

SPACE = pixel_space((2, 3, 1))


def test_samples_are_rounded_and_clipped_to_bytes_and_start_as_floats():
    samples = np.linspace(-1.2, 1.2, 12, dtype=np.float32).reshape(2, 2, 3, 1)
    finished = SPACE.finish(samples)
    assert (finished.dtype, finished.shape[1:]) == (SPACE.example.dtype, SPACE.example.shape)
    assert finished.min() == 0 and finished.max() == 255
    np.testing.assert_array_equal(SPACE.finish(SPACE.start(finished)), finished)
    inside = np.abs(samples) <= 1
    assert np.abs(SPACE.start(finished) - samples)[inside].max() <= 1 / 255 + 1e-6


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sample_has_a_picture_of_its_own(channels):
    image = np.random.default_rng(0).integers(0, 256, (4, 5, channels), dtype=np.uint8)
    shown = np.asarray(pixel_space(image.shape).image(image))
    np.testing.assert_array_equal(shown, image[..., 0] if channels == 1 else image)


def test_pictures_are_grids():
    images = np.random.default_rng(0).integers(0, 256, (7, 2, 3, 1), dtype=np.uint8)
    assert SPACE.show(images, 4) == enlarged_grid(images, 4)
    assert SPACE.compare({"a": images}) == comparison({"a": images})


def test_features_are_networks_that_see_images():
    assert set(SPACE.features) < set(NETWORKS)
