"""Improved MeanFlow against closed forms on Gaussian data, MeanFlow, and the published code."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.diffusion.path import PATHS
from fewstep.models.network import Network
from fewstep.objectives.average_velocity import average_velocity, ordered_times
from fewstep.objectives.improved_mean_flow import (
    draw_guidance,
    improved_mean_flow,
    network_velocities,
)
from tests.gaussian import Gaussian
from tests.networks import affine_network, build_model, exact_network

KEY = jax.random.key(0)
DATA = Gaussian(jnp.array([0.5, -1.0]), jnp.array([0.3, 1.7]))
PATH = PATHS["linear"]()
NULL = Gaussian(jnp.array([-0.2, 0.3]), jnp.array([0.3, 1.7]))


def guided_network():
    """An affine network that reads the guidance scale, its interval and the interval of time."""
    plain = affine_network()

    def apply(params, x, t, s, condition, *, train=False, rng=None):
        w, start, end = (condition[f"guidance_{n}"] for n in ("scale", "start", "end"))
        rest = params["w"] * w + params["i"][0] * start + params["i"][1] * end * (t - s)
        return plain.apply(params, x, t, s, condition) * (1.0 + rest[:, None])

    init = lambda key: {**plain.init(key), "w": jnp.float32(0.2), "i": jnp.asarray([0.3, -0.4])}
    return Network(init, apply, "interval", True, True, shape=(2,))


def plain_model(network):
    return build_model(network._replace(second_time="interval", shape=(2,)), PATH)


def unguided(model, **fields):
    return improved_mean_flow(model, guidance_range=(), **fields)


def points(count=64):
    keys = jax.random.split(KEY, 4)
    t, s = ordered_times(lambda key, n: jax.random.uniform(key, (n,)), keys[0], count)
    t, s = 0.05 + 0.9 * t, 0.9 * s
    x_0, eps = DATA.sample(keys[1], count), jax.random.normal(keys[2], (count, 2))
    return x_0, eps, PATH.interpolate(x_0, eps, t), t, s


def test_the_exact_average_velocity_makes_the_exact_velocity():
    model = plain_model(exact_network(lambda x, t, s, c: DATA.average_velocity(PATH, x, t, s)))
    predict = partial(model.predict, {"offset": jnp.zeros(())})
    x_0, eps, x, t, s = points()
    sample, exact = eps - x_0, DATA.velocity(PATH, x, t)
    v_g, own, _ = network_velocities(predict, sample, x, t, {}, PATH)
    np.testing.assert_array_equal(v_g, sample)
    np.testing.assert_allclose(own, exact, atol=1e-5)
    # V - v_g = u - target: V is the exact velocity, whatever the sample.
    u, target = average_velocity(predict, x, t, s, {}, v_g, own)
    np.testing.assert_allclose(u - target + v_g, exact, atol=5e-4)
    u, target = average_velocity(predict, x, t, s, {}, v_g, sample)
    assert np.abs(u - target + v_g - exact).mean() > 0.1  # MeanFlow's depends on the sample


def test_the_gradient_vanishes_in_the_mean_at_the_exact_average_velocity():
    model = plain_model(exact_network(lambda x, t, s, c: DATA.average_velocity(PATH, x, t, s)))
    objective = unguided(model, weight_power=0.0, label_dropout=0.0)
    rows = 2**15
    batch = {"x": DATA.sample(jax.random.key(5), rows), "label": jnp.zeros(rows, jnp.int32)}

    def loss(params):
        return objective.players["network"].loss(params, {}, batch, KEY, 0)[0].mean()

    at_exact, beside = (
        jax.jit(jax.grad(loss))({"offset": jnp.float32(offset)})["offset"] for offset in (0.0, 0.3)
    )
    assert abs(at_exact) < 0.05 and beside - at_exact > 0.5


@pytest.mark.parametrize("name", ["linear", "trigflow"])
def test_guidance_has_the_guided_velocity_as_its_fixed_point(name):
    """If the network has learned v(null) + w (v(y) - v(null)), that is the mean of v_g."""
    c, null, path = 1.5, -0.4, PATHS[name]()
    # The interval is of fractions of the path; on trigflow 0.6 is at t = 0.94, and 1 at 1.57.
    fraction = jnp.array([0.6, 0.6, 0.9, 0.08])
    t = path.t_min + fraction * (path.t_max - path.t_min)
    v = jnp.stack([jnp.full(3, c - 1.0), jnp.full(3, c + 1.0)] * 2)
    condition = {
        "label": jnp.array([1, 2, 1, 2]),
        "guidance_scale": jnp.array([2.5, 2.5, 4.0, 4.0]),
        "guidance_start": jnp.full(4, 0.1),
        "guidance_end": jnp.full(4, 0.8),
    }

    def predict(x, t, s, given):
        np.testing.assert_array_equal(s, t)
        w = given["guidance_scale"]
        np.testing.assert_array_equal(given["guidance_start"], 0.0)
        np.testing.assert_array_equal(given["guidance_end"], 1.0)
        np.testing.assert_array_equal(w[4:], 1.0)  # the null class
        value = jnp.where(given["label"] == -1, null, null + w * (c - null))
        return jnp.broadcast_to(value[:, None], x.shape)

    v_g, own, plain = network_velocities(predict, v, jnp.zeros((4, 3)), t, condition, path)
    guided = null + 2.5 * (c - null)
    np.testing.assert_allclose(own[:2], guided, rtol=1e-6)
    np.testing.assert_allclose(v_g[:2].mean(axis=0), guided, rtol=1e-6)
    # Outside the interval there is no guidance.
    np.testing.assert_allclose(own[2:], c, rtol=1e-6)
    np.testing.assert_allclose(v_g[2:], v[2:], rtol=1e-6)
    np.testing.assert_allclose(plain, null, rtol=1e-6)


def test_scales_are_log_uniform_and_intervals_are_of_rows_with_one():
    has = jnp.arange(2**14) % 2 == 0
    drawn = {k: np.asarray(v) for k, v in draw_guidance(KEY, (1.0, 8.0), has).items()}
    scale = np.log(drawn["guidance_scale"]) / np.log(8.0)
    np.testing.assert_allclose(
        np.quantile(scale, [0.01, 0.25, 0.75]), [0.01, 0.25, 0.75], atol=0.02
    )
    start, end = drawn["guidance_start"], drawn["guidance_end"]
    assert (start[1::2] == 0.0).all() and (end[1::2] == 1.0).all()
    assert start[::2].mean() == pytest.approx(0.25, abs=0.01) and start.max() < 0.5
    assert end[::2].mean() == pytest.approx(0.75, abs=0.01) and end[::2].min() >= 0.5


def published_loss(u, params, x, v, t, r, label, dropped, w, start, end):
    """The loss and its gradient as the code of Geng et al. computes them, row by row.

    u: (params, x, t, h, w, start, end, label). Its v head is u at h = 0 here, and a row without
    label has the direction of the null class.
    """
    zero, one, null = jnp.zeros_like(t), jnp.ones_like(t), jnp.full_like(label, -1)
    held = jax.lax.stop_gradient(params)
    inside = jnp.where((t >= start) & (t <= end), w, 1.0)
    v_c = u(held, x, t, zero, inside, zero, one, label)
    v_u = u(held, x, t, zero, one, zero, one, null)
    v_g = v + (1.0 - 1.0 / inside)[:, None] * (v_c - v_u)
    v_g, tangent = (jnp.where(dropped[:, None], a, b) for a, b in ((v, v_g), (v_u, v_c)))
    label = jnp.where(dropped, null, label)

    def loss(params):
        own = lambda x, t, r: u(params, x, t, t - r, w, start, end, label)
        made, rate = jax.jvp(own, (x, t, r), (tangent, jnp.ones_like(t), jnp.zeros_like(r)))
        compound = made + (t - r)[:, None] * jax.lax.stop_gradient(rate)
        squared = jnp.sum((compound - v_g) ** 2, axis=1)
        return jnp.mean(squared / jax.lax.stop_gradient(squared + 0.01))

    return jax.value_and_grad(loss)(params)


def test_gradients_are_those_of_the_published_code():
    network, rows = guided_network(), 16
    model, params = build_model(network, PATH), network.init(KEY)
    loss = improved_mean_flow(model, label_dropout=0.4).players["network"].loss
    x_0, label = DATA.sample(KEY, rows), jnp.arange(rows) % 3
    batch = {"x": x_0, "label": label}
    found = jax.value_and_grad(lambda p: loss(p, {}, batch, KEY, 0)[0].mean())(params)

    keys = jax.random.split(KEY, 6)
    draw = lambda key, count: jax.nn.sigmoid(-0.4 + jax.random.normal(key, (count,)))
    t, s = ordered_times(draw, keys[0], rows)
    has = jnp.arange(rows) % 2 == 0
    s, eps = jnp.where(has, s, t), jax.random.normal(keys[1], x_0.shape)
    w, start, end = draw_guidance(keys[2], (1.0, 8.0), has).values()
    dropped = jax.random.bernoulli(keys[3], 0.4, (rows,))
    assert 0 < dropped.sum() < rows

    def u(params, x, t, h, w, start, end, label):
        entries = {"guidance_scale": w, "guidance_start": start, "guidance_end": end}
        return network.apply(params, x, t, t - h, {"label": label, **entries})

    x, v = (1.0 - t[:, None]) * x_0 + t[:, None] * eps, eps - x_0
    expected = published_loss(u, params, x, v, t, s, label, dropped, w, start, end)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected)


@pytest.mark.parametrize("steps", [1, 2])
def test_sampling_tells_the_network_its_scale_and_interval(steps):
    seen = []

    def apply(params, x, t, s, condition, *, train=False, rng=None):
        entries = [condition[f"guidance_{n}"] for n in ("scale", "start", "end")]
        jax.debug.callback(lambda *given: seen.append([float(g[0]) for g in given]), *entries)
        return 0.0 * x

    model = build_model(guided_network()._replace(apply=apply), PATH)
    objective = improved_mean_flow(model, guidance_scale=2.0, guidance_interval=(0.2, 0.7))
    eps, label = jnp.ones((3, 2)), {"label": jnp.zeros(3, jnp.int32)}
    given = {}, eps, label, jax.random.split(KEY, 3)
    objective.sample(*given, steps=steps, guidance_scale=3.0)
    jax.effects_barrier()
    np.testing.assert_allclose(seen, [[3.0, 0.2, 0.7]] * steps, rtol=1e-6)
    with pytest.raises(ValueError, match="guidance scale 9 is outside 1 to 8"):
        objective.sample(*given, steps=1, guidance_scale=9.0)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"guidance_range": (0.5, 4.0)}, "must begin at 1 or more"),
        ({"guidance_interval": (0.6, 0.9)}, "start from 0 to 0.5 and end from 0.5 to 1"),
        ({"guidance_interval": (0.2,)}, r"must be \(start, end\)"),
        ({"weight_offset": 0.0}, "weight_offset=0 must be above 0"),
        ({"interval_fraction": 0.3}, "interval_fraction must be one over an integer"),
        ({"guidance_range": ()}, "needs model.guidance_input=False, not True"),
    ],
)
def test_fields_out_of_range_are_errors(fields, words):
    with pytest.raises(ValueError, match=words):
        improved_mean_flow(build_model(guided_network(), PATH), **fields)
