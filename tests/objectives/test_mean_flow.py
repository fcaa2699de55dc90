"""MeanFlow against closed forms on Gaussian data, its limits, and the published code."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.diffusion.path import PATHS, align
from fewstep.diffusion.prediction import KINDS
from fewstep.models.model import Model
from fewstep.objectives.average_velocity import average_velocity, ordered_times, weighted
from fewstep.objectives.mean_flow import VELOCITIES, guided_velocity, mean_flow
from tests.gaussian import Gaussian
from tests.networks import affine_network, build_model, exact_network

KEY = jax.random.key(0)
DATA = Gaussian(jnp.array([0.5, -1.0]), jnp.array([0.3, 1.7]))
NULL = Gaussian(jnp.array([-0.2, 0.3]), jnp.array([0.3, 1.7]))
PATH = PATHS["linear"]()
FLOW_PATHS = ("linear", "vp_cosine", "trigflow")


def exact_model(path):
    """The model that predicts the average velocity of Gaussian data, with an offset."""
    network = exact_network(lambda x, t, s, condition: DATA.average_velocity(path, x, t, s))
    plain = KINDS["velocity"]._replace(c_in=lambda c: jnp.ones_like(c.alpha))
    network = network._replace(second_time="interval")
    return Model(network, path._replace(clock=lambda t: t), plain)


def points(path, count=64):
    keys = jax.random.split(KEY, 4)
    t, s = ordered_times(lambda key, n: jax.random.uniform(key, (n,)), keys[0], count)
    t, s = path.t_max * (0.05 + 0.9 * t), path.t_max * 0.9 * s
    x_0, eps = DATA.sample(keys[1], count), jax.random.normal(keys[2], (count, 2))
    return x_0, eps, path.interpolate(x_0, eps, t), t, s


@pytest.mark.parametrize("name", FLOW_PATHS)
def test_the_exact_average_velocity_is_its_own_target(name):
    path = PATHS[name]()
    model = exact_model(path)
    params = model.network.init(KEY)
    _, _, x, t, s = points(path)
    v = DATA.velocity(path, x, t)
    u, target = average_velocity(partial(model.predict, params), x, t, s, {}, v, v)
    np.testing.assert_allclose(u, DATA.average_velocity(path, x, t, s), atol=1e-6)
    np.testing.assert_allclose(target, u, atol=2e-4)
    # The later time, or the other sign of the derivative, is no fixed point.
    _, wrong = average_velocity(partial(model.predict, params), x, t, s, {}, v, -v)
    assert np.abs(wrong - u).mean() > 0.1


def test_the_target_is_linear_in_the_velocity_so_samples_do_not_bias_it():
    model = build_model(affine_network(), PATH)
    params = model.network.init(KEY)
    predict = partial(model.predict, params)
    x_0, eps, x, t, s = points(PATH)
    condition = {"label": jnp.zeros(len(t), jnp.int32)}
    target = lambda v: average_velocity(predict, x, t, s, condition, v, v)[1]
    one, other = PATH.velocity(x_0, eps, t), DATA.velocity(PATH, x, t)
    mean = 0.3 * target(one) + 0.7 * target(other)
    np.testing.assert_allclose(target(0.3 * one + 0.7 * other), mean, atol=2e-6)


def test_the_gradient_vanishes_in_the_mean_at_the_exact_average_velocity():
    model = exact_model(PATH)
    objective = mean_flow(model, weight_power=0.0, label_dropout=0.0, interval_fraction=0.5)
    rows = 2**15
    batch = {"x": DATA.sample(jax.random.key(5), rows), "label": jnp.zeros(rows, jnp.int32)}

    def loss(params):
        return objective.players["network"].loss(params, {}, batch, KEY, 0)[0].mean()

    at_exact, beside = (
        jax.jit(jax.grad(loss))({"offset": jnp.float32(offset)})["offset"] for offset in (0.0, 0.3)
    )
    # A network moved by c has the target of the exact one, so the gradient is D 2 c.
    assert abs(at_exact) < 0.05
    np.testing.assert_allclose(beside - at_exact, 2 * 2 * 0.3, rtol=1e-4)


def test_one_row_in_so_many_has_an_interval_and_the_others_are_flow_matching():
    seen = []

    def record(x, t, s, condition):
        jax.debug.callback(lambda t, s: seen.append((np.asarray(t), np.asarray(s))), t, s)
        return 0.0 * x

    network = exact_network(record)._replace(second_time="interval")
    objective = mean_flow(build_model(network, PATH), label_dropout=0.0)
    batch = {"x": DATA.sample(KEY, 16), "label": jnp.zeros(16, jnp.int32)}
    params = network.init(KEY)
    loss, metrics = objective.players["network"].loss(params, {}, batch, KEY, 0)
    jax.effects_barrier()
    (flow_t, flow_s), (t, s) = sorted(seen, key=lambda call: -len(call[0]))
    assert len(flow_t) == 12 and np.array_equal(flow_t, flow_s)
    assert len(t) == 4 and np.all(s < t)
    # The zero network's target is v, whose squared error the flow rows report.
    flow, interval = metrics["loss_flow"], metrics["loss_interval"]
    assert (flow.count, interval.count) == (12, 4)
    whole = float(metrics["error"].total)
    assert float(flow.total + interval.total) == pytest.approx(whole, rel=1e-5)
    with pytest.raises(ValueError, match="15 rows, .*use a multiple of 4"):
        batch = jax.tree.map(lambda a: a[:15], batch)
        objective.players["network"].loss(params, {}, batch, KEY, 0)


def test_at_s_0_the_residual_is_the_rate_of_the_consistency_function():
    """f = x_t - t u(x_t, t, 0): u - target = -df/dt along the sample's trajectory."""
    model = build_model(affine_network(), PATH)
    predict = partial(model.predict, model.network.init(KEY))
    x_0, eps, x, t, _ = points(PATH)
    condition, v = {"label": jnp.ones(len(t), jnp.int32)}, PATH.velocity(x_0, eps, t)
    s = jnp.zeros_like(t)
    u, target = average_velocity(predict, x, t, s, condition, v, v)
    f = lambda x, t: x - t[:, None] * predict(x, t, s, condition)
    _, rate = jax.jvp(f, (x, t), (v, jnp.ones_like(t)))
    np.testing.assert_allclose(u - target, -rate, atol=1e-5)


