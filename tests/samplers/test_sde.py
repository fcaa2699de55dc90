import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.diffusion import spacing
from fewstep.diffusion.path import PATHS, align
from fewstep.diffusion.prediction import Endpoints
from fewstep.samplers.grids import time_grid
from fewstep.samplers.ode import heun
from fewstep.samplers.sde import added_noise, ancestral, churned_heun, noise_like
from tests.gaussian import Gaussian

GAUSSIAN = Gaussian(jnp.array([0.3, -0.7]), jnp.array([0.25, 1.7]))
ROWS = 8
X = jax.random.normal(jax.random.key(0), (ROWS, 2))
KEYS = jax.random.split(jax.random.key(1), ROWS)
POINT = jnp.array([0.4, -1.1])


def denoise_point(path):
    """The denoiser of data that is POINT alone."""

    def denoise(x, t):
        t = align(t, x)
        x_0 = jnp.broadcast_to(POINT, x.shape)
        return Endpoints(x_0, (x - path.alpha(t) * POINT) / path.sigma(t))

    return denoise


def response(monkeypatch, solver, denoise, path, times):
    """(offset, gain of x, gains [N] of the noises) of a sampler affine in x and its noises.

    Row 0 starts from 0 without noise, row 1 from 1, row 2 + i has 1 for the i-th noise.
    """
    count = len(times) - 1
    unit = jnp.eye(count + 2)[:, 1:]
    monkeypatch.setattr(
        "fewstep.samplers.sde.noise_like",
        lambda x, keys, index: jnp.broadcast_to(jnp.take(unit, index + 1, 1)[:, None], x.shape),
    )
    x = jnp.broadcast_to(unit[:, :1], (count + 2, 2))
    out = np.asarray(solver(denoise, path, x, times, None), np.float64)
    return out[0], out[1] - out[0], out[2:] - out[0]


@pytest.mark.parametrize("times", [(1.0, 0.4, 0.1), (0.95, 0.9, 0.5, 0.3, 0.02)])
@pytest.mark.parametrize("name", ["vp_cosine", "vp_ddpm"])
def test_large_variance_keeps_the_unit_normal_distribution(monkeypatch, name, times):
    path = PATHS[name]()
    denoise = Gaussian(jnp.zeros(2), jnp.ones(2)).denoiser(path)
    times = jnp.array(times)
    offset, gain, gains = response(monkeypatch, ancestral("large"), denoise, path, times)
    np.testing.assert_allclose(offset, 0.0, atol=1e-6)
    # The noise that the last step leaves out is all that is missing.
    _, left_out = added_noise(path, times[-2], times[-1])
    variance = gain**2 + (gains**2).sum(0) + float(left_out) ** 2
    np.testing.assert_allclose(variance, 1.0, rtol=1e-5)
    assert (gains[-1] == 0.0).all() and (gains[:-1] != 0.0).all()


@pytest.mark.parametrize("name", PATHS)
def test_small_variance_is_exact_for_one_data_point(monkeypatch, name):
    # From x_t ~ N(alpha_t mu, sigma_t^2), the distribution at s is N(alpha_s mu, sigma_s^2).
    path = PATHS[name]()
    times = path.time_at(jnp.array([40.0, 5.0, 1.0, 0.2, 0.05]))
    offset, gain, gains = response(monkeypatch, ancestral(), denoise_point(path), path, times)
    alpha, sigma = np.asarray(path.alpha(times), float), np.asarray(path.sigma(times), float)
    np.testing.assert_allclose(offset + gain * alpha[0] * POINT, alpha[-1] * POINT, rtol=1e-4)
    _, b = added_noise(path, times[-2], times[-1])
    left_out = (float(b) * sigma[-1] / sigma[-2]) ** 2
    variance = (gain * sigma[0]) ** 2 + (gains**2).sum(0) + left_out
    np.testing.assert_allclose(variance, sigma[-1] ** 2, rtol=1e-4)


