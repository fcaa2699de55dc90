"""CTM against closed forms on Gaussian data: its fixed point, and the methods that it becomes."""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import ndtr

from fewstep.diffusion.path import PATHS, align
from fewstep.diffusion.prediction import KINDS, Endpoints, coefficients
from fewstep.diffusion.spacing import karras_spacing
from fewstep.diffusion.time_sampling import karras_times
from fewstep.objectives.consistency_distillation import consistency_distillation
from fewstep.objectives.consistency_trajectory import (
    consistency_trajectory,
    denoising_times,
    draw_times,
    with_gradient_norm,
)
from fewstep.objectives.denoising import denoising_loss
from fewstep.objectives.jumps import jump
from fewstep.objectives.point_pairs import PairSource, on_trajectory
from fewstep.samplers.ode import heun_step, repeat_step
from tests.gaussian import Gaussian
from tests.networks import affine_network, build_model, exact_network, finite_ratio, unscaled_model

KEY = jax.random.key(0)
DATA = Gaussian(jnp.array([0.3, -0.7]), jnp.array([0.25, 1.7]))
COUNT = 256
TIMED = affine_network()._replace(second_time="time", shape=(2,))
CASES = [("ve", "F"), ("linear", "velocity"), ("vp_cosine", "v"), ("trigflow", "F")]


def batch(count=COUNT):
    return {"x": DATA.sample(jax.random.key(1), count), "label": jnp.arange(count) % 3}


def exact_model(path, kind):
    """The model whose jumps are the flow map of Gaussian data."""

    def encoded(x, t, s, condition):
        c, end = (coefficients(path, u, x) for u in (t, s))
        x_s = DATA.flow_map(path, x, t, s)
        ratio = finite_ratio(end.sigma, c.sigma)
        x_0 = finite_ratio(x_s - ratio * x, end.alpha - ratio * c.alpha)
        x_0 = jnp.where(align(t == s, x), DATA.x_0(path, x, t), x_0)
        return KINDS[kind].encode(Endpoints(x_0, finite_ratio(x - c.alpha * x_0, c.sigma)), x, c)

    network = exact_network(encoded)._replace(second_time="time", shape=(2,))
    return unscaled_model(network, path, kind)


def networks_of(params):
    """A teacher and a target that differ from the student."""
    shifted = {"teacher": 0.5, "target": 0.2}
    return {name: jax.tree.map(lambda p, c=c: c - p, params) for name, c in shifted.items()}


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_jump_of_no_length_is_the_identity_and_jumps_to_the_data_are_consistency(name, kind):
    path = PATHS[name]()
    model = build_model(TIMED, path, kind)
    params, data = TIMED.init(KEY), batch()
    t = path.time_at(jnp.linspace(0.1, 5.0, COUNT))
    x = path.interpolate(data["x"], jax.random.normal(KEY, (COUNT, 2)), t)
    label, predict = {"label": data["label"]}, partial(model.predict, params)
    np.testing.assert_allclose(jump(model, predict, x, t, t, label), x, rtol=1e-4, atol=1e-5)
    # f of a network that sees s = t_min, not s = t.
    end = jnp.full_like(t, path.t_min)
    seen = model._replace(
        network=TIMED._replace(apply=lambda p, x, t, s, c, **m: TIMED.apply(p, x, t, clock, c))
    )
    clock = path.clock(end)
    np.testing.assert_allclose(
        jump(model, predict, x, t, end, label),
        seen.consistency(params, x, t, label),
        rtol=1e-4,
        atol=1e-5,
    )


