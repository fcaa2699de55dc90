from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.diffusion import spacing
from fewstep.diffusion.path import PATHS, align
from fewstep.diffusion.prediction import KINDS, Endpoints, coefficients, endpoints
from fewstep.samplers import SOLVERS
from fewstep.samplers.grids import time_grid
from fewstep.samplers.ode import STEPS, ddim, dpm_solver_2m, euler, heun, heun_step
from tests.gaussian import Gaussian, Mixture

GAUSSIAN = Gaussian(jnp.array([0.3, -0.7]), jnp.array([0.25, 1.7]))
MIXTURE = Mixture(jnp.array([0.3, 0.7]), jnp.array([-1.0, 0.8]), jnp.array([0.09, 0.2]))
X = jax.random.normal(jax.random.key(0), (16, 2))
MIXTURE_START = jnp.linspace(-2.0, 2.0, 16)[:, None]
KEYS = jax.random.split(jax.random.key(1), 16)

DPM_SOLVER = dpm_solver_2m()
ODE_SOLVERS = [(euler(), 1), (ddim(), 1), (heun(), 2), (DPM_SOLVER, 2)]
ODE_NAMES = ["euler", "ddim", "heun", "dpm_solver_2m"]


def times_of(path, steps, inside=False):
    """Karras' levels on `ve`, whose time is stretched, and equal steps elsewhere; [steps + 1].

    inside: from rho = 20 to 0.05 only, for a method that steps in log rho, infinite at the ends.
    """
    fraction = jnp.linspace(1.0, 0.0, steps + 1)
    if path.name == "ve":
        return spacing.karras_spacing(path).time(fraction)
    ends = path.time_at(jnp.array([0.05, 20.0])) if inside else (path.t_min, path.t_max)
    return ends[0] + (ends[1] - ends[0]) * fraction


def order_of(solver, denoise, path, x, exact, times):
    """log2 of the ratio of the largest errors on two grids, the second with half the steps' size.

    exact: (x, times) -> the solution at times[-1].
    """
    run = jax.jit(lambda x, times: solver(denoise, path, x, times, None))
    errors = [float(jnp.abs(run(x, grid) - exact(x, grid)).max()) for grid in times]
    return np.log2(errors[0] / errors[1])


@pytest.mark.parametrize(("solver", "order"), ODE_SOLVERS, ids=ODE_NAMES)
@pytest.mark.parametrize("name", ["linear", "vp_cosine", "trigflow", "ve"])
def test_order_of_convergence_to_the_gaussian_flow_map(name, solver, order):
    with jax.enable_x64(True):
        path = PATHS[name]()
        x = path.prior(X.astype(jnp.float64))
        times = [times_of(path, steps, solver is DPM_SOLVER) for steps in (96, 192)]
        exact = lambda x, times: GAUSSIAN.flow_map(
            path, x, jnp.full(16, times[0]), jnp.full(16, times[-1])
        )
        found = order_of(solver, GAUSSIAN.denoiser(path), path, x, exact, times)
    assert found == pytest.approx(order, abs=0.15)


@cache
def reference(name, inside):
    """The mixture's solution at the end of `times_of`, by the classical method of order 4."""
    path = PATHS[name]()
    denoise, times = MIXTURE.denoiser(path), times_of(path, 1000, inside)

    def body(x, interval):
        t, s = (jnp.full(x.shape[:1], time) for time in interval)
        field = lambda x, t: path.velocity(*denoise(x, t), t)
        h, half = interval[1] - interval[0], 0.5 * (t + s)
        k1 = field(x, t)
        k2 = field(x + 0.5 * h * k1, half)
        k3 = field(x + 0.5 * h * k2, half)
        k4 = field(x + h * k3, s)
        return x + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4), None

    run = jax.jit(lambda x: jax.lax.scan(body, x, (times[:-1], times[1:]))[0])
    return run(path.prior(MIXTURE_START.astype(jnp.float64)))


@pytest.mark.parametrize(("solver", "order"), ODE_SOLVERS, ids=ODE_NAMES)
@pytest.mark.parametrize("name", ["linear", "ve"])
def test_order_of_convergence_of_a_curved_flow(name, solver, order):
    with jax.enable_x64(True):
        path = PATHS[name]()
        x = path.prior(MIXTURE_START.astype(jnp.float64))
        inside = solver is DPM_SOLVER
        times = [times_of(path, steps, inside) for steps in (256, 512)]
        exact = lambda x, times: reference(name, inside)
        found = order_of(solver, MIXTURE.denoiser(path), path, x, exact, times)
    assert found == pytest.approx(order, abs=0.15)


def test_ddim_is_euler_on_the_linear_path():
    path = PATHS["linear"]()
    denoise, times, x = (
        MIXTURE.denoiser(path),
        time_grid(spacing.uniform_spacing(path), 7),
        X[:, :1],
    )
    given = ddim()(denoise, path, x, times, None)
    np.testing.assert_allclose(given, euler()(denoise, path, x, times, None), atol=1e-5)


