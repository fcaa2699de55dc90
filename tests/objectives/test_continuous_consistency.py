import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.diffusion.path import PATHS, trigflow
from fewstep.models.mlp import mlp
from fewstep.models.network import Network
from fewstep.objectives.continuous_consistency import (
    continuous_distillation,
    continuous_training,
    normalize_tangent,
    tangent,
)
from tests.gaussian import Gaussian
from tests.networks import affine_network, build_model, exact_consistency, exact_denoiser

KEY = jax.random.key(0)
GAUSSIAN = Gaussian(jnp.array([0.3, -0.7]), jnp.array([0.25, 1.7]))
SIGMA_DATA = 0.5
PATH = trigflow(SIGMA_DATA)


def random_points(count=500, low=0.05, high=1.5):
    x_0, eps = GAUSSIAN.sample(KEY, count), jax.random.normal(jax.random.key(1), (count, 2))
    t = jnp.linspace(low, high, count)
    return x_0, eps, t, PATH.interpolate(x_0, eps, t)


def model_velocity(model):
    params = model.network.init(KEY)
    label = lambda x: {"label": jnp.zeros(x.shape[0], jnp.int32)}
    return lambda x, t: model.predict(params, x, t, t, label(x))


def bent_velocity(x, t):
    """A velocity that is smooth in both arguments and not that of a consistency function."""
    return jnp.sin(x + t[:, None]) - 0.3 * x


def test_tangent_vanishes_at_the_exact_consistency_function():
    _, _, t, x_t = random_points()
    v = model_velocity(exact_consistency(GAUSSIAN, PATH))
    rate = GAUSSIAN.velocity(PATH, x_t, t)
    np.testing.assert_allclose(tangent(v, x_t, t, rate, 1.0)[1], 0.0, atol=2e-4)
    assert jnp.abs(tangent(v, x_t, t, rate, 0.5)[1]).max() > 0.05
    assert jnp.abs(tangent(bent_velocity, x_t, t, rate, 1.0)[1]).max() > 0.05


def test_tangent_is_cos_t_times_the_derivative_of_f_along_the_trajectory():
    # By central differences in float64 along the straight line (x_t + h dx/dt, t + h).
    _, _, t, x_t = (np.asarray(a, np.float64) for a in random_points())
    with jax.enable_x64(True):
        t, x_t = jnp.asarray(t), jnp.asarray(x_t)
        rate = GAUSSIAN.velocity(PATH, x_t, t)

        def f(h):
            x, time = x_t + h * rate, t + h
            return jnp.cos(time)[:, None] * x - jnp.sin(time)[:, None] * bent_velocity(x, time)

        derivative = (f(1e-5) - f(-1e-5)) / 2e-5
        v, g = tangent(bent_velocity, x_t, t, rate, 1.0)
        np.testing.assert_allclose(g, jnp.cos(t)[:, None] * derivative, atol=1e-7)
        np.testing.assert_allclose(v, bent_velocity(x_t, t), rtol=1e-6)


def test_without_warmup_it_is_the_diffusion_regression():
    # r = 0: g = cos^2 t (dx/dt - V), so the target F + g leads to the velocity.
    x_0, eps, t, x_t = random_points()
    rate = PATH.velocity(x_0, eps, t)
    v, g = tangent(bent_velocity, x_t, t, rate, 0.0)
    np.testing.assert_allclose(g, jnp.cos(t)[:, None] ** 2 * (rate - v), atol=1e-6)


def test_known_solution_on_data_of_the_path_s_deviation():
    # N(0, sigma_data^2): F* = -tan(t / 2) x / sigma_data, f = x; the velocity field is 0.
    _, _, t, x_t = random_points()
    v = lambda x, t: -jnp.tan(0.5 * t)[:, None] * x
    g = tangent(v, x_t, t, jnp.zeros_like(x_t), 1.0)[1]
    np.testing.assert_allclose(g, 0.0, atol=1e-5)


