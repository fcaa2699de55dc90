"""The table of codecs: every entry builds, and its scale fits its latents."""

import jax
import numpy as np
import pytest

from fewstep.latents.scaling import SCALINGS, check_scaling
from fewstep.models.codecs import CODECS

# Published: channels of a latent, and parameters of encoder and decoder, quant convolutions
# included.
PUBLISHED = {
    "sd": (4, 34_163_664, 49_490_199),
    "sdxl": (4, 34_163_664, 49_490_199),
    "sd3": (16, 34_274_208, 49_545_475),
    "flux": (16, 34_274_208, 49_545_475),
    "taesd": (4, 1_222_532, 1_222_531),
    "taesdxl": (4, 1_222_532, 1_222_531),
    "taesd3": (16, 1_229_456, 1_229_443),
    "taef1": (16, 1_229_456, 1_229_443),
}


@pytest.mark.parametrize("name", CODECS)
def test_every_codec_builds_at_its_size_and_its_scale_fits(name):
    entry = CODECS[name]
    side = 7 * 32 if name == "f7" else 256
    codec = entry.build((side, 2 * side, 3), **entry.fields)
    check_scaling(SCALINGS[entry.scaling or "none"], codec.latent_shape[-1])
    params = jax.eval_shape(codec.init, jax.random.key(0))
    if name in PUBLISHED:
        channels, *counts = PUBLISHED[name]
        assert codec.latent_shape == (32, 64, channels)
        assert [count(params["encoder"]), count(params["decoder"])] == counts
    images = jax.ShapeDtypeStruct((1, *codec.shape), np.uint8)
    moments = jax.eval_shape(codec.encode, params, images)
    assert {each.shape for each in moments} == {(1, *codec.latent_shape)}
    latents = jax.ShapeDtypeStruct((1, *codec.latent_shape), np.float32)
    assert jax.eval_shape(codec.decode, params, latents).shape == images.shape


def count(params):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
