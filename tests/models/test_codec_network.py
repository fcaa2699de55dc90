"""Codecs that are trained: the small autoencoder, and a codec as a network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import zoom

from fewstep.latents.linear import fit_linear_codec, linear_codec
from fewstep.models.codec_network import CODEC, codec_network
from fewstep.models.codecs import CODECS, codec_by_name, fit_codec
from fewstep.models.small_autoencoder import fit_small_autoencoder, small_autoencoder
from fewstep.training.state import replace_parts

SHAPE, KEY = (8, 8, 1), jax.random.key(0)
FIELDS = {"patch_size": 2, "widths": (8, 16), "latent_channels": 3}


@pytest.fixture
def images():
    """Smooth random images, which patches can compress."""
    coarse = np.random.default_rng(0).uniform(0, 255, (60, 3, 3))
    return zoom(coarse, (1, 8 / 3, 8 / 3), order=1).astype(np.uint8)[..., None]


def test_a_small_autoencoder_starts_as_its_linear_codec(images):
    codec = small_autoencoder(SHAPE, **FIELDS)
    linear = linear_codec(SHAPE, patch_size=4, channels=3)
    fitted = fit_linear_codec(images, patch_size=4, channels=3)
    params = replace_parts(codec.init(KEY), fit_small_autoencoder(images, **FIELDS))
    mean, std = codec.encode(params, images)
    np.testing.assert_array_equal(mean, linear.encode(fitted, images).mean)
    np.testing.assert_allclose(std, np.exp(-3.0), rtol=1e-6)
    np.testing.assert_array_equal(codec.decode(params, mean), linear.decode(fitted, mean))


def test_the_network_of_a_small_autoencoder_adds_to_both_halves(images, random_params):
    codec = small_autoencoder(SHAPE, **FIELDS)
    start = codec.init(KEY)
    moved = random_params(start)
    for half, apply in (("encoder", codec.encode), ("decoder", codec.decode)):
        inputs = images if half == "encoder" else jnp.ones((2, 2, 2, 3))
        linear_only = {half: {**start[half], "linear": moved[half]["linear"]}}
        both = {half: moved[half]}
        one, other = (jax.tree.leaves(apply(p, inputs))[0] for p in (linear_only, both))
        assert np.abs(np.asarray(one) - np.asarray(other)).max() > 1e-3


@pytest.mark.parametrize("name", [name for name in CODECS if CODECS[name].fit])
def test_what_is_fitted_belongs_to_the_codec(name):
    side = 4 * {"f7": 7, "f8": 8}.get(name, 4)
    images = np.random.default_rng(0).integers(0, 256, (20, side, side, 1), np.uint8)
    own = jax.eval_shape(codec_by_name(name, (side, side, 1)).init, KEY)
    fitted = fit_codec(name, images)
    merged = replace_parts(own, fitted)
    assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, own)
    assert jax.tree.leaves(fitted)


def test_a_codec_as_a_network_reconstructs(images):
    network = codec_network(SHAPE, 0, codec="f4")
    params = network.init(KEY)
    x = jnp.asarray(images[:3], jnp.float32) / 127.5 - 1.0
    t = jnp.zeros(3)
    made = network.apply(params, x, t, t, {})
    codec = network.codec
    np.testing.assert_array_equal(made, codec.decode(params, codec.encode(params, x).mean))
    assert made.shape == x.shape and network.fit is not None
    with pytest.raises(ValueError, match="x has shape"):
        network.apply(params, x[:, :4], t, t, {})


@pytest.mark.parametrize("codec", ["linear", "pixels", "taesd", "f5"])
def test_codecs_without_a_posterior_are_not_trained(codec):
    with pytest.raises(ValueError, match=f"codec='{codec}' is not one of f4"):
        codec_network(SHAPE, 0, codec=codec)


def test_a_debug_run_trains_the_smallest(images):
    assert CODEC.shrink({"codec": "sd"}, SHAPE) == {"codec": "f4"}
    assert CODEC.title({"codec": "sd"}) == "codec sd"