def conditional_mean(function, t=0.8, count=60):
    """E[g(x_0, eps) | x_t] against g of the conditional mean, on a line, by quadrature.

    Returns (mean of `function` of the sample's tangent, `function` of the teacher's tangent).
    """
    distribution = Gaussian(jnp.array([0.4]), jnp.array([0.6]))
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    time, x_t = jnp.full(count, t), jnp.full((count, 1), 0.7)
    # x_0 | x_t is normal with mean E[x_0 | x_t] and variance sigma^2 S / C.
    alpha, sigma = PATH.alpha(time)[0], PATH.sigma(time)[0]
    variance = sigma**2 * 0.6 / (alpha**2 * 0.6 + sigma**2)
    x_0 = distribution.x_0(PATH, x_t, time) + jnp.sqrt(variance) * jnp.asarray(nodes)[:, None]
    eps = (x_t - alpha * x_0) / sigma
    sample = tangent(bent_velocity, x_t, time, PATH.velocity(x_0, eps, time), 1.0)[1]
    teacher = tangent(bent_velocity, x_t, time, distribution.velocity(PATH, x_t, time), 1.0)[1]
    return np.average(function(sample)[:, 0], weights=weights), float(function(teacher)[0, 0])


def test_training_tangent_is_unbiased_for_the_distillation_tangent_before_normalisation_only():
    sample, teacher = conditional_mean(lambda g: g)
    assert sample == pytest.approx(teacher, rel=1e-4)
    sample, teacher = conditional_mean(lambda g: normalize_tangent(g, 0.1))
    # About 2% here, 20% where the noise of dx/dt is larger than the tangent.
    assert abs(sample - teacher) > 0.01 * abs(teacher)


def test_normalised_tangents_have_norm_below_one():
    g = jnp.array([[[3.0, 4.0]], [[0.0, 0.0]], [[300.0, -400.0]]])
    norms = jnp.sqrt(jnp.square(normalize_tangent(g, 0.1)).sum(axis=(1, 2)))
    np.testing.assert_allclose(norms, [5 / 5.1, 0.0, 500 / 500.1], rtol=1e-6)


def run(objective, params, networks=None, step=10_000, key=KEY):
    data = {"x": GAUSSIAN.sample(KEY, 2000), "label": jnp.zeros(2000, jnp.int32)}
    return objective.players["network"].loss(params, networks or {}, data, key, jnp.int32(step))


def test_distillation_loss_is_zero_at_the_exact_function_and_not_beside_it():
    student = exact_consistency(GAUSSIAN, PATH)
    teacher = exact_denoiser(GAUSSIAN, PATH)

    def apply(params, *inputs, **kwargs):
        values = (m.network.apply(params, *inputs, **kwargs) for m in (teacher, student))
        return jnp.where(params["teaches"] > 0, *values)

    model = student._replace(network=student.network._replace(apply=apply))
    objective = continuous_distillation(model, adaptive_weight=False)
    params = {"offset": jnp.zeros(()), "teaches": jnp.zeros(())}
    networks = {"teacher": {**params, "teaches": jnp.ones(())}}
    at = run(objective, params, networks)[0]
    beside = run(objective, {**params, "offset": jnp.float32(0.2)}, networks)[0]
    assert float(at.mean()) < 1e-5
    assert float(beside.mean()) > 0.01
    assert objective.frozen == ("teacher",)


def weighted_network():
    """`affine_network`, with a learned log-weight w(t) = c t."""
    network = affine_network()
    return network._replace(log_weight=lambda params, t: params["c"] * t)


