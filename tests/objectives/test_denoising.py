import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.diffusion.path import PATHS
from fewstep.diffusion.prediction import KINDS, convert
from fewstep.diffusion.time_sampling import log_normal_times, uniform_times
from fewstep.objectives.base import noise_level_means
from fewstep.objectives.denoising import denoising, prediction_loss
from fewstep.samplers import SOLVERS
from tests.gaussian import Gaussian
from tests.networks import affine_network, build_model, exact_denoiser, exact_network

GAUSSIAN = Gaussian(jnp.array([0.3, -0.7]), jnp.array([0.25, 1.7]))
COUNT = 100_000
KEY = jax.random.key(0)


def batch(count=COUNT):
    return {"x": GAUSSIAN.sample(jax.random.key(1), count), "label": jnp.zeros(count, jnp.int32)}


def evaluate_loss(objective, params, data=None, key=KEY):
    loss, metrics = objective.players["network"].loss(params, {}, data or batch(), key, 0)
    return loss, metrics


@pytest.mark.parametrize("kind", ["F", "eps", "v", "x_0", "velocity"])
def test_every_kind_has_its_known_minimum_and_no_gradient_there(kind):
    # Minimum of the x_0 error: sigma^2 tr(S C^-1) / D (METHODS of the field: DSM), and the weight
    # that each kind gives it, in closed form on a variance-preserving path.
    # The path stops short of pure noise, where eps would say nothing of the data.
    path = PATHS["vp_cosine"]()._replace(t_max=0.9)
    model = exact_denoiser(GAUSSIAN, path, kind)
    t = jnp.full(COUNT, 0.4)
    objective = denoising(model, time_sampler=lambda key, count: t, label_dropout=0.0)
    loss = lambda params: evaluate_loss(objective, params)[0].mean()
    value, gradient = jax.value_and_grad(loss)(model.network.init(KEY))
    alpha, sigma = float(path.alpha(t[0])), float(path.sigma(t[0]))
    weight = {
        "x_0": 1.0,
        "eps": alpha**2 / sigma**2,
        "v": 1.0 + alpha**2 / sigma**2,
        "velocity": (np.pi / 2) ** 2 / sigma**2,
        "F": (alpha**2 * 0.25 + sigma**2) / (0.5 * sigma) ** 2,
    }[kind]
    variance = np.asarray(GAUSSIAN.variance)
    minimum = (sigma**2 * variance / (alpha**2 * variance + sigma**2)).mean()
    assert value == pytest.approx(weight * minimum, rel=0.02)
    assert abs(gradient["offset"]) < 0.03 * weight**0.5


def test_edm_has_minimum_one_on_data_of_its_own_deviation():
    # N(0, sigma_data^2): F* = 0 and lambda c_out^2 = 1, at every noise level.
    path = PATHS["ve"]()
    zero = exact_network(lambda x, t, s, condition: jnp.zeros_like(x))
    objective = denoising(
        build_model(zero, path, "F"), time_sampler=log_normal_times(path, -1.2, 1.2)
    )
    data = {"x": 0.5 * jax.random.normal(KEY, (COUNT, 2)), "label": jnp.zeros(COUNT, jnp.int32)}
    loss, metrics = evaluate_loss(objective, zero.init(KEY), data, jax.random.key(5))
    assert float(loss.mean()) == pytest.approx(1.0, abs=0.02)
    for name, m in metrics.items():
        if m.count > 1000:
            assert float(m.total / m.count) == pytest.approx(1.0, abs=0.1), name


def test_edm_gives_the_network_scaled_inputs_and_its_c_noise():
    seen = {}

    def apply(params, x, t, s, condition, *, train=False, rng=None):
        seen.update(x=np.asarray(x), t=np.asarray(t))
        return x

    path = PATHS["ve"]()
    model = build_model(exact_network(None)._replace(apply=apply), path, "F")
    t = jnp.array([0.01, 0.5, 40.0])
    x = jnp.array([[1.0], [2.0], [-30.0]])
    model.predict({}, x, t, t, {})
    np.testing.assert_allclose(seen["x"][:, 0], x[:, 0] / np.sqrt(0.25 + np.array(t) ** 2), 1e-6)
    np.testing.assert_allclose(seen["t"], np.log(np.array(t)) / 4, rtol=1e-5)
    given = dict(seen)
    seen.clear()
    features = lambda params, x, t, s, condition, names: (apply(params, x, t, s, condition), {})
    model._replace(network=model.network._replace(features=features)).features({}, x, t, t, {}, ())
    jax.tree.map(np.testing.assert_array_equal, seen, given)


def minimum(path):
    """(alpha' sigma - alpha sigma')^2 tr(S / C) / D, averaged over uniform t: METHODS 0.4."""
    t = jnp.linspace(path.t_min, path.t_max, 20_001)
    _, variance = GAUSSIAN.marginal(path, t)
    wronskian = path.alpha_rate(t) * path.sigma(t) - path.alpha(t) * path.sigma_rate(t)
    return float(jnp.mean(wronskian[:, None] ** 2 * GAUSSIAN.variance / variance))


@pytest.mark.parametrize("name", ["linear", "vp_cosine", "trigflow"])
def test_loss_at_the_exact_velocity_is_the_known_minimum_with_zero_gradient(name):
    path = PATHS[name]()
    network = exact_network(lambda x, t, s, condition: GAUSSIAN.velocity(path, x, t))
    objective = denoising(build_model(network, path))
    mean_loss = lambda params: evaluate_loss(objective, params)[0].mean()
    params = network.init(KEY)
    value, gradient = jax.value_and_grad(mean_loss)(params)
    assert value == pytest.approx(minimum(path), rel=0.02)
    assert abs(gradient["offset"]) < 0.02
    beside = mean_loss({"offset": jnp.float32(0.5)})
    assert float(beside - value) == pytest.approx(0.25, abs=0.02)


