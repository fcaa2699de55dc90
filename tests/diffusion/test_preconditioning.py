import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.path import ve
from diffusion.preconditioning import consistency, edm, precondition
from diffusion.prediction import endpoints

SIGMA = jnp.array([0.01, 0.5, 3.0, 40.0])


def test_edm_keeps_input_and_target_at_unit_variance():
    # Data N(0, sigma_data^2): Karras et al. 2022, appendix B.6.
    sigma_data, count = 0.5, 200_000
    key_data, key_noise = jax.random.split(jax.random.key(0))
    data = sigma_data * jax.random.normal(key_data, (count,))
    noise = jax.random.normal(key_noise, (count,))
    scalings = edm(sigma_data)
    for sigma in SIGMA:
        x = data + sigma * noise
        raw_target = (data - scalings.c_skip(sigma) * x) / scalings.c_out(sigma)
        assert np.std(scalings.c_in(sigma) * x) == pytest.approx(1.0, rel=0.01)
        assert np.std(raw_target) == pytest.approx(1.0, rel=0.01)
        # Uncorrelated with the input: c_skip is the best linear denoiser.
        assert np.corrcoef(x, raw_target)[0, 1] == pytest.approx(0.0, abs=0.01)


def test_denoiser_is_the_hub_s_raw_kind():
    network = lambda x, noise: jnp.sin(3 * x) + noise[:, None]  # noqa: E731
    scalings = edm(0.5)
    x = jax.random.normal(jax.random.key(1), (4, 3))
    raw = network(scalings.c_in(SIGMA)[:, None] * x, scalings.c_noise(SIGMA))
    decoded = endpoints("F", raw, x, SIGMA, ve())
    np.testing.assert_allclose(precondition(network, scalings)(x, SIGMA), decoded.x_0, rtol=1e-4)


def test_consistency_form_is_the_identity_at_sigma_min_for_any_network():
    sigma_min = 0.002
    f = precondition(lambda x, noise: 100.0 + x, consistency(0.5, sigma_min))
    x = jax.random.normal(jax.random.key(2), (4, 3))
    np.testing.assert_array_equal(f(x, jnp.full(4, sigma_min)), x)
    assert np.abs(f(x, jnp.full(4, 0.1)) - x).max() > 1.0