def test_guidance_and_mixing_have_the_guided_velocity_as_their_fixed_point():
    """If u(null) and u(y) are the exact and the guided velocity, the mean target is the latter."""
    c, null, scale = 1.5, -0.4, 2.5
    guided = null + scale * (c - null)
    x, t = jnp.zeros((2, 3)), jnp.full(2, 0.5)
    v = jnp.stack([jnp.full(3, c - 1.0), jnp.full(3, c + 1.0)])  # samples around the mean c

    def predict(x, t, s, condition):
        assert s is t
        value = jnp.where(condition["label"] == -1, null, guided)
        return jnp.broadcast_to(value[:, None], x.shape)

    for mixing in (0.0, 0.5, 0.9):
        made = guided_velocity(predict, v, x, t, {"label": jnp.array([1, 2])}, scale, mixing)
        np.testing.assert_allclose(made.mean(axis=0), guided, rtol=1e-6)
        np.testing.assert_allclose(np.ptp(made, axis=0), 2.0 * scale * (1.0 - mixing), rtol=1e-5)
    assert guided_velocity(None, v, x, t, {}, 1.0, 0.0) is not None


def test_an_exact_teacher_s_flow_map_has_no_loss_and_samples_do_not_matter():
    network = exact_network(
        lambda x, t, s, condition: jnp.where(
            align(condition["label"] == -1, x),
            NULL.average_velocity(PATH, x, t, s),
            DATA.average_velocity(PATH, x, t, s),
        )
    )
    model = build_model(network._replace(second_time="interval"), PATH)
    objective = mean_flow(model, velocity=VELOCITIES["teacher"], label_dropout=0.5)
    assert objective.frozen == ("teacher",) and objective.needs_teacher
    exact, data = {"offset": jnp.float32(0.0)}, DATA.sample(KEY, 64)
    networks = {"teacher": exact}
    for x_0 in (data, data[::-1]):  # of other labels
        batch = {"x": x_0, "label": jnp.arange(64) % 2}
        loss = objective.players["network"].loss
        assert float(loss(exact, networks, batch, KEY, 0)[1]["error"].total) < 1e-4
        moved = loss({"offset": jnp.float32(0.2)}, networks, batch, KEY, 0)[1]["error"]
        assert float(moved.total / moved.count) == pytest.approx(0.04, rel=0.02)
    # Guided in form A where a row has a label.
    guided = mean_flow(model, velocity=VELOCITIES["teacher"], label_dropout=0.0, guidance_scale=3.0)
    error = guided.players["network"].loss(exact, networks, batch, KEY, 0)[1]["loss_flow"]
    shift = DATA.velocity(PATH, data, jnp.full(64, 0.5)) - NULL.velocity(
        PATH, data, jnp.full(64, 0.5)
    )
    assert float(error.total / error.count) > 0.5 * float((2.0 * shift).var())
    with pytest.raises(ValueError, match="mixing=0.2 is for the velocity of samples"):
        mean_flow(model, velocity=VELOCITIES["teacher"], mixing=0.2)


