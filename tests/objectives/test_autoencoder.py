"""The loss of an autoencoder against closed forms, its gradients, and what it reconstructs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.diffusion.path import PATHS
from fewstep.diffusion.prediction import KINDS
from fewstep.latents.codec import Moments
from fewstep.models.model import Model
from fewstep.objectives.autoencoder import autoencoder, kl_to_standard_normal
from fewstep.objectives.distances import squared_l2
from fewstep.samplers.grids import StepsError
from tests.networks import affine_codec, affine_network

SHAPE, KEY = (4, 4, 2), jax.random.key(3)


def model_of(network):
    return Model(network, PATHS["linear"](), KINDS["velocity"])


@pytest.fixture
def objective():
    return autoencoder(model_of(affine_codec(SHAPE)), distance=squared_l2(), kl_weight=0.3)


@pytest.fixture
def params(objective):
    return objective.players["network"].network.init(KEY)


def images(count, key=KEY):
    return jax.random.uniform(key, (count, *SHAPE), minval=-1.0, maxval=1.0)


def test_kl_is_that_of_two_normal_distributions():
    mean, std = jnp.array([[0.5, -2.0], [0.0, 0.0]]), jnp.array([[0.3, 2.0], [1.0, 1.0]])
    ours = kl_to_standard_normal(Moments(mean, std))
    z = np.linspace(-30.0, 30.0, 400_001)
    for row in range(2):
        expected = []
        for m, s in zip(np.asarray(mean[row]), np.asarray(std[row]), strict=True):
            log_q = -0.5 * ((z - m) / s) ** 2 - np.log(s)
            q = np.exp(log_q) / np.sqrt(2.0 * np.pi)
            expected.append(np.trapezoid(q * (log_q + 0.5 * z**2), z))
        np.testing.assert_allclose(ours[row], np.mean(expected), atol=1e-5)


def test_the_loss_is_the_expected_error_of_a_draw_and_the_kl(objective, params):
    """x - decode(m + s eps) = x - d (a x + b) - e - d s eps, so the error has a closed form."""
    x = jnp.tile(images(1), (4096, 1, 1, 1))
    loss, metrics = objective.players["network"].loss(params, {}, {"x": x}, KEY, jnp.int32(0))
    a, b, c = (float(params["encoder"][name]) for name in "abc")
    d, e = (float(params["decoder"][name]) for name in "de")
    one, std = np.asarray(x[0], np.float64), np.exp(c)
    error = np.mean((one - d * (a * one + b) - e) ** 2) + (d * std) ** 2
    kl = np.mean(0.5 * ((a * one + b) ** 2 + std**2 - 1.0)) - c
    np.testing.assert_allclose(loss.mean(), error + 0.3 * kl, rtol=3e-2)
    recorded = {name: float(mean.total / mean.count) for name, mean in metrics.items()}
    np.testing.assert_allclose(recorded["reconstruction"], error, rtol=3e-2)
    np.testing.assert_allclose(recorded["kl"], kl, rtol=1e-5)
    assert np.ptp(np.asarray(loss)) > 0.01  # each row has noise of its own


def test_every_parameter_is_trained(objective, params):
    def loss(params):
        return objective.players["network"].loss(params, {}, {"x": images(8)}, KEY, 0)[0].mean()

    assert all(abs(leaf) > 1e-3 for leaf in jax.tree.leaves(jax.grad(loss)(params)))


def test_samples_are_reconstructions_from_the_mean(objective, params):
    assert objective.reconstructs
    x = images(3)
    labels, keys = {"label": jnp.zeros(3, jnp.int32)}, jax.random.split(KEY, 3)
    made = objective.sample(params, x, labels, keys, steps=1, guidance_scale=1.0)
    np.testing.assert_allclose(made, 1.4 * (0.6 * x + 0.2) - 0.1, rtol=1e-6)
    with pytest.raises(StepsError, match="in 1 step, not in 2"):
        objective.sample(params, x, labels, keys, steps=2, guidance_scale=1.0)


def test_psnr_is_the_mean_over_images_of_clipped_reconstructions(objective, params):
    x, keys = images(5), jax.random.split(KEY, 5)
    diagnostics = objective.diagnostics
    rows = diagnostics.rows(params, x, {}, keys, steps=1, guidance_scale=1.0)
    numbers = diagnostics.numbers(jax.device_get(rows))
    made = np.clip(1.4 * (0.6 * np.asarray(x) + 0.2) - 0.1, -1.0, 1.0)
    error = ((made - np.asarray(x)) ** 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(numbers["psnr"], np.mean(10.0 * np.log10(4.0 / error)), rtol=1e-5)
    assert numbers["kl"] == pytest.approx(np.mean(rows["kl"]))
    perfect = diagnostics.numbers({"squared_error": np.zeros(2), "kl": np.zeros(2)})
    assert 100.0 < perfect["psnr"] < 110.0


def test_only_a_codec_can_be_trained_and_only_by_this_method():
    with pytest.raises(ValueError, match="set model.name=codec"):
        autoencoder(model_of(affine_network()))
    from fewstep.objectives.denoising import denoising

    with pytest.raises(ValueError, match="no denoiser; only the method autoencoder"):
        denoising(model_of(affine_codec(SHAPE)))
    with pytest.raises(ValueError, match="kl_weight=-1 must be at least 0"):
        autoencoder(model_of(affine_codec(SHAPE)), kl_weight=-1.0)
