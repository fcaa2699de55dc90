from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from fewstep.diffusion.path import PATHS, align
from fewstep.diffusion.prediction import Endpoints
from fewstep.diffusion.spacing import uniform_spacing
from fewstep.samplers import SOLVERS
from fewstep.samplers.grids import StepsError, time_grid
from fewstep.samplers.multistep import (
    adams_bashforth,
    deis,
    dpm_solver_3m,
    eps_coefficients,
    log_snr_steps,
    unipc,
    x_0_coefficients,
)
from fewstep.samplers.ode import ddim, genie, taylor_step
from fewstep.samplers.pndm import pndm
from tests.gaussian import Gaussian, Mixture

GAUSSIAN = Gaussian(jnp.array([0.3, -0.7]), jnp.array([0.25, 1.7]))
MIXTURE = Mixture(jnp.array([0.3, 0.7]), jnp.array([-1.0, 0.8]), jnp.array([0.09, 0.2]))
X = jax.random.normal(jax.random.key(0), (4, 2))
PNDM = pndm()
TIMES = jnp.array([0.95, 0.8, 0.7, 0.45, 0.3, 0.1])


def official_3m():
    """DPM-Solver++(3M) as its authors and diffusers have it: half of the parabola's square term."""

    def coefficients(path, times):
        h, nodes = log_snr_steps(path, times, 3)
        first, second = nodes[:, 1], nodes[:, 2]
        square = h**2 - 2.0 * (jnp.expm1(-h) + h)
        difference = jnp.stack(
            [1.0 / (first * (first - second)), 1.0 / (second * (second - first))], axis=1
        )
        halved = 0.5 * square[:, None] * jnp.where(jnp.isfinite(difference), difference, 0.0)
        return x_0_coefficients(h, nodes) - halved

    return adams_bashforth("official_3m", 3, "x_0", coefficients)


ORDERS = [
    (genie(), "linear", 2),
    (deis(order=1), "linear", 1),
    (deis(order=2), "linear", 2),
    (deis(), "linear", 3),
    (deis(variable="log_rho"), "linear", 3),
    (dpm_solver_3m(), "linear", 3),
    (official_3m(), "linear", 2),
    (unipc(order=1), "linear", 2),
    (unipc(), "linear", 3),
    (unipc(order=3), "linear", 4),
    (PNDM, "ve", 4),
    (PNDM, "linear", 2),
]


def observed_order(solver, path, grade):
    """log2 of the ratio of the errors after 128 and 256 steps, from grade(u), u equally spaced."""
    with jax.enable_x64(True):
        low, high = path.time_at(jnp.array([0.5, 3.0]))
        x, errors = X.astype(jnp.float64), []
        for steps in (128, 256):
            times = high + (low - high) * grade(jnp.linspace(0.0, 1.0, steps + 1))
            run = jax.jit(lambda x, times: solver(GAUSSIAN.denoiser(path), path, x, times, None))
            ends = jnp.full(4, times[0]), jnp.full(4, times[-1])
            errors.append(float(jnp.abs(run(x, times) - GAUSSIAN.flow_map(path, x, *ends)).max()))
    return np.log2(errors[0] / errors[1])


@pytest.mark.parametrize(("solver", "name", "order"), ORDERS)
def test_order_of_convergence_to_the_gaussian_flow_map(solver, name, order):
    # First steps of size 1 / N^2, so that their lower order does not count; PNDM, which is meant
    # for equal steps, has none.
    grade = (lambda u: u) if solver is PNDM else (lambda u: u**2)
    assert observed_order(solver, PATHS[name](), grade) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize(
    ("solver", "order"),
    [(deis(), 2), (dpm_solver_3m(), 2), (unipc(order=1), 2), (unipc(), 3), (unipc(order=3), 3)],
)
def test_on_equal_steps_the_first_bounds_the_order(solver, order):
    found = observed_order(solver, PATHS["linear"](), lambda u: u)
    assert found == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("name", ["linear", "vp_ddpm"])
@pytest.mark.parametrize("variable", ["t", "log_rho"])
def test_deis_integrates_a_parabola_of_eps(name, variable):
    path = PATHS[name]()
    rho = np.asarray(path.rho(TIMES), float)
    place = (lambda r: float(path.time_at(jnp.float32(r)))) if variable == "t" else np.log
    found = eps_coefficients(path, TIMES, 3, variable)
    for i in (2, 4):
        for power in (1, 2):
            y = lambda r, power=power: place(r) ** power
            exact = quad(y, rho[i], rho[i + 1], epsabs=1e-6)[0] - y(rho[i]) * (rho[i + 1] - rho[i])
            past = np.array([y(rho[i - 1]), y(rho[i - 2])]) - y(rho[i])
            assert found[i] @ past == pytest.approx(exact, abs=2e-5 * (1.0 + rho[i]))
    assert not found[0].any() and not found[1, 1]


def test_dpm_solver_3m_integrates_a_parabola_of_x_0():
    path = PATHS["vp_cosine"]()
    log_snr = -np.log(np.asarray(path.rho(TIMES), float))
    found = x_0_coefficients(*log_snr_steps(path, TIMES, 3))
    for i in range(2, 5):
        for power in (1, 2):
            change = lambda z, power=power, i=i: z**power - log_snr[i] ** power
            weigh = lambda z, change=change, i=i: np.exp(z - log_snr[i + 1]) * change(z)
            past = np.array([change(log_snr[i - 1]), change(log_snr[i - 2])])
            exact = quad(weigh, log_snr[i], log_snr[i + 1])[0]
            assert found[i] @ past == pytest.approx(exact, abs=1e-5)


