"""Scales: the published numbers, what they do to moments, and a codec that has them."""

import jax
import numpy as np
import pytest

from fewstep.latents.codec import Moments, identity_codec, sample_posterior
from fewstep.latents.scaling import (
    SCALINGS,
    Scaling,
    scale_latents,
    scale_moments,
    scaled,
    standardizing,
    unscale_latents,
)

CHANNELS = 4
# What the latents of sd-vae-ft-mse have, by Karras et al. 2024.
RAW_MEAN, RAW_STD = np.array([5.81, 3.25, 0.12, -2.15]), np.array([4.17, 4.62, 3.71, 3.28])
EACH = pytest.mark.parametrize("name", SCALINGS)


def draw(seed=0):
    return np.random.default_rng(seed).standard_normal((7, 2, 3, CHANNELS)).astype(np.float32)


@EACH
def test_unscaling_inverts_scaling(name):
    latents = draw()
    there = scale_latents(SCALINGS[name], latents)
    np.testing.assert_allclose(unscale_latents(SCALINGS[name], there), latents, atol=2e-6)


def test_the_published_formulas():
    latents = draw()
    np.testing.assert_array_equal(scale_latents(SCALINGS["none"], latents), latents)
    np.testing.assert_allclose(scale_latents(SCALINGS["sd"], latents), 0.18215 * latents)
    np.testing.assert_allclose(scale_latents(SCALINGS["sdxl"], latents), 0.13025 * latents)
    sd3 = (latents - 0.0609) * 1.5305
    np.testing.assert_allclose(scale_latents(SCALINGS["sd3"], latents), sd3, atol=1e-6)
    flux = (latents - 0.1159) * 0.3611
    np.testing.assert_allclose(scale_latents(SCALINGS["flux"], latents), flux, atol=1e-6)
    edm2 = 0.5 * (latents - RAW_MEAN) / RAW_STD
    np.testing.assert_allclose(scale_latents(SCALINGS["edm2"], latents), edm2, atol=1e-6)


def test_what_networks_see_of_standard_latents():
    """0.18215 neither centres latents nor gives them a deviation of 0.5; EDM2's scale does."""
    latents = RAW_MEAN + RAW_STD * np.array([-1.0, 1.0])[:, None]
    sd, edm2 = (scale_latents(SCALINGS[name], latents) for name in ("sd", "edm2"))
    np.testing.assert_allclose(sd.mean(axis=0), [1.06, 0.59, 0.02, -0.39], atol=5e-3)
    np.testing.assert_allclose(sd.std(axis=0), [0.76, 0.84, 0.68, 0.60], atol=5e-3)
    np.testing.assert_allclose(edm2.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(edm2.std(axis=0), 0.5, atol=1e-6)


@EACH
def test_scaled_moments_are_those_of_scaled_draws(name):
    moments, key = Moments(draw(), np.abs(draw(1))), jax.random.key(2)
    np.testing.assert_allclose(
        sample_posterior(key, scale_moments(SCALINGS[name], moments)),
        scale_latents(SCALINGS[name], sample_posterior(key, moments)),
        atol=1e-5,
    )


def test_a_scaled_codec_encodes_to_scaled_moments_and_decodes_them():
    raw = identity_codec((2, 3, CHANNELS))
    codec = scaled(raw, SCALINGS["edm2"])
    params, images = raw.init(jax.random.key(0)), np.clip(draw(), -1, 1)
    moments = codec.encode(params, images)
    np.testing.assert_allclose(moments.mean, scale_latents(SCALINGS["edm2"], images), atol=1e-6)
    np.testing.assert_allclose(codec.decode(params, moments.mean), images, atol=1e-5)
    assert codec.latent_shape == raw.latent_shape


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        (Scaling((1.0, 2.0)), "scale has 2 values; latents of 4 channels take 1 or 4"),
        (Scaling((1.0,), (0.0,) * 3), "shift has 3 values"),
        (Scaling((-1.0,)), "must be positive"),
        (Scaling((1.0,), (float("nan"),)), "shift=.* not finite"),
        (standardizing((0.0,), (float("inf"),)), "must be positive"),
    ],
)
def test_scales_that_do_not_fit_are_refused(scaling, message):
    with pytest.raises(ValueError, match=message):
        scaled(identity_codec((2, 3, CHANNELS)), scaling)