@pytest.mark.parametrize("name", ["vp_cosine", "vp_ddpm", "trigflow"])
def test_ddim_is_euler_in_the_scaled_variables(name):
    # y = x / alpha has dy / d rho = eps, rho = sigma / alpha.
    path = PATHS[name]()
    times = path.time_at(jnp.array([30.0, 8.0, 2.0, 0.6, 0.1]))
    denoise, x = MIXTURE.denoiser(path), X[:, :1]
    given = ddim()(denoise, path, x, times, None)
    for t, s in zip(times[:-1], times[1:], strict=True):
        eps = denoise(x, jnp.full(16, t)).eps
        gap = path.sigma(s) / path.alpha(s) - path.sigma(t) / path.alpha(t)
        x = path.alpha(s) * (x / path.alpha(t) + gap * eps)
    np.testing.assert_allclose(given, x, rtol=1e-4, atol=1e-5)


def test_the_first_dpm_solver_step_is_ddim_and_the_second_is_not():
    path = PATHS["vp_cosine"]()
    denoise, times, x = MIXTURE.denoiser(path), jnp.array([0.9, 0.6, 0.2]), X[:, :1]
    run = lambda solver, times: np.asarray(solver(denoise, path, x, times, None))
    np.testing.assert_allclose(
        run(dpm_solver_2m(), times[:2]), run(ddim(), times[:2]), rtol=1e-6, atol=1e-6
    )
    assert np.abs(run(dpm_solver_2m(), times) - run(ddim(), times)).max() > 1e-2


@pytest.mark.parametrize("name", ["vp_cosine", "trigflow"])
def test_dpm_solver_leaves_pure_noise_alike_on_all_paths(name):
    # In float32 the level of pure noise is finite on these paths.
    def sampled(path):
        times = path.time_at(jnp.array([jnp.inf, 3.0, 0.4, 0.0]))
        return DPM_SOLVER(GAUSSIAN.denoiser(path), path, path.prior(X), times, None)

    np.testing.assert_allclose(sampled(PATHS[name]()), sampled(PATHS["linear"]()), atol=1e-5)


