import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.diffusion.path import PATHS, change_path, trigflow, ve, vp_ddpm, vp_discrete
from tests.gaussian import Gaussian

GAUSSIAN = Gaussian(jnp.array([0.3, -0.7]), jnp.array([0.25, 1.7]))


def inner_times(path, count=9):
    """Times strictly inside a path, where every schedule is smooth."""
    return jnp.linspace(path.t_min, path.t_max, count + 2)[1:-1]


@pytest.mark.parametrize("name", PATHS)
def test_rates_match_central_differences(name):
    with jax.enable_x64(True):
        path = PATHS[name]()
        t = jnp.asarray(inner_times(path), jnp.float64)
        h = 1e-6
        for schedule, rate in ((path.alpha, path.alpha_rate), (path.sigma, path.sigma_rate)):
            expected = (schedule(t + h) - schedule(t - h)) / (2 * h)
            np.testing.assert_allclose(rate(t), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", PATHS)
def test_time_at_inverts_the_noise_to_signal_ratio(name):
    path = PATHS[name]()
    t = inner_times(path)
    np.testing.assert_allclose(path.time_at(path.rho(t)), t, rtol=2e-5)


@pytest.mark.parametrize("name", ["vp_cosine", "vp_ddpm", "vp_discrete", "trigflow"])
def test_variance_is_preserved(name):
    path = PATHS[name]() if name != "trigflow" else PATHS[name](sigma_data=1.0)
    t = inner_times(path)
    np.testing.assert_allclose(path.alpha(t) ** 2 + path.sigma(t) ** 2, 1.0, rtol=1e-6)


def test_vp_ddpm_is_the_limit_of_the_discrete_schedule():
    # Ho et al. 2020: a thousand betas from 1e-4 to 0.02.
    alpha_bar = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))
    n = np.array([10, 100, 300, 500])
    continuous = PATHS["vp_ddpm"]().alpha(jnp.asarray(n / 1000.0)) ** 2
    np.testing.assert_allclose(continuous, alpha_bar[n - 1], rtol=1e-2)


def levels_of_ddpm():
    """The products of 1 - beta over the first k + 1 of a thousand betas (Ho et al. 2020)."""
    return np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))


def test_vp_discrete_has_the_levels_of_ddpm_at_every_step():
    path, alpha_bar = vp_discrete(), levels_of_ddpm()
    t = jnp.asarray(np.arange(1, 1001) / 1000.0, jnp.float32)
    alpha, sigma = (np.asarray(schedule(t), np.float64) for schedule in (path.alpha, path.sigma))
    np.testing.assert_allclose(alpha**2, alpha_bar, atol=3e-7)
    log_snr = np.log(alpha_bar / (1.0 - alpha_bar))
    np.testing.assert_allclose(2.0 * np.log(alpha / sigma), log_snr, atol=5e-6)
    np.testing.assert_allclose(1000.0 * path.clock(t), np.arange(1000), rtol=3e-7, atol=3e-7)


def test_vp_discrete_finds_the_step_of_a_level():
    alpha_bar = levels_of_ddpm()
    rho = jnp.asarray(np.sqrt((1.0 - alpha_bar) / alpha_bar), jnp.float32)
    t = np.asarray(vp_discrete().time_at(rho))
    np.testing.assert_allclose(t, np.arange(1, 1001) / 1000.0, atol=3e-7)


def test_vp_discrete_starts_at_the_data_and_ends_at_the_last_beta():
    path, ends = vp_discrete(), jnp.array([0.0, 1.0])
    assert path.alpha(ends)[0] == 1.0 and path.sigma(ends)[0] == 0.0
    assert np.isfinite(path.sigma_rate(ends)).all()
    found = path.time_at(jnp.array([0.0, 1e6, jnp.inf]))
    np.testing.assert_allclose(found, [0.0, 1.0, 1.0], rtol=3e-7)


@pytest.mark.parametrize("name", [name for name in PATHS if name != "ve"])
def test_no_noise_and_pure_noise_have_a_time(name):
    path = PATHS[name]()
    found = path.time_at(jnp.array([0.0, 1e9, jnp.inf]))
    np.testing.assert_allclose(found, [0.0, path.t_max, path.t_max], rtol=3e-7)


def test_noise_may_begin_at_a_rate_of_zero():
    path = vp_ddpm(beta_min=0.0)
    t = jnp.array([0.0, 0.1, 0.7, 1.0])
    np.testing.assert_allclose(path.time_at(path.rho(t)), t, rtol=2e-5)


def test_a_diffusion_of_a_density_starts_at_the_standard_normal():
    path = vp_ddpm(beta_max=5.0).from_standard_normal()
    assert float(vp_ddpm(beta_max=5.0).prior(jnp.ones(1))[0]) < 0.97
    assert float(path.prior(jnp.ones(1))[0]) == 1.0
    assert float(ve().from_standard_normal().prior(jnp.ones(1))[0]) == 80.0


