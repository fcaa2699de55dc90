import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.diffusion.path import PATHS, trigflow
from fewstep.diffusion.prediction import (
    KINDS,
    coefficients,
    convert,
    endpoints,
    prediction_target,
    raw_kind,
)

SHAPE = (6, 2, 2, 1)
RHO = jnp.array([0.1, 0.3, 0.8, 1.3, 4.0, 9.0])


def point(path):
    """Data, noise and times at six noise levels of a path."""
    key_data, key_noise = jax.random.split(jax.random.key(0))
    x_0, eps = jax.random.normal(key_data, SHAPE), jax.random.normal(key_noise, SHAPE)
    return x_0, eps, path.time_at(RHO)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_target_decodes_to_its_endpoints(kind, path):
    path, kind = PATHS[path](), KINDS[kind]
    x_0, eps, t = point(path)
    decoded = endpoints(
        kind, prediction_target(kind, x_0, eps, t, path), path.interpolate(x_0, eps, t), t, path
    )
    np.testing.assert_allclose(decoded.x_0, x_0, atol=2e-4)
    np.testing.assert_allclose(decoded.eps, eps, atol=2e-4)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("to", KINDS)
def test_every_pair_of_kinds_converts(source, to, path):
    path, source, to = PATHS[path](), KINDS[source], KINDS[to]
    x_0, eps, t = point(path)
    x_t = path.interpolate(x_0, eps, t)
    given, expected = (
        prediction_target(source, x_0, eps, t, path),
        prediction_target(to, x_0, eps, t, path),
    )
    converted = convert(given, x_t, t, path, source=source, to=to)
    np.testing.assert_allclose(converted, expected, rtol=2e-3, atol=2e-3)


def test_linear_velocity_is_noise_minus_data():
    path = PATHS["linear"]()
    x_0, eps, t = point(path)
    np.testing.assert_allclose(
        prediction_target(KINDS["velocity"], x_0, eps, t, path), eps - x_0, atol=1e-5
    )


def test_velocity_of_pure_noise_gives_the_data():
    # alpha = 0, where eps says nothing: x_0 = x - v.
    path = PATHS["linear"]()
    x, v = jnp.array([[2.0]]), jnp.array([[0.5]])
    assert endpoints(KINDS["velocity"], v, x, jnp.ones(1), path).x_0[0, 0] == 1.5


def test_score_is_the_gradient_of_the_log_density_for_a_point_mass():
    # For data at mu, x_t ~ N(alpha mu, sigma^2).
    path = PATHS["vp_cosine"]()
    mu, t, x = 0.4, jnp.array([0.3]), jnp.array([[1.1]])
    log_density = lambda x: (-((x - path.alpha(t) * mu) ** 2) / (2 * path.sigma(t) ** 2)).sum()
    given = convert(jnp.array([[mu]]), x, t, path, source=KINDS["x_0"], to=KINDS["score"])
    np.testing.assert_allclose(given, jax.grad(log_density)(x), rtol=1e-5)


def test_raw_trigflow_output_is_minus_edm_output():
    # D = cos t x - sigma_data sin t F_trig, so velocity = sigma_data F_trig = -sigma_data F.
    sigma_data = 0.5
    path = trigflow(sigma_data)
    x_0, eps, t = point(path)
    velocity = prediction_target(KINDS["velocity"], x_0, eps, t, path)
    raw = prediction_target(KINDS["F"], x_0, eps, t, path)
    np.testing.assert_allclose(velocity, -sigma_data * raw, atol=1e-5)


def test_raw_kind_of_unit_data():
    # At sigma_data = 1 and rho = 1: c_skip = 1/2, c_out = 1/sqrt(2).
    path = PATHS["ve"]()
    kind = raw_kind(1.0)
    x, t = jnp.array([[3.0]]), jnp.array([1.0])
    decoded = kind.decode(jnp.array([[2.0]]), x, coefficients(path, t, x))
    np.testing.assert_allclose(decoded.x_0, 1.5 + 2.0 / np.sqrt(2.0), rtol=1e-6)


def test_a_kind_converts_to_itself_untouched():
    path, kind = PATHS["linear"](), KINDS["score"]
    x, t = jnp.ones((1, 2)), jnp.zeros(1)  # sigma = 0, where the score does not decode
    assert convert(x, x, t, path, source=kind, to=kind) is x


@pytest.mark.parametrize("name", PATHS)
def test_input_scale(name):
    # c_in: 1 / sqrt((alpha sigma_data)^2 + sigma^2) for F, so that the input has unit variance.
    path = PATHS[name]()
    t = path.time_at(RHO)
    c = coefficients(path, t, jnp.zeros((6, 1)))
    alpha, sigma = np.asarray(path.alpha(t)), np.asarray(path.sigma(t))
    scale = raw_kind(0.7).c_in(c)[:, 0]
    np.testing.assert_allclose(scale**2 * (0.49 * alpha**2 + sigma**2), 1.0, rtol=1e-5)
    for kind in ("x_0", "eps", "velocity", "v", "score"):
        np.testing.assert_array_equal(KINDS[kind].c_in(c), 1.0)


def test_raw_kind_holds_at_both_ends():
    path, kind = PATHS["linear"](), KINDS["F"]
    x, raw = jnp.array([[2.0], [2.0]]), jnp.array([[0.5], [0.5]])
    decoded = endpoints(kind, raw, x, jnp.array([0.0, 1.0]), path)
    # No noise: the point itself. Pure noise: c_skip = 0 and x_0 = sigma_data F.
    np.testing.assert_allclose(decoded.x_0[:, 0], [2.0, 0.25], rtol=1e-6)
    np.testing.assert_allclose(decoded.eps[:, 0], [-0.5, 2.0], rtol=1e-6)
