import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.diffusion.path import PATHS
from fewstep.samplers.renoise import renew_noise, renoise
from fewstep.samplers.sde import noise_like
from tests.gaussian import Gaussian

GAUSSIAN = Gaussian(jnp.array([0.3, -0.7]), jnp.array([0.25, 1.7]))
X = jax.random.normal(jax.random.key(0), (6, 2))
KEYS = jax.random.split(jax.random.key(1), 6)


def consistency(path):
    """The exact f(x, t), the flow map to t_min."""
    return lambda x, t: GAUSSIAN.flow_map(path, x, t, jnp.full_like(t, path.t_min))


@pytest.mark.parametrize("levels", [(9.0,), (70.0, 0.5), (30.0, 2.0, 0.7, 0.01)])
@pytest.mark.parametrize("name", PATHS)
def test_the_distribution_of_the_data_is_kept_exactly(monkeypatch, name, levels):
    # The sampler is affine in x and its noises: row 0 gives the offset, the others one gain each.
    path, count = PATHS[name](), len(levels)
    times = jnp.concatenate([jnp.array([path.t_max]), path.time_at(jnp.array(levels))])
    unit = jnp.eye(count + 2)[:, 1:]
    monkeypatch.setattr(
        "fewstep.samplers.renoise.noise_like",
        lambda x, keys, index: jnp.broadcast_to(jnp.take(unit, index + 1, 1)[:, None], x.shape),
    )
    x = jnp.broadcast_to(unit[:, :1], (count + 2, 2))
    out = np.asarray(renoise(consistency(path), path, x, times, None), np.float64)
    gains = out[1:] - out[0]
    mean, variance = GAUSSIAN.marginal(path, times[:1])
    end_mean, end_variance = GAUSSIAN.marginal(path, jnp.array([path.t_min]))
    np.testing.assert_allclose(out[0] + gains[0] * mean[0], end_mean[0], rtol=1e-4)
    given = gains[0] ** 2 * np.asarray(variance[0]) + (gains[1:] ** 2).sum(0)
    np.testing.assert_allclose(given, end_variance[0], rtol=1e-4)
    assert (gains[1:] > 0.0).all()


@pytest.mark.parametrize("name", PATHS)
def test_one_time_is_the_consistency_function_itself(name):
    path = PATHS[name]()
    x, f = path.prior(X), consistency(path)
    given = renoise(f, path, x, jnp.array([path.t_max]), None)
    np.testing.assert_allclose(given, f(x, jnp.full(6, path.t_max)), rtol=1e-6)


def test_renoising_of_song_et_al():
    # Algorithm 1 on `ve`: x + sqrt(tau^2 - sigma_min^2) z; with f = x the sampler shows it.
    path = PATHS["ve"](sigma_min=0.5)
    times = jnp.array([80.0, 3.0, 0.7])
    given = renoise(lambda x, t: x, path, X, times, KEYS)
    expected = X + np.sqrt(3.0**2 - 0.25) * noise_like(X, KEYS, 0)
    expected = expected + np.sqrt(0.7**2 - 0.25) * noise_like(X, KEYS, 1)
    np.testing.assert_allclose(given, expected, rtol=1e-5)


def test_noise_takes_the_place_of_keys():
    path = PATHS["ve"](sigma_min=0.5)
    times = jnp.array([80.0, 3.0, 0.7])
    draws = jnp.stack([noise_like(X, KEYS, index) for index in range(3)])
    sample = lambda keys: renoise(lambda x, t: x, path, X, times, keys)
    np.testing.assert_allclose(sample(draws), sample(KEYS), rtol=1e-6)
    assert np.abs(sample(draws[::-1]) - sample(KEYS)).max() > 0.1


def test_the_function_is_called_at_every_time():
    path = PATHS["linear"]()
    times = jnp.array([1.0, 0.6, 0.2])
    # Only the last call, at tau = 0.2, shows in the result.
    given = renoise(lambda x, t: jnp.broadcast_to(t[:, None], x.shape), path, X, times, KEYS)
    np.testing.assert_allclose(given, 0.2, rtol=1e-6)


def test_a_row_draws_from_its_own_key():
    path, order = PATHS["vp_cosine"](), jnp.array([5, 2, 0])
    times = jnp.array([1.0, 0.6, 0.3])
    run = lambda x, keys: renoise(consistency(path), path, x, times, keys)
    np.testing.assert_allclose(run(X[order], KEYS[order]), run(X, KEYS)[order], rtol=1e-5)


def flow_map(path):
    """The exact jump."""
    return lambda x, t, s: GAUSSIAN.flow_map(path, x, t, s)


@pytest.mark.parametrize("gamma", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", PATHS)
def test_renewed_noise_keeps_the_distribution_of_the_data(monkeypatch, name, gamma):
    path, levels = PATHS[name](), jnp.array([30.0, 2.0, 0.7])
    times = jnp.concatenate([jnp.array([path.t_max]), path.time_at(levels)])
    times = jnp.append(times, path.t_min)
    unit = jnp.eye(6)[:, 1:]
    monkeypatch.setattr(
        "fewstep.samplers.renoise.noise_like",
        lambda x, keys, index: jnp.broadcast_to(jnp.take(unit, index + 1, 1)[:, None], x.shape),
    )
    x = jnp.broadcast_to(unit[:, :1], (6, 2))
    out = np.asarray(renew_noise(flow_map(path), path, x, times, None, gamma), np.float64)
    gains = out[1:] - out[0]
    mean, variance = GAUSSIAN.marginal(path, times[:1])
    end_mean, end_variance = GAUSSIAN.marginal(path, jnp.array([path.t_min]))
    np.testing.assert_allclose(out[0] + gains[0] * mean[0], end_mean[0], rtol=1e-3)
    given = gains[0] ** 2 * np.asarray(variance[0]) + (gains[1:] ** 2).sum(0)
    np.testing.assert_allclose(given, end_variance[0], rtol=1e-3)
    # No noise is drawn at gamma = 0, and never for the last point.
    assert (gains[1:4] != 0.0).all() == (gamma > 0.0) and (gains[4] == 0.0).all()


@pytest.mark.parametrize("name", PATHS)
def test_to_renew_all_noise_is_consistency_sampling(name):
    path = PATHS[name]()
    times = jnp.concatenate([jnp.array([path.t_max]), path.time_at(jnp.array([3.0, 0.5]))])
    given = renew_noise(
        flow_map(path), path, path.prior(X), jnp.append(times, path.t_min), KEYS, 1.0
    )
    expected = renoise(consistency(path), path, path.prior(X), times, KEYS)
    np.testing.assert_allclose(given, expected, rtol=1e-3, atol=1e-4)