@pytest.mark.parametrize("source", PATHS)
@pytest.mark.parametrize("target", PATHS)
def test_change_of_path_keeps_the_conditional_mean(source, target):
    # E[x_0 | x_t] depends on x_t / alpha and sigma / alpha alone, so it must survive the change.
    a, b = PATHS[source](), PATHS[target]()
    rho = jnp.array([0.05, 0.4, 1.0, 3.0, 20.0])
    t = a.time_at(rho)
    x = a.interpolate(GAUSSIAN.sample(jax.random.key(0), 5), jnp.ones((5, 2)), t)
    x_target, t_target = change_path(a, b, x, t)
    np.testing.assert_allclose(
        GAUSSIAN.x_0(b, x_target, t_target), GAUSSIAN.x_0(a, x, t), rtol=2e-4, atol=2e-5
    )


def test_change_of_path_carries_pure_noise():
    linear, trig = PATHS["linear"](), PATHS["trigflow"](sigma_data=0.5)
    x, t = change_path(linear, trig, jnp.array([[2.0]]), jnp.array([1.0]))
    np.testing.assert_allclose((x[0, 0], t[0]), (1.0, np.pi / 2), rtol=1e-6)


@pytest.mark.parametrize("name", PATHS)
def test_change_of_path_maps_pure_noise_to_the_prior_of_every_path(name):
    path, eps = PATHS[name](), jnp.array([[1.5], [-0.5]])
    x, t = change_path(PATHS["linear"](), path, eps, jnp.ones(2))
    np.testing.assert_allclose(t, path.t_max, rtol=1e-5)
    np.testing.assert_allclose(x, path.prior(eps), rtol=1e-4)


@pytest.mark.parametrize("name", PATHS)
def test_gaussian_velocity_is_the_mean_of_the_conditional_velocity(name):
    # E[alpha' x_0 + sigma' eps | x_t], with the conditional means in place of x_0 and eps.
    path = PATHS[name]()
    t = inner_times(path, 5)
    x = jax.random.normal(jax.random.key(1), (5, 2))
    mean = path.velocity(GAUSSIAN.x_0(path, x, t), GAUSSIAN.eps(path, x, t), t)
    np.testing.assert_allclose(GAUSSIAN.velocity(path, x, t), mean, rtol=2e-4, atol=2e-4)


def test_prior_has_the_scale_of_the_last_time():
    np.testing.assert_allclose(ve(sigma_max=80.0).prior(jnp.array([[1.0, -2.0]])), [[80.0, -160.0]])


@pytest.mark.parametrize("name", PATHS)
def test_clock(name):
    path = PATHS[name]()
    t = inner_times(path)
    # EDM's c_noise on `ve` (Karras et al. 2022, table 1), DDPM's k / 1000 for step k at
    # (k + 1) / 1000, the time itself elsewhere.
    clocks = {"ve": np.log(np.asarray(t)) / 4.0, "vp_discrete": np.asarray(t) - 0.001}
    np.testing.assert_allclose(path.clock(t), clocks.get(name, t), rtol=1e-5)


def test_clock_is_finite_without_noise():
    assert np.isfinite(ve(sigma_min=0.0).clock(jnp.zeros(1))).all()


@pytest.mark.parametrize("name", PATHS)
def test_noise_to_signal_ratio_is_positive_at_the_noisy_end(name):
    # In float32 the cosine at the end of vp_cosine and trigflow is a little below 0.
    path = PATHS[name]()
    rho = float(path.rho(jnp.float32(path.t_max)))
    assert rho > 1e5 if name in ("linear", "vp_cosine", "trigflow") else rho > 79.0
    assert float(path.time_at(jnp.float32(rho))) == pytest.approx(path.t_max, rel=1e-5)


def test_fields_have_edges():
    ve(0.0, 1.0)
    for ends in ((-1e-3, 1.0), (1.0, 1.0), (2.0, 1.0)):
        with pytest.raises(ValueError, match="0 <= sigma_min < sigma_max"):
            ve(*ends)
    trigflow(1e-3)
    for deviation in (0.0, -0.5):
        with pytest.raises(ValueError, match=f"path.sigma_data={deviation} must be positive"):
            trigflow(deviation)


def test_defaults_are_the_papers():
    t = jnp.linspace(0.1, 0.9, 9)
    assert (ve().t_min, ve().t_max) == (0.002, 80.0)
    assert (vp_ddpm().t_min, vp_ddpm().t_max) == (1e-5, 1.0)
    for default, explicit in ((vp_ddpm(), vp_ddpm(0.1, 20.0)), (trigflow(), trigflow(0.5))):
        np.testing.assert_array_equal(default.alpha(t), explicit.alpha(t))
        np.testing.assert_array_equal(default.sigma(t), explicit.sigma(t))