def test_loss_in_numpy():
    # The affine network V = a x + b + c t + e has dV/dt = a dx/dt + c along a trajectory.
    network = weighted_network()
    fixed = jnp.linspace(0.1, 1.4, 2000)
    objective = continuous_training(
        build_model(network, PATH), tangent_warmup=20, time_sampler=lambda key, count: fixed
    )
    loss, metrics = run(objective, network.init(KEY), step=5)
    _, key_eps, _ = jax.random.split(KEY, 3)
    x_0 = np.asarray(GAUSSIAN.sample(KEY, 2000), np.float64)
    z = SIGMA_DATA * np.asarray(jax.random.normal(key_eps, (2000, 2)), np.float64)
    t = np.asarray(fixed, np.float64)[:, None]
    cos, sin = np.cos(t), np.sin(t)
    x_t, rate = cos * x_0 + sin * z, cos * z - sin * x_0
    v = 0.3 * x_t - 0.2 + 0.5 * t - 1.0
    g = -(cos**2) * (v - rate) - 5 / 20 * cos * sin * (x_t + 0.3 * rate + 0.5)
    g /= np.linalg.norm(g, axis=1, keepdims=True) + 0.1
    error = (g**2).mean(axis=1)  # F - F_detached is 0
    log_weight = 0.5 * t[:, 0]
    np.testing.assert_allclose(loss, np.exp(log_weight) * error - log_weight, rtol=1e-4, atol=1e-6)


def test_gradient_is_that_of_the_consistency_inner_product():
    # grad || F - F_detached - g ||^2 = -2 <grad F, g>, with V = sigma_data F.
    network = affine_network()
    fixed = jnp.linspace(0.1, 1.4, 2000)
    model = build_model(network, PATH)
    objective = continuous_training(
        model, adaptive_weight=False, tangent_scale=1.0, time_sampler=lambda key, count: fixed
    )
    params = network.init(KEY)
    gradient = jax.grad(lambda p: run(objective, p)[0].mean())(params)
    _, key_eps, _ = jax.random.split(KEY, 3)
    x_0, eps = GAUSSIAN.sample(KEY, 2000), jax.random.normal(key_eps, (2000, 2))
    x_t, rate = PATH.interpolate(x_0, eps, fixed), PATH.velocity(x_0, eps, fixed)
    label = {"label": jnp.zeros(2000, jnp.int32)}
    velocity = lambda p: lambda x, t: network.apply(p, x, t, t, label)
    g = normalize_tangent(tangent(velocity(params), x_t, fixed, rate, 1.0)[1], 1.0)
    inner = lambda p: -2.0 * (velocity(p)(x_t, fixed) / SIGMA_DATA * g).mean()
    expected = jax.grad(inner)(params)
    for name in ("a", "b", "c", "e"):
        np.testing.assert_allclose(gradient[name], expected[name], rtol=2e-3, atol=1e-5)


def test_gradient_is_that_of_two_evaluations_with_the_target_s_detached():
    # As the paper writes it: V^- and its tangent at detached parameters, V at the trained ones.
    network = mlp((2,), 4, width=16, depth=1)
    params = jax.tree.map(
        lambda leaf: leaf + 0.3 * jax.random.normal(KEY, leaf.shape), network.init(KEY)
    )
    model = build_model(network, PATH, "F")
    fixed = jnp.linspace(0.1, 1.4, 2000)
    objective = continuous_training(
        model, adaptive_weight=False, tangent_warmup=20, time_sampler=lambda key, count: fixed
    )
    gradient = jax.jit(jax.grad(lambda p: run(objective, p, step=5)[0].mean()))(params)
    _, key_eps, _ = jax.random.split(KEY, 3)
    x_0, eps = GAUSSIAN.sample(KEY, 2000), jax.random.normal(key_eps, (2000, 2))
    x_t, rate = PATH.interpolate(x_0, eps, fixed), PATH.velocity(x_0, eps, fixed)
    label = {"label": jnp.zeros(2000, jnp.int32)}

    def velocity(p):  # the kind F points from noise to data
        return lambda x, t: -SIGMA_DATA * model.predict(p, x, t, t, label)

    def two_evaluations(p):
        detached = velocity(jax.lax.stop_gradient(p))
        v, g = tangent(detached, x_t, fixed, rate, 0.25)
        target = v / SIGMA_DATA + normalize_tangent(g, 0.1)
        return jnp.mean((velocity(p)(x_t, fixed) / SIGMA_DATA - target) ** 2)

    expected = jax.jit(jax.grad(two_evaluations))(params)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6 * float(jnp.abs(b).max()))


