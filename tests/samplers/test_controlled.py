"""Controlled diffusions on Gaussian targets, where the control and every weight are known."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.diffusion.path import PATHS, vp_ddpm
from fewstep.diffusion.spacing import karras_spacing, quadratic_spacing
from fewstep.samplers import SOLVERS
from fewstep.samplers.controlled import (
    check_noising,
    control_of,
    euler_kernel,
    exponential_kernel,
    log_prior,
    noising_rate,
    simulate,
)
from fewstep.samplers.grids import time_grid
from tests.gaussian import Gaussian

PATH = vp_ddpm(0.1, 10.0)
TARGET = Gaussian(jnp.array([0.5, -0.4]), jnp.array([0.25, 1.4]))
LOG_Z, ROWS = 1.7, 20_000
KERNELS = {"euler": euler_kernel, "exponential": exponential_kernel}


def log_rho(x):
    """The target times e^1.7, unnormalised: [B]."""
    square = jnp.sum((x - TARGET.mean) ** 2 / TARGET.variance, axis=1)
    volume = 0.5 * jnp.sum(jnp.log(2 * math.pi * TARGET.variance))
    return LOG_Z - 0.5 * square - volume


exact = control_of(TARGET.denoiser(PATH), PATH)
CONTROLS = {
    "none": lambda x, t: jnp.zeros_like(x),
    "any": lambda x, t: 0.4 * jnp.sin(2.0 * x + t[:, None]) - 0.3,
    "exact": exact,
}


@partial(jax.jit, static_argnums=(0, 1, 2))
def paths(kernel, control, steps, seed=0):
    """Log weights and trajectory of paths."""
    key, key_path = jax.random.split(jax.random.key(seed))
    x = jax.random.normal(key, (ROWS, 2))
    times = jnp.linspace(PATH.t_max, PATH.t_min, steps + 1)
    made = simulate(
        PATH, KERNELS[kernel], CONTROLS[control], x, times, jax.random.split(key_path, ROWS)
    )
    return log_rho(made.x) + made.log_ratio - log_prior(x), made


def test_the_control_is_that_of_the_noised_density():
    x, t = jnp.array([[0.3, -1.0], [1.2, 0.1]]), jnp.array([0.2, 0.9])
    mean, variance = TARGET.marginal(PATH, t)
    np.testing.assert_allclose(exact(x, t), x - (x - mean) / variance, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(noising_rate(PATH, t), 0.1 + 9.9 * t, rtol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("control", "steps"), [("none", 8), ("any", 8), ("exact", 40)])
def test_mean_weight_is_the_normaliser_for_any_control_and_number_of_steps(kernel, control, steps):
    log_w = np.asarray(paths(kernel, control, steps)[0], np.float64)
    w = np.exp(log_w - LOG_Z)
    assert abs(w.mean() - 1.0) < 5.0 * w.std() / math.sqrt(ROWS)
    assert w.std() / math.sqrt(ROWS) < 0.06


def test_weights_of_the_exact_control_tend_to_the_mismatch_of_the_prior():
    """Var log w -> Var log(N / p_T) as the number of steps grows."""
    few, many = (np.asarray(paths("euler", "exact", n)[0]).var() for n in (8, 40))
    mean, variance = TARGET.marginal(PATH, jnp.ones(1))
    x = np.random.default_rng(0).standard_normal((ROWS, 2)) * np.sqrt(variance) + mean
    limit = (0.5 * ((x - mean) ** 2 / variance - x**2)).sum(axis=1).var()
    assert few > 2 * many and many < limit + 0.1


def test_exponential_weights_are_those_of_the_paper():
    """Vargas et al. 2023: -sum lambda |f|^2 / 2 + sqrt(lambda) eps . f, against N(y_K)."""
    log_w, made = paths("exponential", "any", 5)
    y, total = np.asarray(made.states, np.float64), 0.0
    times = np.linspace(PATH.t_max, PATH.t_min, 6)
    for k in range(5):
        now = jnp.full(ROWS, times[k], jnp.float32)
        f = np.asarray(CONTROLS["any"](made.states[k], now), np.float64)
        level = 1.0 - float(PATH.alpha(times[k]) / PATH.alpha(times[k + 1])) ** 2
        eps = (y[k + 1] - math.sqrt(1 - level) * y[k] - level * f) / math.sqrt(level)
        total += (0.5 * level * f**2 + math.sqrt(level) * eps * f).sum(axis=1)
    wanted = np.asarray(log_rho(made.x)) - np.asarray(log_prior(made.x)) - total
    np.testing.assert_allclose(log_w, wanted, atol=2e-3)


def test_a_detached_path_leaves_the_gradient_of_a_fixed_path():
    """The gradient of Var log w with a detached path, against autodiff at stored points."""
    rows, steps = 64, 6
    x = jax.random.normal(jax.random.key(0), (rows, 2))
    keys = jax.random.split(jax.random.key(1), rows)
    times = jnp.linspace(PATH.t_max, PATH.t_min, steps + 1)
    control = lambda theta: lambda x, t: theta * jnp.tanh(x) + 0.1

    def variance(theta, shift):
        made = simulate(PATH, euler_kernel, control(theta), x, times, keys, jax.lax.stop_gradient)
        return jnp.var(log_rho(made.x) + made.log_ratio + shift)

    made = jax.jit(lambda: simulate(PATH, euler_kernel, control(0.3), x, times, keys))()

    def at_stored_points(theta):
        total = log_rho(made.x)
        for k in range(steps):
            a = noising_rate(PATH, times[k]) * (times[k] - times[k + 1])
            now, after, c = made.states[k], made.states[k + 1], 1.0 - 0.5 * a
            f = control(theta)(now, times[k])
            total += 0.5 * jnp.sum((after - c * now - a * f) ** 2 - (now - c * after) ** 2, 1) / a
        return jnp.var(total)

    gradient = jax.jit(jax.grad(variance))
    found = float(gradient(0.3, 0.0))
    assert found == pytest.approx(float(jax.jit(jax.grad(at_stored_points))(0.3)), rel=1e-4)
    assert found == pytest.approx(float(gradient(0.3, 5.0)), rel=1e-4)


@pytest.mark.parametrize("name", ["euler_maruyama", "exponential"])
def test_the_solver_samples_the_density(name):
    rows = 8_000
    eps = jax.random.normal(jax.random.key(5), (rows, 2))
    keys = jax.random.split(jax.random.key(6), rows)
    times = jnp.linspace(PATH.t_max, PATH.t_min, 161)
    x = jax.jit(lambda: SOLVERS[name]()(TARGET.denoiser(PATH), PATH, eps, times, keys))()
    np.testing.assert_allclose(x.mean(axis=0), TARGET.mean, atol=0.05)
    np.testing.assert_allclose(x.var(axis=0), TARGET.variance, rtol=0.08)


@pytest.mark.parametrize(("name", "kernel"), [("euler_maruyama", "euler"), ("exponential",) * 2])
def test_the_variance_after_few_steps_is_that_of_the_kernel(name, kernel):
    """Of N(0, 1), whose control is 0: c^2 v + a, which is 1 for the exact noising alone."""
    rows, times, variance = 20_000, jnp.linspace(PATH.t_max, PATH.t_min, 4), 1.0
    eps = jax.random.normal(jax.random.key(5), (rows, 2))
    keys = jax.random.split(jax.random.key(6), rows)
    normal = Gaussian(jnp.zeros(2), jnp.ones(2)).denoiser(PATH)
    x = jax.jit(lambda: SOLVERS[name]()(normal, PATH, eps, times, keys))()
    for t, s in zip(times[:-1], times[1:], strict=True):
        c, a = KERNELS[kernel](PATH, t, s)
        variance = c**2 * variance + a
    np.testing.assert_allclose(x.var(axis=0), variance, rtol=0.04)
    assert (abs(variance - 1.0) < 1e-4) == (name == "exponential")


@pytest.mark.parametrize("name", ["linear", "ve", "vp_cosine", "trigflow"])
def test_paths_without_a_finite_noising_are_refused(name):
    with pytest.raises(ValueError, match=f"path.name=vp_ddpm or vp_discrete, not {name}"):
        check_noising(PATHS[name]())
    check_noising(PATH)
    with pytest.raises(ValueError, match="alpha = 0.0005 at the noise end, .* smaller path.beta_m"):
        check_noising(vp_ddpm(beta_max=30.0))


@pytest.mark.parametrize(("spacing", "steps"), [(karras_spacing, 1000), (quadratic_spacing, 2048)])
def test_the_variance_of_short_steps_is_that_of_double_precision(spacing, steps):
    times = np.asarray(time_grid(spacing(PATH), steps), np.float64)
    integral = 0.1 * times + 0.5 * 9.9 * times**2  # B(t), alpha = exp(-B / 2)
    expected = -np.expm1(integral[1:] - integral[:-1])
    t, s = jnp.float32(times[:-1]), jnp.float32(times[1:])
    kernel = exponential_kernel(PATH, t, s)
    assert (kernel.a > 0.0).all()
    np.testing.assert_allclose(kernel.a, expected, rtol=1e-3)