def test_small_variance_is_ddim_with_eta_one():
    # Song et al. 2021 (DDIM), eq. 12 and 16, in their notation a = alpha^2 = 1 - sigma^2.
    path = PATHS["vp_cosine"]()
    times, x = jnp.array([0.9, 0.6, 0.3, 0.1]), X
    denoise = GAUSSIAN.denoiser(path)
    given = ancestral("small")(denoise, path, x, times, KEYS)
    for i in range(3):
        a_t, a_s = (float(path.alpha(time)) ** 2 for time in times[i : i + 2])
        x_0, eps = denoise(x, jnp.full(ROWS, times[i]))
        deviation = np.sqrt((1 - a_s) / (1 - a_t)) * np.sqrt(1 - a_t / a_s)
        x = a_s**0.5 * x_0 + (1 - a_s - deviation**2) ** 0.5 * eps
        x = x + (deviation * noise_like(x, KEYS, i) if i < 2 else 0.0)
    np.testing.assert_allclose(given, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_the_last_step_draws_no_noise(variance):
    path = PATHS["linear"]()
    # One step from pure noise to the data: the mean E[x_0 | x_1] = E[x_0] itself.
    given = ancestral(variance)(GAUSSIAN.denoiser(path), path, X, jnp.array([1.0, 0.0]), KEYS)
    np.testing.assert_allclose(given, np.tile(GAUSSIAN.mean, (ROWS, 1)), rtol=1e-6)


@pytest.mark.parametrize("name", PATHS)
def test_without_churn_it_is_heun(name):
    path = PATHS[name]()
    denoise, x = GAUSSIAN.denoiser(path), path.prior(X)
    times = time_grid(spacing.karras_spacing(path), 5)
    given = churned_heun(churn=0.0)(denoise, path, x, times, KEYS)
    np.testing.assert_allclose(given, heun()(denoise, path, x, times, None), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PATHS)
def test_added_noise_keeps_the_distribution_of_the_path(name):
    # At every pair of levels: a C_s a + b^2 = C_t, and the mean follows a.
    path = PATHS[name]()
    t, s = path.time_at(jnp.array([9.0, 1.0, 0.2])), path.time_at(jnp.array([1.0, 0.9, 0.01]))
    a, b = (part[:, None] for part in added_noise(path, t, s))
    mean_t, variance_t = GAUSSIAN.marginal(path, t)
    mean_s, variance_s = GAUSSIAN.marginal(path, s)
    np.testing.assert_allclose(a * mean_s, mean_t, rtol=1e-4)
    np.testing.assert_allclose(a**2 * variance_s + b**2, variance_t, rtol=1e-4)


@pytest.mark.parametrize("name", PATHS)
def test_churn_raises_the_noise_level_of_every_path_alike(name):
    # One step with a velocity of 0 shows the raised point, one with a unit velocity its time.
    path = PATHS[name]()
    rho, churn, scale = 2.0, 0.3, 1.1
    raised = rho * (1.0 + churn)
    times = path.time_at(jnp.array([rho, 0.1]))
    run = lambda denoise: churned_heun(churn, noise=scale)(denoise, path, X, times, KEYS)
    at_rest = run(lambda x, t: Endpoints(0.0 * x, 0.0 * x))
    t = path.time_at(jnp.float32(raised))
    alpha, before = path.alpha(t), path.alpha(times[0])
    noise = alpha * np.sqrt(raised**2 - rho**2) * noise_like(X, KEYS, 0)
    np.testing.assert_allclose(at_rest, alpha / before * X + scale * noise, rtol=1e-4, atol=1e-4)

    def moving(x, t):
        return Endpoints(0.0 * x, 1.0 / path.sigma_rate(align(t, x)) + 0.0 * x)

    np.testing.assert_allclose(at_rest - run(moving), t - times[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("low", "high"), [(2.5, 50.0), (0.05, 1.5)])
def test_no_churn_outside_its_range(low, high):
    path = PATHS["ve"]()
    solver = churned_heun(0.3, churn_min=low, churn_max=high)
    at_rest = lambda x, t: Endpoints(0.0 * x, 0.0 * x)
    np.testing.assert_array_equal(solver(at_rest, path, X, jnp.array([2.0, 0.1]), KEYS), X)


@pytest.mark.parametrize("churn", [1.5, 40.0])  # 40 / 6 is cut at sqrt(2) - 1
def test_churned_heun_is_the_algorithm_of_the_paper(churn):
    # Karras et al. 2022, algorithm 2, by a loop in NumPy's float64; here D is Gaussian.
    path, steps, low, high, scale = PATHS["ve"](), 6, 0.05, 50.0, 1.003
    mean, variance = (np.asarray(part, np.float64) for part in GAUSSIAN)
    slope = lambda x, t: t * (x - mean) / (variance + t**2)
    times = time_grid(spacing.karras_spacing(path), steps)
    start = path.prior(X)
    given = churned_heun(churn)(GAUSSIAN.denoiser(path), path, start, times, KEYS)
    t, x = np.asarray(times, np.float64), np.asarray(start, np.float64)
    for i in range(steps):
        gamma = min(churn / steps, np.sqrt(2.0) - 1.0) if low <= t[i] <= high else 0.0
        hat = t[i] * (1.0 + gamma)
        z = np.asarray(noise_like(X, KEYS, i), np.float64)
        x = x + scale * np.sqrt(hat**2 - t[i] ** 2) * z
        d = slope(x, hat)
        after = x + (t[i + 1] - hat) * d
        if i < steps - 1:
            after = x + (t[i + 1] - hat) * 0.5 * (d + slope(after, t[i + 1]))
        x = after
    np.testing.assert_allclose(given, x, rtol=1e-3, atol=1e-3)


def test_many_churned_steps_reach_the_variance_of_the_data():
    path, rows = PATHS["linear"](), 20_000
    start = path.prior(jax.random.normal(jax.random.key(2), (rows, 2)))
    times = time_grid(spacing.karras_spacing(path), 160)
    solver = churned_heun(noise=1.0)
    x = jax.jit(lambda x, keys: solver(GAUSSIAN.denoiser(path), path, x, times, keys))(
        start, jax.random.split(jax.random.key(3), rows)
    )
    np.testing.assert_allclose(x.var(0), GAUSSIAN.variance, rtol=0.04)
    np.testing.assert_allclose(x.mean(0), GAUSSIAN.mean, atol=0.04)


@pytest.mark.parametrize(
    "solver", [ancestral("large"), churned_heun()], ids=["ancestral", "churned_heun"]
)
def test_a_row_draws_from_its_own_key(solver):
    path, order = PATHS["vp_cosine"](), jnp.array([5, 2, 0])
    times = jnp.array([0.9, 0.5, 0.3, 0.1])
    run = jax.jit(lambda x, keys: solver(GAUSSIAN.denoiser(path), path, x, times, keys))
    np.testing.assert_allclose(run(X[order], KEYS[order]), run(X, KEYS)[order], rtol=1e-5)
    # And the rows' draws differ, as do those of the steps.
    draws = jnp.stack([noise_like(X, KEYS, index) for index in range(2)])
    assert len(np.unique(draws)) == draws.size


def test_fields_out_of_range():
    with pytest.raises(ValueError, match="variance='middle'"):
        ancestral("middle")
    for fields in (
        {"churn": -1.0},
        {"noise": 0.0},
        {"churn_min": -0.1},
        {"churn_min": 2.0, "churn_max": 1.0},
    ):
        with pytest.raises(ValueError, match="churned_heun needs churn >= 0"):
            churned_heun(**fields)


def test_fields_have_edges():
    for fields in ({"churn": 0.0}, {"noise": 1e-3}, {"churn_min": 0.0}, {"churn_min": 50.0}):
        churned_heun(**fields)
    with pytest.raises(ValueError, match="0 <= churn_min <= churn_max"):
        churned_heun(churn_min=50.1)


@pytest.mark.parametrize("name", PATHS)
def test_nothing_is_added_without_churn_or_beyond_the_path_s_end(name):
    path = PATHS[name]()
    at_rest = lambda x, t: Endpoints(0.0 * x, 0.0 * x)
    times = path.time_at(jnp.geomspace(50.0, 0.05, 40))
    np.testing.assert_array_equal(churned_heun(0.0)(at_rest, path, X, times, KEYS), X)
    seen = []

    def watched(x, t):
        jax.debug.callback(lambda t: seen.append(float(t)), t[0])
        return Endpoints(0.0 * x, 0.0 * x)

    short = path._replace(t_max=float(path.time_at(jnp.float32(1.1))))
    times = path.time_at(jnp.array([1.0, 0.5]))
    churned_heun(40.0)(watched, short, X, times, KEYS)
    jax.effects_barrier()
    assert max(seen) == np.float32(short.t_max)


def test_both_ends_of_the_churned_levels_are_churned():
    path = PATHS["ve"]()
    at_rest = lambda x, t: Endpoints(0.0 * x, 0.0 * x)
    for low, high, churned in ((2.0, 50.0, True), (0.05, 2.0, True), (2.01, 50.0, False)):
        solver = churned_heun(0.3, churn_min=low, churn_max=high)
        x = solver(at_rest, path, X, jnp.array([2.0, 0.1]), KEYS)
        assert bool((x != X).any()) == churned


def test_the_defaults_are_the_paper_s():
    path = PATHS["ve"]()
    times = jnp.array([60.0, 49.0, 3.0, 0.06, 0.04, 0.01])
    run = lambda solver: solver(GAUSSIAN.denoiser(path), path, X, times, KEYS)
    np.testing.assert_array_equal(run(churned_heun()), run(churned_heun(40.0, 0.05, 50.0, 1.003)))
    np.testing.assert_array_equal(run(ancestral()), run(ancestral("small")))
