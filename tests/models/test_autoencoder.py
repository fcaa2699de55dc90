"""The KL autoencoder: shapes, moments, mirror images, exact normalisation, bad fields.

tests/parity/test_autoencoder.py compares it with the published one.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.models.autoencoder import EPSILON, autoencoder, halving, normalization

FIELDS = {"widths": (4, 8), "blocks": 1, "latent_channels": 2, "groups": 2}
SHAPE = (8, 12, 3)


def images(shape=SHAPE):
    return np.random.default_rng(0).integers(0, 256, (2, *shape), dtype=np.uint8)


@pytest.fixture
def built(random_params):
    """fields -> codec and random parameters."""

    def build(shape=SHAPE, **fields):
        codec = autoencoder(shape, **(FIELDS | fields))
        return codec, random_params(jax.eval_shape(codec.init, jax.random.key(0)))

    return build


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"attention": False, "quant_convolutions": False},
        {"widths": (4,), "patch_size": 2, "latent_channels": 5},
    ],
)
def test_images_become_moments_of_the_latent_shape_and_latents_become_images(fields, built):
    codec, params = built(**fields)
    assert codec.latent_shape == (4, 6, fields.get("latent_channels", 2))
    mean, std = jax.jit(codec.encode)({"encoder": params["encoder"]}, images())
    assert mean.shape == std.shape == (2, *codec.latent_shape)
    assert mean.dtype == std.dtype == jnp.float32
    assert np.all(std > 0) and np.std(mean) > 0.01
    decoded = jax.jit(codec.decode)({"decoder": params["decoder"]}, mean)
    assert decoded.shape == (2, *SHAPE)
    assert np.std(decoded) > 0.01


def test_an_untrained_codec_has_the_same_tree(built):
    codec, params = built()
    untrained = jax.jit(codec.init)(jax.random.key(0))
    assert jax.tree.map(jnp.shape, untrained) == jax.tree.map(jnp.shape, params)
    assert all(np.isfinite(jax.jit(codec.encode)(untrained, images()).mean).ravel())


def test_the_logarithm_of_the_variance_is_cut(built):
    codec, params = built(quant_convolutions=False)
    encode = jax.jit(codec.encode)
    for bias, std in ((-1e3, np.exp(-15)), (1e3, np.exp(10)), (-2.0, np.exp(-1))):
        end = params["encoder"]["conv_out"]
        end = {"kernel": 0 * end["kernel"], "bias": np.array([0.5, -3, bias, bias], np.float32)}
        changed = {"encoder": params["encoder"] | {"conv_out": end}}
        moments = encode(changed, images())
        np.testing.assert_allclose(moments.std, std, rtol=1e-5)
        np.testing.assert_allclose(moments.mean[0, 0, 0], [0.5, -3])


def symmetric(tree):
    """Parameters whose convolutions equal their mirror images."""
    return jax.tree.map(lambda x: (x + x[:, ::-1]) / 2 if x.ndim == 4 else x, tree)


def test_halving_reads_a_pixel_and_those_after_it():
    module, x = halving(1, "halve"), jnp.arange(16.0).reshape(1, 4, 4, 1)
    for row, column in ((0, 0), (1, 2), (2, 1)):
        kernel = jnp.zeros((3, 3, 1, 1)).at[row, column].set(1.0)
        found = module.apply({"params": {"kernel": kernel, "bias": jnp.zeros(1)}}, x)
        wide = np.pad(np.arange(16.0).reshape(4, 4), ((0, 1), (0, 1)))
        np.testing.assert_array_equal(found[0, ..., 0], wide[row::2, column::2][:2, :2])


@pytest.mark.parametrize(("widths", "mirrored"), [((4,), True), ((4, 8), False)])
def test_halving_is_not_symmetric(widths, mirrored, built):
    """Even with symmetric convolutions, so mirrored images must be encoded."""
    codec, params = built(widths=widths)
    params, x = symmetric(params), images()
    encode = jax.jit(codec.encode)
    latents, of_mirrored = (encode(params, each).mean for each in (x, x[:, :, ::-1]))
    difference = np.abs(latents[:, :, ::-1] - of_mirrored).max() / np.std(latents)
    assert difference < 1e-4 if mirrored else difference > 1e-2


def test_variances_survive_a_mean_of_a_thousand_deviations():
    """The default of Flax, E[x^2] - E[x]^2, has errors above 1 there."""
    x = np.random.default_rng(0).standard_normal((1, 16, 16, 8)) + 1e3
    x = x.astype(np.float32)
    module = normalization(2, "norm")
    ours = module.apply(module.init(jax.random.key(0), x), x)
    groups = x.astype(np.float64).reshape(1, 256, 2, 4)
    centred = groups - groups.mean(axis=(1, 3), keepdims=True)
    variance = np.square(centred).mean(axis=(1, 3), keepdims=True)
    exact = (centred / np.sqrt(variance + EPSILON)).reshape(x.shape)
    assert np.abs(ours - exact).max() < 5e-3


@pytest.mark.parametrize(
    ("shape", "fields", "message"),
    [
        ((10, 12, 3), {"widths": (4, 8, 8)}, "10 x 12 pixels.* 4 divides, such as 12 x 12"),
        ((8, 12, 3), {"patch_size": 8}, "16 divides"),
        (SHAPE, {"widths": (4, 9)}, "groups=2 must divide every width, and does not 9"),
        (SHAPE, {"widths": ()}, "levels=0"),
        (SHAPE, {"blocks": 0}, "blocks=0 must be an integer"),
        (SHAPE, {"latent_channels": 1.5}, "latent_channels=1.5"),
        (SHAPE, {"patch_size": True}, "patch_size=True"),
    ],
)
def test_bad_fields_are_refused(shape, fields, message):
    with pytest.raises(ValueError, match=message):
        autoencoder(shape, **(FIELDS | fields))


def test_images_of_another_size_are_refused(built):
    codec, params = built()
    with pytest.raises(ValueError, match=r"images are \[2, 8, 8, 3\]; this codec takes \[N, 8, 12"):
        codec.encode(params, images((8, 8, 3)))