def test_on_ve_a_jump_is_the_paper_s():
    path = PATHS["ve"]()
    model = build_model(TIMED, path, "F")
    params, data, t, s = TIMED.init(KEY), batch(), jnp.full(COUNT, 3.0), jnp.full(COUNT, 0.7)
    label, x = {"label": data["label"]}, 3.0 * data["x"]
    raw = model.predict(params, x, t, s, label)
    g = 0.25 * x / (9.0 + 0.25) + 3.0 * 0.5 / np.sqrt(9.25) * raw
    found = jump(model, partial(model.predict, params), x, t, s, label)
    np.testing.assert_allclose(found, 0.7 / 3.0 * x + (1.0 - 0.7 / 3.0) * g, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_exact_flow_map_has_no_loss_but_the_error_of_the_solver(name, kind):
    path = PATHS[name]()
    with jax.enable_x64(True):
        model = exact_model(path, kind)
        exact = {"offset": jnp.zeros(())}
        residuals = {}
        for points in (20, 40):
            objective = consistency_trajectory(
                model, points=points, solver_steps=4, denoising_weight=0.0
            )
            # The exact model at s = t is the denoiser.
            networks = {"teacher": exact, "target": exact}

            def rows(params, objective=objective, networks=networks):
                return objective.players["network"].loss(params, networks, batch(), KEY, 0)[0]

            residuals[points] = float(jnp.sqrt(rows(exact).max()))
            moved = float(jnp.sqrt(rows({"offset": jnp.asarray(0.05)}).mean()))
        # The residual is the error of up to 4 steps of Heun, of second order in the grid; the path
        # beside the solver's would have none that falls.
        assert residuals[40] < 0.35 * residuals[20] < 0.05
        assert moved > 3e-3


@pytest.mark.parametrize("solver_steps", [1, 3])
def test_at_u_equal_to_s_it_is_regression_to_the_solver(solver_steps):
    """Two points: every row goes from t_max to t_min, so u = s."""
    path = PATHS["ve"]()
    model, params = build_model(TIMED, path, "F"), TIMED.init(KEY)
    networks, data = networks_of(params), batch()
    points = solver_steps + 1
    objective = consistency_trajectory(
        model, points=points, solver_steps=solver_steps, denoising_weight=0.0
    )
    found = objective.players["network"].loss(params, networks, data, KEY, 0)[0]
    key_times, key_eps, *_ = jax.random.split(KEY, 4)
    times, s = draw_times(key_times, COUNT, solver_steps, solver_steps, karras_spacing(path))
    x_t = path.interpolate(data["x"], jax.random.normal(key_eps, (COUNT, 2)), times[0])
    label = {"label": data["label"]}
    denoise = model.denoiser(partial(model.predict, networks["teacher"]), label)
    x_u = repeat_step(heun_step)(denoise, path, x_t, times, None)
    whole = np.asarray(times[-1] == s)
    assert whole.any() and (solver_steps == 1 or not whole.all())
    end = lambda x: jump(
        model, partial(model.predict, networks["target"]), x, s, jnp.full_like(s, 0.002), label
    )
    made = end(jump(model, partial(model.predict, params), x_t, times[0], s, label))
    expected = ((made - end(x_u)) ** 2).mean(axis=1)
    np.testing.assert_allclose(found[whole], expected[whole], rtol=2e-3, atol=1e-5)


def test_one_step_to_s_0_is_consistency_distillation(monkeypatch):
    """A network without effect of s, and s = 0: the loss and the gradient are those of cd."""
    path = PATHS["ve"]()

    def one_cell(key, count, cells, most, spacing):
        upper = jnp.floor(jax.random.uniform(key, (count,)) * cells) + 1
        times = spacing.time(jnp.stack([upper, upper - 1]) / cells)
        return times, jnp.full(count, path.t_min)

    module = sys.modules["fewstep.objectives.consistency_trajectory"]
    monkeypatch.setattr(module, "draw_times", one_cell)
    plain = lambda p, x, t, s, c, **mode: affine_network().apply(p, x, t, t, c)
    timed = build_model(TIMED._replace(apply=plain), path, "F")
    model = build_model(affine_network()._replace(apply=plain, shape=(2,)), path, "F")
    params, data = TIMED.init(KEY), batch()
    teacher = networks_of(params)["teacher"]
    ours = consistency_trajectory(timed, solver_steps=1, denoising_weight=0.0)

    def same_points(parts):
        def points(networks, batch, key, step):
            key_times, key_eps, *_ = jax.random.split(KEY, 4)
            (t, u), _ = one_cell(key_times, COUNT, 17, 1, karras_spacing(path))
            x_t = path.interpolate(batch["x"], jax.random.normal(key_eps, (COUNT, 2)), t)
            draw = on_trajectory(x_t, t, u, {"label": batch["label"]})
            return draw, parts.step(networks, draw)

        return points

    # Without a target the network is its own, which is CTM's inner jump.
    source = PairSource(("images",), same_points)
    theirs = consistency_distillation(model, target_decay=0.0, source=source)

    def of(objective, **networks):
        loss, given = objective.players["network"].loss, {"teacher": teacher, **networks}
        return jax.value_and_grad(lambda p: loss(p, given, data, KEY, 0)[0].mean())(params)

    close = partial(np.testing.assert_allclose, rtol=2e-3, atol=1e-4)
    jax.tree.map(close, of(ours, target=teacher), of(theirs))


def test_the_denoising_term_is_that_of_a_denoiser_and_is_balanced():
    path = PATHS["linear"]()
    model, params, data = build_model(TIMED, path), TIMED.init(KEY), batch()
    networks, sampler = networks_of(params), karras_times(path)
    build = partial(consistency_trajectory, model, solver_steps=2, time_sampler=sampler)
    with_term, without = (
        build(denoising_weight=weight).players["network"].loss for weight in (1.0, 0.0)
    )
    rows, metrics = with_term(params, networks, data, KEY, 0)
    plain, _ = without(params, networks, data, KEY, 0)
    balance = float(metrics["balance"].total)
    key_t, key_eps, _ = jax.random.split(jax.random.split(KEY, 4)[3], 3)
    t, eps = sampler(key_t, COUNT), jax.random.normal(key_eps, (COUNT, 2))
    x_t, label = path.interpolate(data["x"], eps, t), {"label": data["label"]}
    error = ((model.predict(params, x_t, t, t, label) - (eps - data["x"])) ** 2).mean(axis=1)
    np.testing.assert_allclose(rows - plain, balance * error, rtol=1e-3, atol=1e-5)
    # It is the loss of denoising.py in distribution.
    other = denoising_loss(model, sampler)(params, {}, batch(2**15), KEY, 0)[0].mean()
    assert float(error.mean()) == pytest.approx(float(other), rel=0.25)
    # The balance is of gradients in the outputs, here 3 / 8 in each of 16 entries, times sqrt(16).
    _, norm = with_gradient_norm(lambda r: 3.0 * r.sum(axis=1), jnp.zeros((8, 2)))
    assert float(norm) == pytest.approx(3.0 / 8 * 16, rel=1e-6)
    # It is detached: the gradient of the sum is that of the terms, weighted.
    grads = [
        jax.grad(lambda p, f=f: f(p, networks, data, KEY, 0)[0].mean())(params)
        for f in (with_term, without)
    ]
    denoising = jax.grad(
        lambda p: ((model.predict(p, x_t, t, t, label) - (eps - data["x"])) ** 2).mean()
    )(params)
    jax.tree.map(
        lambda a, b, c: np.testing.assert_allclose(a - b, balance * c, rtol=2e-3, atol=1e-4),
        *grads,
        denoising,
    )


def test_rows_with_one_gradient_for_norm_and_loss_are_the_term_s():
    raw, weights = jax.random.normal(KEY, (8, 2)), jnp.arange(8.0)
    term = lambda r: jnp.sin(r).prod(axis=1)
    np.testing.assert_array_equal(with_gradient_norm(term, raw)[0], term(raw))
    found, exact = (
        jax.grad(lambda r, f=f: jnp.sum(weights * f(r)))(raw)
        for f in (lambda r: with_gradient_norm(term, r)[0], term)
    )
    np.testing.assert_allclose(found, exact, rtol=1e-6)
    mean_gradient = jax.grad(lambda r: term(r).mean())(raw)
    norm = with_gradient_norm(term, raw)[1]
    expected = np.sqrt(raw.size) * np.linalg.norm(mean_gradient)
    assert float(norm) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("count", [8, 4096])
def test_the_balance_is_the_ratio_of_the_norms_of_both_gradients(count):
    """Their floor plays no role, in small batches and in large ones."""
    path = PATHS["linear"]()
    apply = lambda p, *inputs, **mode: TIMED.apply(p, *inputs, **mode) + p["shift"]
    model = build_model(TIMED._replace(apply=apply), path)
    params, data = TIMED.init(KEY) | {"shift": jnp.zeros((count, 2))}, batch(count)
    networks, sampler = networks_of(params), karras_times(path)
    build = partial(consistency_trajectory, model, solver_steps=2, time_sampler=sampler)

    def loss(params, weight):
        own = build(denoising_weight=weight).players["network"].loss
        rows, metrics = own(params, networks, data, KEY, 0)
        return rows.mean(), metrics

    slope = jax.grad(lambda p: loss(p, 0.0)[0])(params)["shift"]
    norm = np.sqrt(slope.size) * np.linalg.norm(slope)
    key_t, key_eps, _ = jax.random.split(jax.random.split(KEY, 4)[3], 3)
    t, eps = sampler(key_t, count), jax.random.normal(key_eps, (count, 2))
    x_t, label = path.interpolate(data["x"], eps, t), {"label": data["label"]}
    noise_norm = 2.0 * np.sqrt(
        np.mean((model.predict(params, x_t, t, t, label) - (eps - data["x"])) ** 2)
    )
    found = loss(params, 1.0)[1]["balance"]
    assert float(found.total / found.count) == pytest.approx(norm / noise_norm, rel=3e-4)


@pytest.mark.parametrize("shape", [(2, 3), (512, 2), (4, 8, 8, 3)])
def test_the_norm_depends_on_the_error_and_not_on_rows_or_pixels(shape):
    term = lambda raw: (raw.reshape(len(raw), -1) ** 2).mean(axis=1)
    _, norm = with_gradient_norm(term, jnp.full(shape, 0.7))
    assert float(norm) == pytest.approx(1.4, rel=1e-5)


def test_times_lie_on_the_grid_and_steps_are_drawn_in_proportion_to_their_number():
    spacing = karras_spacing(PATHS["ve"]())
    times, s = draw_times(KEY, 2**14, 10, 4, spacing)
    index = np.round(np.asarray(spacing.fraction(times)) * 10).astype(int)
    end = np.round(np.asarray(spacing.fraction(s)) * 10).astype(int)
    np.testing.assert_allclose(spacing.fraction(times) * 10, index, atol=1e-3)
    steps = index[0] - index[-1]
    assert (end >= 0).all() and (end <= index[-1]).all() and (index[0] <= 10).all()
    # Each step goes down by one until u, where the others stay.
    assert set(np.unique(index[:-1] - index[1:])) == {0, 1}
    np.testing.assert_allclose(np.bincount(steps)[1:] / 2**14, np.arange(1, 5) / 10.0, atol=0.02)
    one = steps == 1
    np.testing.assert_allclose(np.bincount(index[0][one])[1:] / one.sum(), 0.1, atol=0.03)
    last = one & (index[-1] == 9)
    np.testing.assert_allclose(np.bincount(end[last]) / last.sum(), 0.1, atol=0.07)


def test_half_of_the_denoising_times_are_noisy():
    path = PATHS["ve"]()
    t = np.asarray(denoising_times(path)(KEY, 4096))
    low = float(karras_spacing(path).time(jnp.float32(0.3)))
    assert t[1::2].min() >= low and 0.8 < np.mean(t[1::2] > 1.0) < 0.95
    assert np.log(t[::2]).mean() == pytest.approx(-1.2, abs=0.1)


def test_a_denoising_time_alone_is_of_either_half():
    path = PATHS["ve"]()
    alone = lambda key: denoising_times(path)(key, 1)[0]
    t = np.asarray(jax.vmap(alone)(jax.random.split(KEY, 4096)))
    spacing = karras_spacing(path)
    low = float(spacing.time(jnp.float32(0.3)))
    below = 0.5 * float(ndtr((np.log(low) + 1.2) / 1.2))
    above = 0.5 * (1.0 - float(spacing.fraction(jnp.float32(20.0)))) / 0.7
    assert np.mean(t < low) == pytest.approx(below, abs=0.02)
    assert np.mean(t > 20.0) == pytest.approx(above, abs=0.02)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"solver_steps": 18}, "solver_steps=18 must be 1 or more and below objective.points=18"),
        ({"gamma": 1.5}, r"gamma in \[0, 1\], not 1 and 1.5"),
        ({"denoising_weight": -1.0}, "denoising_weight of 0 or more"),
        ({"sample_times": (90.0,)}, "must descend strictly between"),
    ],
)
def test_fields_out_of_range_are_errors(fields, words):
    with pytest.raises(ValueError, match=words):
        consistency_trajectory(build_model(TIMED, PATHS["ve"](), "F"), **fields)
    with pytest.raises(ValueError, match="prediction.kind=eps says too little"):
        consistency_trajectory(build_model(TIMED, PATHS["vp_cosine"](), "eps"))
