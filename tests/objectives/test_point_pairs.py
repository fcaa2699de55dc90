"""Pairs of points on trajectories of a Gaussian's exact teacher."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.diffusion.path import ve, vp_ddpm
from fewstep.diffusion.prediction import KINDS, coefficients
from fewstep.diffusion.spacing import karras_spacing, uniform_spacing
from fewstep.diffusion.time_pairs import constant, doubling
from fewstep.models.model import Model
from fewstep.models.network import Network
from fewstep.objectives.consistency import WEIGHTINGS, pair_loss
from fewstep.objectives.consistency_distillation import teacher_step
from fewstep.objectives.distances import squared_l2
from fewstep.objectives.point_pairs import (
    PairParts,
    roll,
    rollout_source,
    sample_source,
    trajectory_source,
)
from fewstep.samplers.ode import euler_step, heun_step
from tests.gaussian import Gaussian
from tests.networks import exact_denoiser

TARGET = Gaussian(jnp.array([0.3, -0.2]), jnp.array([0.3, 1.2]))
PATH, KIND = vp_ddpm(0.1, 10.0), KINDS["tilt"]
POINTS, ROWS, LABEL = 9, 64, -1
KEY = jax.random.key(0)
BATCH = {"label": jnp.full(ROWS, LABEL)}


def network():
    """The exact denoiser with the parameter 0, the exact consistency function with 1."""

    def apply(params, x, t, s, condition, *, train=False, rng=None):
        c = coefficients(PATH, t, x)
        ends = TARGET.denoiser(PATH)(x, t)
        end = TARGET.flow_map(PATH, x, t, jnp.full_like(t, PATH.t_min))
        # f = alpha_min x_0 + sigma_min eps, so these x_0 and eps make f the flow map.
        low, high = PATH.alpha(PATH.t_min), PATH.sigma(PATH.t_min)
        x_0 = (high * x - c.sigma * end) / (high * c.alpha - low * c.sigma)
        eps = (low * x - c.alpha * end) / (low * c.sigma - high * c.alpha)
        flow = ends._replace(x_0=x_0, eps=eps)
        both = (KIND.encode(e, x, c) for e in (ends, flow))
        as_flow = (params > 0.5) & (c.alpha < low)  # at the data end both are the identity
        return jax.tree.map(lambda a, b: jnp.where(as_flow, b, a), *both)

    return Network(lambda key: jnp.float32(0.0), apply, shape=(2,))


MODEL = Model(network(), PATH, KIND)
NETWORKS = {"teacher": jnp.float32(0.0)}
SOURCES = {
    "rollout": rollout_source(groups=4, substeps=3),
    "trajectories": trajectory_source(substeps=3),
}


def parts(step=heun_step, skip=1, curriculum=None):
    curriculum = curriculum or constant(POINTS)
    return PairParts(MODEL, teacher_step(MODEL, step), uniform_spacing(PATH), curriculum, skip)


@cache
def compiled(name, skip):
    return jax.jit(SOURCES[name].points(parts(skip=skip)))


def made(name, seed=0, skip=1):
    """(x_t, t, s, x_s) of a batch."""
    draw, x_s = compiled(name, skip)(NETWORKS, BATCH, jax.random.key(seed), jnp.int32(0))
    return draw.x_t, draw.t, draw.s, x_s


@pytest.mark.parametrize("skip", [1, 2])
@pytest.mark.parametrize("name", SOURCES)
def test_both_points_lie_on_one_trajectory_from_the_prior(name, skip):
    x_t, t, s, x_s = made(name, skip=skip)
    cells = np.round(np.stack([t, s]) * (POINTS - 1))
    np.testing.assert_allclose(np.stack([t, s]) * (POINTS - 1), cells, atol=1e-3)
    assert (np.minimum(cells[0], skip) == cells[0] - cells[1]).all() and (cells[0] >= 1).all()
    np.testing.assert_allclose(x_s, TARGET.flow_map(PATH, x_t, t, s), atol=0.02)
    start = TARGET.flow_map(PATH, x_t, t, jnp.full_like(t, PATH.t_max))
    np.testing.assert_allclose(np.abs(start.mean()), 0.0, atol=0.35)
    np.testing.assert_allclose(start.std(), 1.0, atol=0.25)


@pytest.mark.parametrize("name", SOURCES)
def test_trajectories_begin_at_the_prior_of_any_path_and_follow_any_spacing(name):
    path = ve()
    model = exact_denoiser(TARGET, path, "F")
    model = model._replace(network=model.network._replace(shape=(2,)))
    own = parts()._replace(
        model=model, step=teacher_step(model, heun_step), spacing=karras_spacing(path)
    )
    given = {"teacher": {"offset": 0.0}}, {"label": jnp.full(1024, LABEL)}, KEY, jnp.int32(0)
    draw, x_s = jax.jit(SOURCES[name].points(own))(*given)
    exact = TARGET.flow_map(path, draw.x_t, draw.t, draw.s)
    np.testing.assert_allclose(x_s, exact, rtol=0.02, atol=0.02)
    start = TARGET.flow_map(path, draw.x_t, draw.t, jnp.full(1024, path.t_max))
    assert float(start.std()) == pytest.approx(path.t_max, rel=0.1)


def test_the_grid_of_a_rollout_grows_with_the_step():
    curriculum = doubling(2, 8, total_steps=9)
    points = jax.jit(rollout_source(groups=16, substeps=1).points(parts(curriculum=curriculum)))
    first, last = (8 * points(NETWORKS, BATCH, KEY, jnp.int32(step))[0].t for step in (0, 9))
    np.testing.assert_allclose(first, 4 * np.round(first / 4), atol=1e-3)
    np.testing.assert_allclose(last, np.round(last), atol=1e-3)
    assert (np.round(last) % 2 == 1).any()


def test_a_group_ends_at_one_time_and_rows_take_turns():
    times = np.stack([np.asarray(made("rollout", seed)[1]) for seed in range(16)])
    grouped = times.reshape(16, -1, 4)
    assert (grouped == grouped[:, :1]).all()
    ends = np.round(grouped[:, 0] * (POINTS - 1)).astype(int)
    assert set(ends.ravel()) == set(range(1, POINTS))
    assert (grouped[0, 0] != grouped[0, 0, 0]).any()


def test_a_trajectory_gives_all_its_cells():
    x_t, t, s, x_s = (np.asarray(a).reshape(ROWS // 8, 8, -1) for a in made("trajectories"))
    assert np.unique(t).size == 8 and (t[0] == t).all()
    np.testing.assert_array_equal(x_s[:, 1:], x_t[:, :-1])
    np.testing.assert_array_equal(s[:, 1:], t[:, :-1])


@pytest.mark.in_turn("name", 3)
@pytest.mark.parametrize("name", SOURCES)
def test_the_exact_consistency_function_has_no_loss_but_the_solver_s(name):
    """Theorem 1 of Song et al. 2023, squared: the loss falls as h^6 with Heun's steps."""

    def loss(parameter, substeps):
        source = {
            "rollout": rollout_source(2, substeps),
            "trajectories": trajectory_source(substeps),
        }
        points = source[name].points(parts())
        loss = pair_loss(MODEL, points, distance=squared_l2(), weighting=WEIGHTINGS["uniform"])
        rows, _ = jax.jit(loss)(
            jnp.float32(parameter), NETWORKS, BATCH, jax.random.key(1), jnp.int32(0)
        )
        return float(rows.mean())

    few, many = loss(1.0, 1), loss(1.0, 4)
    assert many < few / 16.0 and many < 1e-5
    assert loss(0.0, 4) > 100 * many


