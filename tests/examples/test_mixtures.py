import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples import mixtures
from fewstep.diffusion.path import linear
from fewstep.objectives.divergences import score_implicit_matching
from tests.gaussian import Gaussian

KEY = jax.random.key(0)
PATH = linear()
TWO = mixtures.Mixture(jnp.array([0.25, 0.75]), jnp.array([[-1.0, 0.0], [1.0, 0.0]]), 0.1)


def test_one_mode_is_a_gaussian():
    mean = jnp.array([0.3, -0.7])
    one = mixtures.Mixture(jnp.ones(1), mean[None], 0.4)
    gaussian = Gaussian(mean, jnp.full(2, 0.16))
    x, t = jax.random.normal(KEY, (9, 2)), jnp.linspace(0.1, 0.9, 9)
    ends = one.endpoints(PATH, x, t)
    np.testing.assert_allclose(ends.x_0, gaussian.x_0(PATH, x, t), rtol=1e-5)
    np.testing.assert_allclose(ends.eps, gaussian.eps(PATH, x, t), rtol=1e-4, atol=1e-6)


def test_modes_count_by_their_posterior():
    # Halfway between the modes the prior decides, whatever the noise.
    ends = TWO.endpoints(PATH, jnp.zeros((1, 2)), jnp.array([0.9]))
    shrunk = 1.0 - 0.1 * 0.1**2 / ((0.1 * 0.1) ** 2 + 0.9**2) * 0.1  # of each mode, to the middle
    np.testing.assert_allclose(ends.x_0[0], [0.5 * shrunk, 0.0], rtol=1e-4, atol=1e-6)


def test_the_exact_teacher_s_parameters_give_the_mixture_s_denoiser():
    model = mixtures.model_with_exact_teacher(TWO)
    x, t = jax.random.normal(KEY, (9, 2)), jnp.linspace(0.1, 0.9, 9)
    condition = {"label": jnp.full((9,), -1)}
    ends = model.endpoints({mixtures.EXACT: jnp.zeros(())}, x, t, condition)
    np.testing.assert_allclose(ends.x_0, TWO.endpoints(PATH, x, t).x_0, rtol=1e-4, atol=1e-5)


def test_modes_are_counted_and_what_lies_between_them_is_not():
    samples = np.array([[-1.0, 0.1], [1.0, 0.0], [1.1, 0.0], [0.0, 0.0], [0.9, 0.1]])
    found = mixtures.modes_of(samples, TWO)
    np.testing.assert_allclose(found.weights, [0.25, 0.75])
    assert found.outside == pytest.approx(0.2) and found.wrong == pytest.approx(0.0)
    assert found.entropy == pytest.approx(-0.25 * np.log(0.25) - 0.75 * np.log(0.75))
    lost = mixtures.modes_of(samples[1:], TWO)
    assert lost.entropy == 0.0 and lost.wrong == pytest.approx(0.25)


def test_weights_of_modes_are_not_seen_at_low_noise():
    wrong = mixtures.wrong_distributions(TWO)
    low, high = (
        [mixtures.squared_difference(w, TWO, rho) for w in wrong.values()] for rho in (0.05, 3.0)
    )
    weights, missing, wide = zip(low, high, strict=True)
    assert weights[0] < 1e-6 < 1e-2 < weights[1] and missing[0] < 1e-6 < 1e-2 < missing[1]
    assert wide[0] > 1e-4 and wide[0] > 10 * wide[1]
    assert mixtures.squared_difference(TWO, TWO, 0.5) == 0.0


@pytest.mark.some_days(2)
def test_a_generator_is_trained_against_the_exact_teacher():
    model = mixtures.model_with_exact_teacher(TWO)
    start = model.network.init(KEY)
    samples = mixtures.generator_samples(model, score_implicit_matching(), start, 1, 0, "SIM")
    assert samples.shape == (mixtures.SAMPLES, 2) and np.isfinite(samples).all()