def test_loss_is_the_paper_s_in_numpy():
    # The reference uses the key splits of the loss for t, eps and labels, and nothing else of it.
    network, path = affine_network(), PATHS["linear"]()
    objective = denoising(build_model(network, path), label_dropout=0.5)
    data = {"x": GAUSSIAN.sample(KEY, 16), "label": jnp.arange(16) % 3}
    loss, _ = evaluate_loss(objective, network.init(KEY), data)
    key_t, key_eps, key_label, _ = jax.random.split(KEY, 4)
    t = np.asarray(uniform_times(path)(key_t, 16))[:, None]
    eps = np.asarray(jax.random.normal(key_eps, (16, 2)))
    null = np.asarray(jax.random.bernoulli(key_label, 0.5, (16,)))
    assert 0 < null.sum() < 16
    x_0 = np.asarray(data["x"])
    bias = np.linspace(-1, 1, 4)[np.where(null, 3, np.arange(16) % 3)][:, None]
    prediction = 0.3 * ((1 - t) * x_0 + t * eps) - 0.2 + 0.5 * t + bias
    expected = ((prediction - (eps - x_0)) ** 2).mean(axis=1)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["linear", "vp_cosine", "trigflow"])
def test_noise_levels_are_binned_from_data_to_noise(name):
    path = PATHS[name]()
    t = path.time_at(jnp.tan(jnp.pi / 2 * jnp.array([0.01, 0.2, 0.3, 0.99])))
    bins = noise_level_means("loss", jnp.array([1.0, 2.0, 3.0, 4.0]), t, path)
    totals = [float(bins[f"loss_noise_{i}"].total) for i in range(8)]
    assert totals == [1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 0.0, 4.0]


@pytest.mark.parametrize("name", ["vp_ddpm", "ve"])
def test_errors_of_tilt_weigh_as_those_of_v(name):
    path, count = PATHS[name](), 1000
    keys = jax.random.split(KEY, 4)
    x_0, eps, v = (jax.random.normal(key, (count, 2)) for key in keys[:3])
    t = path.t_min * (path.t_max / path.t_min) ** jax.random.uniform(keys[3], (count,))
    x_t = path.interpolate(x_0, eps, t)
    tilt = convert(v, x_t, t, path, source=KINDS["v"], to=KINDS["tilt"])
    of_v, of_tilt = (
        prediction_loss(build_model(affine_network(), path, kind), prediction, x_0, eps, t)[0]
        for kind, prediction in (("v", v), ("tilt", tilt))
    )
    np.testing.assert_allclose(of_tilt, of_v, rtol=1e-3, atol=1e-4)


def test_the_error_of_tilt_is_finite_without_noise():
    path = PATHS["linear"]()
    x_0, eps, tilt = (jax.random.normal(key, (4, 2)) for key in jax.random.split(KEY, 3))
    model = build_model(affine_network(), path, "tilt")
    loss = prediction_loss(model, tilt, x_0, eps, jnp.zeros(4))[0]
    np.testing.assert_allclose(loss, np.square(eps).mean(axis=1), rtol=1e-5)  # v = eps - 0 tilt


def test_loss_by_noise_level_adds_up():
    network = exact_network(lambda x, t, s, condition: jnp.zeros_like(x))
    loss, metrics = evaluate_loss(
        denoising(build_model(network, PATHS["linear"]())), network.init(KEY)
    )
    bins = [m for name, m in metrics.items() if name.startswith("loss_noise")]
    assert sum(float(m.total) for m in bins) == pytest.approx(float(loss.sum()), rel=1e-3)
    assert sum(int(m.count) for m in bins) == COUNT


@pytest.mark.parametrize(
    ("solver", "steps", "tolerance"), [("euler", 400, 0.02), ("heun", 40, 0.02)]
)
def test_samples_of_the_exact_velocity_have_the_distribution_of_the_data(solver, steps, tolerance):
    path = PATHS["linear"]()
    network = exact_network(lambda x, t, s, condition: GAUSSIAN.velocity(path, x, t))
    objective = denoising(build_model(network, path), solver=SOLVERS[solver]())
    eps = jax.random.normal(KEY, (COUNT, 2))
    label = jnp.zeros(COUNT, jnp.int32)
    x_0 = objective.sample(
        network.init(KEY), eps, {"label": label}, None, steps=steps, guidance_scale=1.0
    )
    np.testing.assert_allclose(x_0.mean(0), GAUSSIAN.mean, atol=tolerance)
    np.testing.assert_allclose(x_0.var(0), GAUSSIAN.variance, rtol=tolerance)


def test_one_euler_step_gives_the_data_mean():
    # At t = 1 the exact velocity is x - mean, so the result of one step is the mean for any noise.
    path = PATHS["linear"]()
    network = exact_network(lambda x, t, s, condition: GAUSSIAN.velocity(path, x, t))
    eps = jax.random.normal(KEY, (5, 2))
    x_0 = denoising(build_model(network, path)).sample(
        network.init(KEY), eps, {"label": jnp.zeros(5, int)}, None, steps=1, guidance_scale=1.0
    )
    np.testing.assert_allclose(x_0, jnp.tile(GAUSSIAN.mean, (5, 1)), atol=1e-6)


def test_data_and_pure_noise_are_in_the_first_and_the_last_bin():
    path = PATHS["linear"]()
    bins = noise_level_means("loss", jnp.array([2.0, 3.0]), jnp.array([0.0, 1.0]), path)
    counted = {name: float(mean.total) for name, mean in bins.items() if mean.count > 0}
    assert counted == {"loss_noise_0": 2.0, "loss_noise_7": 3.0}