@pytest.mark.parametrize(("step", "order"), [(euler_step, 1), (heun_step, 2)])
def test_the_function_without_loss_differs_from_the_exact_one_by_the_order_of_the_solver(
    step, order
):
    """Theorem 1 of Song et al. 2023: on a grid it is the composition of the solver's steps."""
    x = jnp.linspace(-2.0, 2.0, 40).reshape(20, 2)
    ends = (jnp.full(20, t) for t in (PATH.t_max, PATH.t_min))
    exact = TARGET.flow_map(PATH, x, *ends)

    def error(cells):
        grid = parts(step, curriculum=constant(cells + 1))
        label = {"label": BATCH["label"][:20]}
        reached = jax.jit(lambda x: roll(grid, NETWORKS, x, label, cells, cells, cells))(x)
        return float(jnp.abs(reached - exact).max())

    assert np.log2(error(32) / error(64)) == pytest.approx(order, abs=0.25)


def test_stored_samples_take_the_place_of_data():
    source = sample_source()
    assert source.reads == ("pairs",)
    pairs = {"x_0": jnp.full((ROWS, 2), 7.0), "eps": jnp.zeros((ROWS, 2)), "label": BATCH["label"]}
    draw, _ = source.points(parts(euler_step))(
        NETWORKS, {"pairs": pairs}, jax.random.key(0), jnp.int32(0)
    )
    assert (draw.x_0 == 7.0).all() and (draw.condition["label"] == LABEL).all()


def test_rows_that_do_not_divide():
    points = rollout_source(groups=5).points(parts())
    with pytest.raises(ValueError, match="no multiple of objective.source.groups, 5; take 65"):
        points(NETWORKS, BATCH, jax.random.key(0), jnp.int32(0))
    with pytest.raises(ValueError, match="a grid that does not grow"):
        trajectory_source().points(parts(curriculum=doubling(2, 8, total_steps=9)))


@pytest.mark.parametrize("name", SOURCES)
def test_rows_keep_the_labels_of_their_trajectories(name):
    """Each class is the Gaussian moved by three times its label."""
    shift = lambda condition: 3.0 * condition["label"][:, None]

    def apply(params, x, t, s, condition, *, train=False, rng=None):
        c, moved = coefficients(PATH, t, x), shift(condition)
        ends = TARGET.denoiser(PATH)(x - c.alpha * moved, t)
        return KIND.encode(ends._replace(x_0=ends.x_0 + moved), x, c)

    model = Model(Network(lambda key: jnp.float32(0.0), apply, shape=(2,)), PATH, KIND)
    own = parts()._replace(model=model, step=teacher_step(model, heun_step))
    batch = {"label": jax.random.randint(KEY, (ROWS,), 0, 3)}
    draw, x_s = jax.jit(SOURCES[name].points(own))(NETWORKS, batch, KEY, jnp.int32(0))
    assert len(set(np.asarray(draw.condition["label"]))) == 3
    moved = shift(draw.condition)
    alpha = lambda time: PATH.alpha(time)[:, None]
    exact = TARGET.flow_map(PATH, draw.x_t - alpha(draw.t) * moved, draw.t, draw.s)
    np.testing.assert_allclose(x_s, exact + alpha(draw.s) * moved, atol=0.2)
