"""In one dimension the probability-flow ODE is the monotone map of quantiles, for any density."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

from fewstep.densities.table import find_density
from fewstep.diffusion.path import vp_ddpm
from fewstep.diffusion.prediction import Endpoints
from fewstep.diffusion.spacing import uniform_spacing
from fewstep.samplers.grids import time_grid
from fewstep.samplers.ode import heun_step

PATH = vp_ddpm(0.1, 10.0)
GRID = np.linspace(-4.0, 4.0, 16_001)  # finer than the noise at the end
STEPS = 200
X = np.linspace(-1.8, 1.8, 13)


def well(x):
    return np.asarray(
        find_density("wells-1-1-2").log_densities(jnp.asarray(x, jnp.float32)[:, None])
    )


def skewed(x):
    """Modes of different weight and width."""
    return np.logaddexp(-0.5 * ((x - 1.0) / 0.3) ** 2, np.log(0.25) - 0.5 * (x + 1.2) ** 2)


@pytest.fixture(params=[well, skewed])
def weights(request):
    """Probabilities of the points of GRID."""
    mass = np.exp(request.param(GRID).astype(np.float64))
    return mass / mass.sum()


def quantile_map(weights, x, t):
    """F_0^-1(F_t(x)), where p_t is the density of the noised points."""
    alpha, sigma = float(PATH.alpha(t)), float(PATH.sigma(t))
    level = (weights * ndtr((x[:, None] - alpha * GRID) / sigma)).sum(axis=1)
    half = 0.5 * (GRID[1] - GRID[0])
    return np.interp(level, np.cumsum(weights), GRID + half)


def denoiser(weights):
    """The exact denoiser, by quadrature over GRID."""

    def denoise(x, t):
        alpha, sigma = PATH.alpha(t)[:, None], PATH.sigma(t)[:, None]
        log = jnp.log(jnp.asarray(weights + 1e-30)) - 0.5 * ((x - alpha * GRID) / sigma) ** 2
        x_0 = (jax.nn.softmax(log, axis=1) * GRID).sum(axis=1, keepdims=True)
        return Endpoints(x_0, (x - alpha * x_0) / sigma)

    return denoise


def trajectory(weights, x, steps=STEPS):
    """The points after each step of Heun's: [steps + 1, B], and their times."""
    times = time_grid(uniform_spacing(PATH), steps)
    denoise = denoiser(weights)

    def step(x, interval):
        rows = (jnp.full(x.shape[:1], time) for time in interval)
        after = heun_step(denoise, PATH, x, *rows)
        return after, after[:, 0]

    x = jnp.asarray(x, jnp.float32)[:, None]
    states = jax.jit(lambda x: jax.lax.scan(step, x, (times[:-1], times[1:]))[1])(x)
    return np.concatenate([X[None], states]), np.asarray(times)


def test_the_ode_ends_at_the_quantile(weights):
    states, times = trajectory(weights, X)
    wanted = quantile_map(weights, X, times[0])
    np.testing.assert_allclose(states[-1], wanted, atol=0.02)
    assert (np.diff(states[-1]) > 0).all()
    assert np.abs(states[-1] - X).max() > 0.2  # it is no identity
    coarse, _ = trajectory(weights, X, 10)
    assert np.abs(coarse[-1] - wanted).max() > 2 * np.abs(states[-1] - wanted).max()


def test_the_quantile_map_is_constant_along_a_trajectory(weights):
    """So it is the consistency function: its loss on pairs of a trajectory is zero."""
    states, times = trajectory(weights, X)
    ends = [quantile_map(weights, states[i], times[i]) for i in (0, 50, 100, 150, 190)]
    assert max(np.abs(end - ends[0]).max() for end in ends) < 0.02
    wrong = quantile_map(weights, states[100], times[50])
    assert np.abs(wrong - ends[0]).max() > 0.03
