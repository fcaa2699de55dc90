"""The linear codec: the best of its kind on photographs, whitened, and the same at every fit."""

import chex
import jax
import numpy as np
import pytest

from fewstep.latents.linear import fit_linear_codec, linear_codec
from tests.latents.photographs import mean_square_error, photographs, psnr

IMAGES = photographs(32)
SHAPE = IMAGES.shape[1:]
DEPTH = 4 * 4 * 3


def encode_decode(channels, images=IMAGES):
    codec = linear_codec(SHAPE, channels=channels)
    params = fit_linear_codec(IMAGES, channels=channels)
    moments = codec.encode(params, images)
    return moments, codec.decode(params, moments.mean)


def eigenvalues():
    """Of the covariance of patches that are cut one by one."""
    cut = [IMAGES[:, i : i + 4, j : j + 4] for i in range(0, 32, 4) for j in range(0, 32, 4)]
    patches = np.concatenate(cut).reshape(-1, DEPTH) / 127.5 - 1
    return np.linalg.eigvalsh(np.cov(patches.T, bias=True))[::-1]


@pytest.mark.parametrize(("channels", "least"), [(4, 23.0), (8, 26.0), (16, 30.0)])
def test_its_error_is_that_of_the_components_it_drops(channels, least):
    _, decoded = encode_decode(channels)
    dropped = eigenvalues()[channels:].sum() / DEPTH
    np.testing.assert_allclose(mean_square_error(decoded, IMAGES), dropped, rtol=1e-3)
    print(f"{channels} channels: {psnr(decoded, IMAGES):.1f} dB")
    assert psnr(decoded, IMAGES) > least


def test_all_components_lose_nothing():
    _, decoded = encode_decode(DEPTH)
    assert mean_square_error(decoded, IMAGES) < 1e-10


def test_latents_are_white():
    (mean, std), _ = encode_decode(4)
    latents = np.asarray(mean).reshape(-1, 4)
    np.testing.assert_allclose(latents.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(latents.T, bias=True), np.eye(4), atol=1e-4)
    assert not np.any(std)


def test_a_fit_is_deterministic_whatever_the_order_of_images():
    params = fit_linear_codec(IMAGES)
    chex.assert_trees_all_equal(params, fit_linear_codec(IMAGES))
    chex.assert_trees_all_close(params, fit_linear_codec(IMAGES[::-1]), atol=1e-4)
    directions = params["decoder"]["kernel"]
    assert np.all(directions.max(axis=1) >= -directions.min(axis=1))


def test_parameters_have_the_shapes_of_an_untrained_codec():
    codec = linear_codec(SHAPE)
    assert codec.latent_shape == (8, 8, 4)
    untrained = codec.init(jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(fit_linear_codec(IMAGES), untrained)
    latents = codec.encode(untrained, IMAGES).mean
    again = codec.encode(untrained, codec.decode(untrained, latents)).mean
    np.testing.assert_allclose(again, latents, atol=1e-5)  # a projection


def test_latents_of_mirrored_images_are_not_mirrored_latents():
    """So an image and its mirror image are encoded, never one from the other's latents."""
    codec, params = linear_codec(SHAPE, channels=8), fit_linear_codec(IMAGES, channels=8)
    mirrored = IMAGES[:, :, ::-1]
    latents = codec.encode(params, IMAGES).mean[:, :, ::-1]
    right = psnr(codec.decode(params, codec.encode(params, mirrored).mean), mirrored)
    wrong = psnr(codec.decode(params, latents), mirrored)
    print(f"mirrored images {right:.1f} dB, mirrored latents {wrong:.1f} dB")
    assert right - wrong > 3.0


@pytest.mark.parametrize(
    ("images", "fields", "message"),
    [
        (np.zeros((4, 8, 8, 3), np.uint8), {}, "vary in 0 directions"),
        (np.zeros((4, 8, 8, 3), np.float32), {}, "fitted to uint8"),
        (np.zeros((4, 8, 6, 3), np.uint8), {}, "8 x 6 pixels.* such as 8 x 8"),
        (np.zeros((4, 8, 8, 3), np.uint8), {"channels": 49}, "channels=49 must be 1 to 48"),
    ],
)
def test_what_cannot_be_fitted_is_refused(images, fields, message):
    with pytest.raises(ValueError, match=message):
        fit_linear_codec(images, **fields)


def test_grey_photographs_vary_in_fewer_directions():
    grey = np.repeat(IMAGES[..., :1], 3, axis=-1)
    with pytest.raises(ValueError, match="vary in 16 directions only"):
        fit_linear_codec(grey, channels=17)