def test_the_weight_normalizes_rows():
    squared = jnp.array([0.0, 0.09, 0.99])
    np.testing.assert_allclose(weighted(squared, 1.0, 0.01), squared / (squared + 0.01))
    np.testing.assert_allclose(weighted(squared, 0.0, 0.01), squared)
    np.testing.assert_allclose(
        jax.vmap(jax.grad(lambda q: weighted(q, 0.5, 0.01)))(squared), (squared + 0.01) ** -0.5
    )


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", FLOW_PATHS)
def test_sampling_with_the_exact_average_velocity_is_the_flow_map(name, steps):
    path = PATHS[name]()
    model = exact_model(path)
    objective = mean_flow(model)
    eps = jax.random.normal(KEY, (5, 2))
    labels, keys = {"label": jnp.zeros(5, jnp.int32)}, jax.random.split(KEY, 5)
    made = objective.sample(
        model.network.init(KEY), eps, labels, keys, steps=steps, guidance_scale=1.0
    )
    ends = jnp.full(5, path.t_max), jnp.zeros(5)
    np.testing.assert_allclose(made, DATA.flow_map(path, path.prior(eps), *ends), atol=1e-4)


def published_loss(u, params, x, v, t, r, label, dropped, omega, kappa):
    """The loss and its gradient as the code of Geng et al. computes them, row by row.

    u: (params, x, t, h, label) -> average velocity over h = t - r.
    """
    zero, null = jnp.zeros_like(t), jnp.full_like(label, -1)
    held = jax.lax.stop_gradient(params)
    unconditional, conditional = u(held, x, t, zero, null), u(held, x, t, zero, label)
    v_g = omega * v + (1.0 - omega - kappa) * unconditional + kappa * conditional
    v_g = jnp.where(dropped[:, None], v, v_g)
    label = jnp.where(dropped, null, label)

    def loss(params):
        own = lambda x, t, r: u(params, x, t, t - r, label)
        made, rate = jax.jvp(own, (x, t, r), (v_g, jnp.ones_like(t), jnp.zeros_like(r)))
        target = jax.lax.stop_gradient(v_g - (t - r)[:, None] * rate)
        squared = jnp.sum((made - target) ** 2, axis=1)
        return jnp.mean(squared / jax.lax.stop_gradient(squared + 0.01))

    return jax.value_and_grad(loss)(params)


@pytest.mark.parametrize(("scale", "mixing"), [(1.0, 0.0), (2.0, 0.0), (3.0, 0.5)])
def test_gradients_are_those_of_the_published_code(scale, mixing):
    network = affine_network()._replace(second_time="interval")
    model = build_model(network, PATH)
    rows, params = 16, network.init(KEY)
    objective = mean_flow(
        model, interval_fraction=0.5, label_dropout=0.4, guidance_scale=scale, mixing=mixing
    )
    x_0, label = DATA.sample(KEY, rows), jnp.arange(rows) % 3
    loss = objective.players["network"].loss

    def ours(params):
        return loss(params, {}, {"x": x_0, "label": label}, KEY, 0)[0].mean()

    keys = jax.random.split(KEY, 5)
    draw = lambda key, count: jax.nn.sigmoid(-0.4 + jax.random.normal(key, (count,)))
    t, s = ordered_times(draw, keys[0], rows)
    s = jnp.where(jnp.arange(rows) % 2 == 0, s, t)
    eps = jax.random.normal(keys[1], x_0.shape)
    dropped = jax.random.bernoulli(keys[2], 0.4, (rows,))
    assert 0 < dropped.sum() < rows
    u = lambda params, x, t, h, label: network.apply(params, x, t, t - h, {"label": label})
    x, v = (1.0 - t[:, None]) * x_0 + t[:, None] * eps, eps - x_0
    omega = scale * (1.0 - mixing)
    expected = published_loss(u, params, x, v, t, s, label, dropped, omega, mixing)
    found = jax.value_and_grad(ours)(params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, expected)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mixing": 1.0}, "mixing in"),
        ({"weight_offset": 0.0}, "weight_offset > 0"),
        ({"interval_fraction": 0.3}, "interval_fraction must be one over an integer"),
    ],
)
def test_fields_out_of_range_are_errors(fields, words):
    with pytest.raises(ValueError, match=words):
        mean_flow(exact_model(PATH), **fields)


def test_models_that_are_no_flow_maps_are_refused():
    network = affine_network()._replace(second_time="interval")
    with pytest.raises(ValueError, match="needs prediction.kind=velocity, not eps"):
        mean_flow(build_model(network, PATH, "eps"))
    with pytest.raises(ValueError, match="path.name=linear, vp_cosine or trigflow, not vp_ddpm"):
        mean_flow(build_model(network, PATHS["vp_ddpm"]()))