def test_dpm_solver_is_the_formula_of_the_paper():
    # Lu et al. 2022, algorithm 2, by a loop in NumPy's float64.
    path = PATHS["vp_ddpm"]()
    times, x = jnp.array([0.9, 0.7, 0.4, 0.25, 0.05]), X[:, :1]
    denoise = MIXTURE.denoiser(path)
    given = dpm_solver_2m()(denoise, path, x, times, None)
    alpha, sigma = np.asarray(path.alpha(times), float), np.asarray(path.sigma(times), float)
    log_snr = np.log(alpha / sigma)
    x, before = np.asarray(x, float), None
    for i in range(4):
        x_0 = np.asarray(denoise(jnp.float32(x), jnp.full(16, times[i])).x_0, float)
        h, d = log_snr[i + 1] - log_snr[i], x_0
        if i:
            r = (log_snr[i] - log_snr[i - 1]) / h
            d = (1.0 + 1.0 / (2.0 * r)) * x_0 - 1.0 / (2.0 * r) * before
        x, before = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * np.expm1(-h) * d, x_0
    np.testing.assert_allclose(given, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("solver", [ddim(), dpm_solver_2m()], ids=["ddim", "dpm_solver_2m"])
@pytest.mark.parametrize("name", PATHS)
def test_one_data_point_is_met_exactly(name, solver, steps):
    # x_0 is constant along the trajectory, and so is eps.
    path, point = PATHS[name](), jnp.array([0.4, -1.1])

    def denoise(x, t):
        t = align(t, x)
        return Endpoints(
            jnp.broadcast_to(point, x.shape), (x - path.alpha(t) * point) / path.sigma(t)
        )

    times = time_grid(spacing.uniform_spacing(path), steps)
    x = path.interpolate(jnp.broadcast_to(point, X.shape), X, jnp.full(16, times[0]))
    end = path.interpolate(jnp.broadcast_to(point, X.shape), X, jnp.full(16, times[-1]))
    np.testing.assert_allclose(solver(denoise, path, x, times, None), end, atol=2e-5)


@pytest.mark.parametrize("steps", [1, 2, 5, 32])
def test_ddim_gain_on_the_grid_of_angles(steps):
    # For data N(0, 1) a step by the angle a multiplies x by cos a; the exact map keeps x.
    path = PATHS["vp_cosine"]()
    denoise = Gaussian(jnp.zeros(2), jnp.ones(2)).denoiser(path)
    given = ddim()(denoise, path, X, time_grid(spacing.uniform_spacing(path), steps), None)
    gain = np.cos(np.pi / (2 * steps)) ** steps
    np.testing.assert_allclose(given, gain * X, rtol=1e-5, atol=1e-6)


def suits(path, solver):
    """Whether a solver takes a path: a diffusion needs a finite rate of noising."""
    return solver not in ("euler_maruyama", "exponential") or path in ("vp_ddpm", "vp_discrete")


@pytest.mark.parametrize("solver", SOLVERS)
def test_any_kind_of_prediction_gives_the_same_samples(solver):
    path = PATHS["trigflow" if suits("trigflow", solver) else "vp_ddpm"]()
    # Off the two ends, where some kinds carry no information.
    times = path.time_at(jnp.array([9.0, 3.0, 1.0, 0.3, 0.05]))
    exact = GAUSSIAN.denoiser(path)

    def through(kind, x, t):
        prediction = kind.encode(exact(x, t), x, coefficients(path, t, x))
        return endpoints(kind, prediction, x, t, path)

    branches = [exact, *(partial(through, kind) for kind in KINDS.values())]

    @jax.jit
    def run(index):
        denoise = lambda x, t: jax.lax.switch(index, branches, x, t)
        return SOLVERS[solver]()(denoise, path, X, times, KEYS)

    for index, name in enumerate(KINDS):
        np.testing.assert_allclose(run(index + 1), run(0), rtol=1e-3, atol=1e-3, err_msg=name)


@pytest.mark.parametrize(
    ("name", "evaluations"),
    [
        ("euler", 5),
        ("ddim", 5),
        ("heun", 9),
        ("genie", 5),
        ("deis", 5),
        ("dpm_solver_2m", 5),
        ("dpm_solver_3m", 5),
        ("unipc", 5),
        ("pndm", 14),
        ("ancestral", 5),
        ("churned_heun", 9),
    ],
)
def test_number_of_evaluations(name, evaluations):
    calls, path = [], PATHS["linear"]()

    def denoise(x, t):
        jax.debug.callback(lambda t: calls.append(float(t)), t[0])
        return Endpoints(x, x)

    times = jnp.linspace(1.0, 0.0, 6)
    jax.block_until_ready(SOLVERS[name]()(denoise, path, X, times, KEYS))
    jax.effects_barrier()
    assert len(calls) == evaluations
    assert 0.0 not in calls  # where some predictions carry no velocity


@pytest.mark.in_turn("name", 2)
@pytest.mark.parametrize(
    ("name", "solver"),
    [(name, solver) for name in PATHS for solver in SOLVERS if suits(name, solver)],
)
def test_samples_are_finite_from_pure_noise_to_the_data(name, solver):
    # The kind `velocity` through the hub, as a network gives it: at alpha = 0 and sigma = 0 too.
    path = PATHS[name]()
    kind, start = KINDS["velocity"], path.prior(X)

    def denoise(x, t):
        return endpoints(kind, GAUSSIAN.velocity(path, x, t), x, t, path)

    run = jax.jit(jax.vmap(lambda times: SOLVERS[solver]()(denoise, path, start, times, KEYS)))
    many = solver in ("deis", "dpm_solver_3m", "unipc", "pndm")  # more than one step
    for steps in (1, 5) if name == "linear" and not many else (5,):
        times = jnp.stack([time_grid(make(path), steps) for make in spacing.SPACINGS.values()])
        x = np.asarray(run(times))
        assert np.isfinite(x).all()
        # No solver leaves the scale of the data by far, even in one step; Euler's on vp_ddpm does.
        assert np.abs(x).max() < 20.0 or (name, solver) == ("vp_ddpm", "euler")


def test_heun_keeps_euler_rows_that_end_without_noise():
    path = PATHS["linear"]()
    t, s = jnp.array([0.8, 0.8]), jnp.array([0.0, 0.2])
    x, exact = X[:2], GAUSSIAN.denoiser(path)

    def denoise(x, t):
        # From x_0: at sigma = 0 eps is 0 / 0.
        return endpoints(KINDS["x_0"], exact(x, t).x_0, x, t, path)

    given = heun_step(denoise, path, x, t, s)
    predicted = STEPS["euler"](exact, path, x, t, s)
    velocity = 0.5 * (GAUSSIAN.velocity(path, x, t) + GAUSSIAN.velocity(path, predicted, s))
    np.testing.assert_allclose(given[0], predicted[0], rtol=1e-5)
    np.testing.assert_allclose(given[1], (x - 0.6 * velocity)[1], rtol=1e-4, atol=1e-5)
    assert jnp.abs(given[1] - predicted[1]).max() > 1e-2


def test_steps_take_a_time_per_row():
    path = PATHS["vp_cosine"]()
    t, s = jnp.linspace(0.4, 0.9, 16), jnp.linspace(0.1, 0.8, 16)
    for step in STEPS.values():
        together = step(GAUSSIAN.denoiser(path), path, X, t, s)
        alone = step(GAUSSIAN.denoiser(path), path, X[5:6], t[5:6], s[5:6])
        np.testing.assert_allclose(together[5:6], alone, rtol=1e-6)