def test_learned_weight_settles_where_it_is_minus_the_log_of_the_error():
    # d/dw (e^w error - w) = e^w error - 1.
    network = affine_network()._replace(log_weight=lambda params, t: jnp.full_like(t, params["d"]))
    fixed = jnp.linspace(0.1, 1.4, 2000)
    model = build_model(network, PATH)
    plain = continuous_training(
        build_model(affine_network(), PATH),
        adaptive_weight=False,
        time_sampler=lambda key, count: fixed,
    )
    learned = continuous_training(model, time_sampler=lambda key, count: fixed)
    # d multiplies t - s in this network. That is 0 here, so d acts only through the weight.
    params = network.init(KEY)
    error = float(run(plain, params)[0].mean())
    gradient = jax.grad(lambda w: run(learned, {**params, "d": w})[0].mean())
    assert abs(float(gradient(jnp.float32(-np.log(error))))) < 1e-4
    assert float(gradient(jnp.float32(1.0 - np.log(error)))) == pytest.approx(np.e - 1.0, rel=1e-3)


def test_a_network_without_forward_derivative_is_an_error():
    @jax.custom_vjp
    def opaque(x):
        return x

    opaque.defvjp(lambda x: (x, None), lambda _, g: (g,))
    network = Network(
        affine_network().init, lambda params, x, t, s, c, **kwargs: opaque(params["a"] * x)
    )
    objective = continuous_training(build_model(network, PATH), adaptive_weight=False)
    mean_loss = lambda p: run(objective, p)[0].mean()
    for evaluate in (mean_loss, jax.grad(mean_loss)):
        with pytest.raises(ValueError, match="jax.jvp can differentiate"):
            evaluate(network.init(KEY))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("linear", {"adaptive_weight": False}, "needs path.name=trigflow, not linear"),
        ("trigflow", {}, "model.loss_weight=True"),
    ],
)
def test_models_that_cannot_do_it_are_errors(name, fields, message):
    with pytest.raises(ValueError, match=message):
        continuous_training(build_model(affine_network(), PATHS[name]()), **fields)


def test_the_tangent_that_is_logged_is_its_root_mean_square_before_normalisation():
    fixed = jnp.linspace(0.1, 1.4, 2000)
    model, params = build_model(affine_network(), PATH), affine_network().init(KEY)
    objective = continuous_training(
        model, adaptive_weight=False, time_sampler=lambda key, count: fixed
    )
    logged = run(objective, params)[1]["tangent"]
    _, key_eps, _ = jax.random.split(KEY, 3)
    x_0, eps = GAUSSIAN.sample(KEY, 2000), jax.random.normal(key_eps, (2000, 2))
    x_t, rate = PATH.interpolate(x_0, eps, fixed), PATH.velocity(x_0, eps, fixed)
    g = tangent(model_velocity(model), x_t, fixed, rate, 1.0)[1]
    expected = np.sqrt(np.square(np.asarray(g)).mean(axis=1)).mean()
    assert float(logged.total / logged.count) == pytest.approx(expected, rel=1e-5)


def test_fields_have_edges():
    model = build_model(affine_network(), PATH)
    for fields in ({"tangent_warmup": -1}, {"tangent_scale": 0.0}, {"tangent_scale": -0.1}):
        with pytest.raises(ValueError, match="tangent_warmup >= 0 and tangent_scale > 0"):
            continuous_training(model, adaptive_weight=False, **fields)
    # Without a warm-up r is 1 from the first update on.
    at_once = continuous_training(
        model, adaptive_weight=False, tangent_warmup=0, tangent_scale=1e-6
    )
    loss = run(at_once, affine_network().init(KEY), step=0)[0]
    warmed = continuous_training(model, adaptive_weight=False, tangent_warmup=1, tangent_scale=1e-6)
    np.testing.assert_array_equal(loss, run(warmed, affine_network().init(KEY), step=1)[0])
    assert np.abs(loss - run(warmed, affine_network().init(KEY), step=0)[0]).max() > 1e-3
