import jax
import numpy as np
import pytest

from fewstep.data.spaces.pixels import pixel_space
from fewstep.eval.features.feature_network import (
    FeatureNetwork,
    FeatureOutputs,
    check_colours,
    check_dimension,
    check_features,
    extractor,
    pixel_features,
)
from fewstep.training.sharding import make_mesh


def test_pixels_run_from_minus_one_to_one():
    images = np.array([0, 255, 51], np.uint8).reshape(1, 1, 3, 1)
    features, logits = pixel_features((1, 3, 1)).apply(None, images)
    np.testing.assert_allclose(features, [[-1.0, 1.0, -0.6]], rtol=0, atol=1e-7)
    assert logits is None


def test_features_are_one_row_per_image_on_any_devices():
    images = np.random.default_rng(0).integers(0, 256, (21, 2, 2, 3), dtype=np.uint8)
    network = pixel_features((2, 2, 3))
    assert network.dimension == 12
    features, logits = extractor(network, make_mesh(), 8)(images)
    np.testing.assert_allclose((features + 1) * 127.5, images.reshape(21, 12), atol=1e-4)
    assert logits is None
    np.testing.assert_array_equal(extractor(network, make_mesh(), 16)(images)[0], features)


def test_logits_come_beside_features():
    def apply(scale, images):
        flat = images.reshape(len(images), -1) * scale
        return FeatureOutputs(flat, flat[:, :2].sum(axis=1, keepdims=True))

    network = FeatureNetwork("sums", 0.5, apply, 4, "", "")
    images = np.arange(40, dtype=np.uint8).reshape(10, 2, 2, 1)
    features, logits = extractor(network, make_mesh(), 8)(images)
    np.testing.assert_allclose(features, images.reshape(10, 4) / 2)
    np.testing.assert_allclose(logits[:, 0], features[:, 0] + features[:, 1])


@pytest.mark.parametrize("images", [np.zeros((2, 4, 4, 1)), np.zeros((2, 4, 4), np.uint8)])
def test_only_uint8_images_have_features(images):
    with pytest.raises(ValueError, match="images must be uint8"):
        extractor(pixel_features((4, 4, 1)), make_mesh(), 8)(images)
    with pytest.raises(ValueError, match="images must be uint8"):
        jax.eval_shape(pixel_features((4, 4, 1)).apply, None, images)


def test_large_images_have_too_many_pixels():
    check_dimension("pixels", pixel_space((64, 64, 1)))
    check_dimension("inception", pixel_space((256, 256, 3)))
    with pytest.raises(ValueError, match="12288 dimensions"):
        check_dimension("pixels", pixel_space((64, 64, 3)))


def test_the_edges_of_what_has_features():
    check_dimension("pixels", pixel_space((64, 64, 1)))  # 4096
    with pytest.raises(ValueError, match="4097 dimensions"):
        check_dimension("pixels", pixel_space((4097, 1, 1)))
    for channels in (1, 3):
        check_colours(np.zeros((1, 2, 2, channels), np.uint8))
    for channels in (2, 4):
        with pytest.raises(ValueError, match=f"1 or 3 channels, not {channels}"):
            check_colours(np.zeros((1, 2, 2, channels), np.uint8))
    check_features(np.zeros((2, 1)), least=2)
    with pytest.raises(ValueError, match="has 1 rows; at least 2"):
        check_features(np.zeros((1, 1)), least=2)
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="1 of 2 values are not finite"):
            check_features(np.array([[value, 0.0]]), least=1)
