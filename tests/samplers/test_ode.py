import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.path import PATHS
from diffusion.prediction import KINDS, convert
from samplers.flow_map import jump
from samplers.grids import uniform_grid
from samplers.ode import SOLVERS, euler, heun, velocity_of
from tests.gaussian import Gaussian

GAUSSIAN = Gaussian(jnp.array([0.3, -0.7]), jnp.array([0.25, 1.7]))
X = jax.random.normal(jax.random.key(0), (32, 2))


def error(solver, path, steps, dtype=jnp.float64):
    """Largest error of a solver against the exact flow map from t_max to t_min."""
    x = path.prior(X.astype(dtype))
    times = uniform_grid(path, steps).astype(dtype)
    x_0 = solver(lambda x, t: GAUSSIAN.velocity(path, x, t), x, times)
    start, end = (jnp.full(32, t, dtype) for t in (path.t_max, path.t_min))
    return float(jnp.abs(x_0 - GAUSSIAN.flow_map(path, x, start, end)).max())


@pytest.mark.parametrize(("solver", "order"), [(euler, 1.0), (heun, 2.0)])
@pytest.mark.parametrize("name", ["linear", "vp_cosine", "trigflow"])
def test_order_of_convergence(solver, order, name):
    with jax.enable_x64(True):
        coarse, fine = (error(solver, PATHS[name](), steps) for steps in (64, 128))
    assert np.log2(coarse / fine) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_any_kind_of_prediction_gives_the_same_samples(kind, solver):
    path = PATHS["vp_cosine"]()
    # Off the two ends, where x_0 and eps alone do not determine the velocity.
    times = jnp.linspace(0.95, 0.05, 9)
    exact = lambda x, t: GAUSSIAN.velocity(path, x, t)  # noqa: E731
    predict = lambda x, t: convert(exact(x, t), x, t, path, source="velocity", to=kind)  # noqa: E731
    expected = SOLVERS[solver](exact, X, times)
    given = SOLVERS[solver](velocity_of(predict, kind, path), X, times)
    np.testing.assert_allclose(given, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["linear", "vp_cosine"])
@pytest.mark.parametrize("steps", [1, 3])
def test_jumps_with_the_exact_average_velocity_are_exact(name, steps):
    path = PATHS[name]()
    times = uniform_grid(path, steps)
    x_0 = jump(lambda x, t, s: GAUSSIAN.average_velocity(path, x, t, s), X, times)
    expected = GAUSSIAN.mean + jnp.sqrt(GAUSSIAN.variance) * X
    np.testing.assert_allclose(x_0, expected, atol=1e-5)


def test_number_of_evaluations():
    calls = []

    def velocity(x, t):
        jax.debug.callback(lambda t: calls.append(float(t)), t[0])
        return x

    for solver, expected in ((euler, 5), (heun, 9)):
        calls.clear()
        jax.block_until_ready(solver(velocity, X, jnp.linspace(1.0, 0.0, 6)))
        jax.effects_barrier()
        assert len(calls) == expected


def test_grid_meets_both_ends():
    path = PATHS["trigflow"]()
    grid = np.asarray(uniform_grid(path, 7))
    assert (grid[0], grid[-1]) == (np.float32(path.t_max), np.float32(path.t_min))
    np.testing.assert_allclose(np.diff(grid), (path.t_min - path.t_max) / 7, rtol=1e-5)
    # Dyadic grids are exact, which step-size embeddings rely on.
    np.testing.assert_array_equal(uniform_grid(PATHS["linear"](), 128), 1 - np.arange(129) / 128)
    with pytest.raises(ValueError, match="at least 1 step"):
        uniform_grid(path, 0)
