"""TAESD: shapes, the range of its pixels, where its latents saturate, bad fields.

tests/parity/test_autoencoder.py compares it with the published one.
"""

import jax
import numpy as np
import pytest

from fewstep.models.tiny_autoencoder import tiny_autoencoder

SHAPE = (8, 12, 3)


@pytest.fixture
def built(random_params):
    codec = tiny_autoencoder(SHAPE, width=4, blocks=(1, 2), latent_channels=5)
    return codec, random_params(jax.eval_shape(codec.init, jax.random.key(0)))


def test_images_become_latents_without_deviation_and_back(built):
    codec, params = built
    images = np.random.default_rng(0).integers(0, 256, (2, *SHAPE), dtype=np.uint8)
    mean, std = jax.jit(codec.encode)({"encoder": params["encoder"]}, images)
    assert mean.shape == (2, 4, 6, 5) and np.std(mean) > 0.01
    assert std.shape == mean.shape and not np.any(std)
    decoded = jax.jit(codec.decode)({"decoder": params["decoder"]}, mean)
    assert decoded.shape == (2, *SHAPE) and np.std(decoded) > 0.01


def test_pixels_are_0_to_1_inside(built):
    """Black leaves only the biases, and an output of 0 is black."""
    codec, params = built
    untrained = jax.jit(codec.init)(jax.random.key(0))  # biases are 0
    black = np.full((1, *SHAPE), -1, np.float32)
    np.testing.assert_allclose(codec.encode(untrained, black).mean, 0, atol=1e-6)
    latents = np.zeros((1, *codec.latent_shape), np.float32)
    np.testing.assert_allclose(codec.decode(untrained, latents), -1, atol=1e-6)


def test_large_latents_saturate(built):
    codec, params = built
    latents = np.random.default_rng(0).standard_normal((1, *codec.latent_shape))
    decode = jax.jit(codec.decode)
    small, large, larger = (decode(params, scale * latents) for scale in (1, 1e6, 1e9))
    assert np.abs(small - large).max() > 0.1 * np.std(large)
    np.testing.assert_allclose(large, larger, atol=1e-4 * np.std(large))


@pytest.mark.parametrize(
    ("shape", "fields", "message"),
    [
        ((8, 12, 3), {}, "8 x 12 pixels.* 8 divides"),
        ((8, 8, 3), {"width": 0}, "width=0"),
        ((8, 8, 3), {"blocks": ()}, "levels=0"),
        ((8, 8, 3), {"blocks": (1, 0)}, r"blocks\[1\]=0"),
    ],
)
def test_bad_fields_are_refused(shape, fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_autoencoder(shape, **fields)
