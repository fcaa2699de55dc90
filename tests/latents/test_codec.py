"""The contract of codecs: what enters, what is refused, and how the posterior is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.data.arrays.pixels import to_float
from fewstep.latents.codec import Moments, as_floats, identity_codec, latent_shape, sample_posterior

SHAPE = (4, 6, 3)
IMAGES = np.random.default_rng(0).integers(0, 256, (5, *SHAPE), dtype=np.uint8)


def test_pixels_are_latents_of_the_identity():
    codec = identity_codec(SHAPE)
    params = codec.init(jax.random.key(0))
    mean, std = jax.jit(codec.encode)(params, IMAGES)
    np.testing.assert_allclose(mean, IMAGES / 127.5 - 1, atol=1e-6)
    assert not np.any(std) and std.shape == mean.shape
    np.testing.assert_array_equal(codec.decode(params, mean), mean)
    np.testing.assert_array_equal(codec.encode(params, mean).mean, mean)
    assert codec.latent_shape == codec.shape == SHAPE


def test_bytes_become_the_floats_of_pixels():
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_allclose(as_floats(every), to_float(every), atol=1e-7)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_posterior_has_its_moments(dtype):
    mean = np.linspace(-3, 3, 24, dtype=dtype).reshape(2, 2, 2, 3)
    std = np.linspace(0, 2, 24, dtype=dtype).reshape(2, 2, 2, 3)
    draw = jax.jit(jax.vmap(sample_posterior, in_axes=(0, None)))
    drawn = draw(jax.random.split(jax.random.key(0), 20_000), Moments(mean, std))
    assert drawn.dtype == jnp.float32
    error = 5 / np.sqrt(len(drawn))
    assert np.all(np.abs(drawn.mean(axis=0) - mean) <= error * std + 1e-3)
    np.testing.assert_allclose(drawn.std(axis=0), std, rtol=error, atol=1e-6)
    noise = ((drawn - mean) / np.maximum(std, 1e-3)).reshape(len(drawn), -1)[:, 1:]
    assert np.abs(np.corrcoef(noise.T) - np.eye(23)).max() < error


@pytest.mark.parametrize(
    ("method", "array", "message"),
    [
        ("encode", IMAGES[0], r"images are \[4, 6, 3\]; this codec takes \[N, 4, 6, 3\]"),
        ("encode", IMAGES[:, :, :5], r"images are \[5, 4, 5, 3\]"),
        ("encode", IMAGES.astype(np.int32), "images are int32; give uint8"),
        ("decode", np.zeros((1, 4, 6, 1)), r"latents are \[1, 4, 6, 1\]"),
        ("decode", IMAGES, "latents are uint8; convert them to float32"),
    ],
)
def test_arrays_of_another_kind_are_refused(method, array, message):
    codec = identity_codec(SHAPE)
    with pytest.raises(ValueError, match=message):
        getattr(codec, method)({"encoder": {}, "decoder": {}}, array)


def test_sides_that_the_factor_does_not_divide_are_refused():
    assert latent_shape((256, 512, 3), 8, 4) == (32, 64, 4)
    for sides in ((250, 256), (256, 250)):
        with pytest.raises(ValueError, match="pixels; .* 8 divides, such as 256 x 256"):
            latent_shape((*sides, 3), 8, 4)
    with pytest.raises(ValueError, match=r"images are \[256, 256\]"):
        latent_shape((256, 256), 8, 4)