def test_unipc_is_the_formula_of_the_paper():
    # Algorithms 5 and 7 with p = 3 and B(h) = e^h - 1, by a loop in NumPy's float64.
    path, x = PATHS["vp_cosine"](), X[:, :1]
    denoise = jax.jit(MIXTURE.denoiser(path))
    given = jax.jit(lambda x: unipc(order=3)(denoise, path, x, TIMES, None))(x)
    alpha, sigma = (np.asarray(f(TIMES), float) for f in (path.alpha, path.sigma))
    log_snr = np.log(alpha / sigma)
    network = lambda x, i: np.asarray(denoise(jnp.float32(x), jnp.full(4, TIMES[i])).x_0, float)

    def weights(i, ratios):
        if len(ratios) == 1:
            return [0.5]
        z = log_snr[i] - log_snr[i + 1]  # -h
        phi, factorial, b = np.expm1(z) / z - 1.0, 1.0, []
        for k in range(1, len(ratios) + 1):
            b.append(phi * factorial / np.expm1(z))
            factorial *= k + 1
            phi = phi / z - 1.0 / factorial
        powers = np.array([np.array(ratios) ** k for k in range(len(ratios))])
        return np.linalg.solve(powers, b)

    x = np.asarray(x, float)
    points = [network(x, 0)]
    for i in range(5):
        p = min(3, i + 1)
        h = log_snr[i + 1] - log_snr[i]
        ratios = [(log_snr[i - j] - log_snr[i]) / h for j in range(1, p)]
        gaps = [(points[-1 - j] - points[-1]) / r for j, r in enumerate(ratios, start=1)]
        ddim = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * np.expm1(-h) * points[-1]
        scale = -alpha[i + 1] * np.expm1(-h)
        terms = zip(weights(i, ratios), gaps, strict=True) if ratios else ()
        x = ddim + scale * sum(w * gap for w, gap in terms)
        if i == 4:
            break
        points.append(network(x, i + 1))
        gaps.append(points[-1] - points[-2])
        terms = zip(weights(i, [*ratios, 1.0]), gaps, strict=True)
        x = ddim + scale * sum(w * gap for w, gap in terms)
    np.testing.assert_allclose(given, x, rtol=1e-4, atol=1e-5)


def test_deis_of_order_1_is_ddim():
    path = PATHS["vp_cosine"]()
    run = lambda solver: solver(GAUSSIAN.denoiser(path), path, X, TIMES, None)
    np.testing.assert_allclose(run(deis(order=1)), run(ddim()), rtol=1e-5, atol=1e-6)


def test_the_rate_of_eps_along_the_trajectory():
    # For Gaussian data deps / drho is known: eps = rho (y - mean) / (S + rho^2) with dy = eps drho.
    path = PATHS["trigflow"]()
    t, s = jnp.linspace(0.5, 1.4, 4), jnp.linspace(0.2, 1.3, 4)
    rho, h = path.rho(t)[:, None], (path.rho(s) - path.rho(t))[:, None]
    variance, offset = GAUSSIAN.variance, X / path.alpha(t)[:, None] - GAUSSIAN.mean
    eps = rho * offset / (variance + rho**2)
    rate = (offset - rho * eps) / (variance + rho**2)
    exact = path.alpha(s)[:, None] * (offset + GAUSSIAN.mean + h * eps + 0.5 * h**2 * rate)
    found = jax.jit(lambda x, t, s: taylor_step(GAUSSIAN.denoiser(path), path, x, t, s))(X, t, s)
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("solver", "steps", "message"),
    [
        (deis(), 2, "deis of order 3 needs 3 sampling steps or more, not 2"),
        (dpm_solver_3m(), 2, "dpm_solver_3m of order 3 needs 3"),
        (unipc(), 1, "unipc of order 2 needs 2"),
        (PNDM, 3, "pndm of order 4 needs 4"),
    ],
)
def test_fewer_steps_than_the_order_needs_are_an_error(solver, steps, message):
    path = PATHS["linear"]()
    run = partial(solver, GAUSSIAN.denoiser(path), path)
    with pytest.raises(StepsError, match=message):
        jax.eval_shape(lambda x, times: run(x, times, None), X, TIMES[: steps + 1])


def test_orders_and_variables_out_of_range_are_errors():
    for make in (deis, unipc):
        with pytest.raises(ValueError, match=r"solver\.order=4 must be 1, 2 or 3"):
            make(order=4)
    with pytest.raises(ValueError, match=r"solver\.variable='rho' must be t or log_rho"):
        deis(variable="rho")


@pytest.mark.parametrize("name", ["genie", "deis", "dpm_solver_3m", "unipc", "pndm"])
def test_one_data_point_is_met_exactly(name):
    # x_0 and eps are constant along the trajectory, from pure noise to the data.
    path, point = PATHS["trigflow"](), jnp.array([0.4, -1.1])

    def denoise(x, t):
        t = align(t, x)
        x_0 = jnp.broadcast_to(point, x.shape)
        return Endpoints(x_0, (x - path.alpha(t) * x_0) / path.sigma(t))

    times = time_grid(uniform_spacing(path), 5)
    found = jax.jit(lambda x: SOLVERS[name]()(denoise, path, x, times, None))(path.prior(X))
    np.testing.assert_allclose(found, jnp.broadcast_to(point, X.shape), atol=2e-5)


def test_genie_is_its_step_repeated():
    path = PATHS["vp_cosine"]()
    denoise, x = GAUSSIAN.denoiser(path), X
    found = jax.jit(lambda x: genie()(denoise, path, x, TIMES, None))(x)
    step = jax.jit(lambda x, t, s: taylor_step(denoise, path, x, jnp.full(4, t), jnp.full(4, s)))
    for t, s in zip(TIMES[:-1], TIMES[1:], strict=True):
        x = step(x, t, s)
    np.testing.assert_allclose(found, x, rtol=1e-5, atol=1e-6)
