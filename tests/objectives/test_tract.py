"""TRACT against closed forms on Gaussian data: its fixed point, and the methods that it becomes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.diffusion.path import PATHS, align
from fewstep.diffusion.prediction import KINDS, Endpoints, coefficients
from fewstep.diffusion.spacing import uniform_spacing
from fewstep.models.network import Network
from fewstep.objectives.consistency import Draw
from fewstep.objectives.consistency_distillation import teacher_step
from fewstep.objectives.progressive import two_step_target
from fewstep.objectives.stages import Stage
from fewstep.objectives.tract import draw_times, grouping_stages, tract
from fewstep.samplers.grids import StepsError, time_grid
from fewstep.samplers.ode import ddim
from tests.gaussian import Gaussian
from tests.networks import affine_network, build_model, exact_denoiser, unscaled_model

KEY = jax.random.key(0)
DATA = Gaussian(jnp.array([0.3, -0.7]), jnp.array([0.25, 1.7]))
COUNT = 256


def batch(count=COUNT):
    return {"x": DATA.sample(jax.random.key(1), count), "label": jnp.arange(count) % 3}


def jumping_model(path, kind, steps):
    """The model whose DDIM step to the end of a group is all steps of the exact denoiser to there.

    params["groups"]: number of groups of the `steps` teacher steps. It is a Python number, and the
    denoiser itself is the case of as many groups as steps.
    """
    exact, grid = DATA.denoiser(path), uniform_spacing(path)

    def x_0_of(groups, x, t):
        index = jnp.round(grid.fraction(t) * steps)
        size = steps // groups
        last = jnp.ceil(index / size - 1.0) * size
        x_s = x
        for k in range(size):
            here, there = (jnp.maximum(index - k - move, last) / steps for move in (0, 1))
            x_s = path.interpolate(*exact(x_s, grid.time(here)), grid.time(there))
        c, end = (coefficients(path, u, x) for u in (t, grid.time(last / steps)))
        return (x_s - end.sigma / c.sigma * x) / (end.alpha - end.sigma / c.sigma * c.alpha)

    def apply(params, x, t, s, condition, *, train=False, rng=None):
        c = coefficients(path, t, x)
        choices = jnp.stack([x_0_of(groups, x, t) for groups in (steps, 2, 1)])
        x_0 = choices[params["which"].astype(int)] + params["offset"]
        return KINDS[kind].encode(Endpoints(x_0, (x - c.alpha * x_0) / c.sigma), x, c)

    init = lambda key: {"offset": jnp.zeros(()), "which": jnp.zeros(())}
    return unscaled_model(Network(init, apply, shape=(2,)), path, kind)


def network(which, offset=0.0):
    """0: the exact denoiser; 1: jumps to the ends of 2 groups; 2: of one."""
    return {"offset": jnp.asarray(offset), "which": jnp.asarray(float(which))}


@pytest.mark.in_turn("name", 2)
@pytest.mark.parametrize(
    ("name", "kind"), [("vp_cosine", "v"), ("trigflow", "F"), ("linear", "velocity")]
)
def test_a_perfect_student_has_no_loss_and_the_samples_of_the_first_teacher(name, kind):
    path = PATHS[name]()
    with jax.enable_x64(True):
        model = jumping_model(path, kind, 8)
        objective = tract(model, total_steps=20, step_counts=(8, 2, 1), weighting=lambda p, t: 1.0)
        loss = objective.players["network"].loss
        for stage in range(2):
            networks = {"teacher": network(stage), "target": network(stage + 1)}
            if stage == 1:  # its teacher takes 2 steps, of 4 of the exact denoiser each
                networks["teacher"] = network(1)
            rows = lambda p, networks=networks, stage=stage: loss(
                p, networks, batch(), KEY, 10 * stage + 5
            )[0].mean()
            residual, grads = jax.value_and_grad(rows)(network(stage + 1))
            # Times are float32.
            assert float(residual) < 1e-9 and abs(float(grads["offset"])) < 1e-4
            assert float(rows(network(stage + 1, 0.1))) == pytest.approx(0.01, rel=1e-2)
            # Neither the teacher nor a student that jumps elsewhere is right.
            assert float(rows(network(stage))) > 1e-5
        eps = jax.random.normal(jax.random.key(5), (COUNT, 2))
        grid = time_grid(uniform_spacing(path), 8)
        expected = ddim()(DATA.denoiser(path), path, path.prior(eps), grid, None)
        for which, steps in ((1, 2), (2, 1)):
            given = network(which), eps, {"label": jnp.zeros(COUNT, int)}, None
            made = objective.sample(*given, steps=steps, guidance_scale=1.0)
            np.testing.assert_allclose(made, expected, atol=2e-4)


def test_one_group_is_consistency_distillation_with_a_step_of_ddim():
    path = PATHS["linear"]()
    model = build_model(affine_network(), path)
    student = affine_network().init(KEY)
    teacher, target = (jax.tree.map(lambda p, c=c: c - p, student) for c in (0.5, 0.2))
    networks, data = {"teacher": teacher, "target": target}, batch()
    objective = tract(model, total_steps=4, step_counts=(6, 1), weighting=lambda p, t: 1.0)
    found = objective.players["network"].loss(student, networks, data, KEY, 2)[0]

    key_times, key_eps, _ = jax.random.split(KEY, 3)
    t, r, s = draw_times(key_times, COUNT, 6, 1, uniform_spacing(path))
    eps, label = jax.random.normal(key_eps, (COUNT, 2)), {"label": data["label"]}
    draw = Draw(data["x"], eps, path.interpolate(data["x"], eps, t), t, r, label)
    x_r = teacher_step(model, lambda d, p, x, t, s: p.interpolate(*d(x, t), s))(networks, draw)
    f_t = model.consistency(student, draw.x_t, t, label)
    f_r = model.consistency(target, x_r, r, label)
    np.testing.assert_array_equal(s, 0.0)
    np.testing.assert_allclose(found, ((f_t - f_r) ** 2).mean(axis=1), rtol=1e-4, atol=1e-6)


def test_two_steps_in_a_group_and_the_teacher_as_target_are_progressive_distillation():
    path = PATHS["vp_cosine"]()
    model = build_model(affine_network(), path, "v")
    student = affine_network().init(KEY)
    teacher = jax.tree.map(lambda p: 0.5 - p, student)
    data, label = batch(), {"label": batch()["label"]}
    objective = tract(model, total_steps=4, step_counts=(6, 3), weighting=lambda p, t: 1.0)
    networks = {"teacher": teacher, "target": teacher}
    found = objective.players["network"].loss(student, networks, data, KEY, 2)[0]

    key_times, key_eps, _ = jax.random.split(KEY, 3)
    t, r, s = draw_times(key_times, COUNT, 6, 3, uniform_spacing(path))
    x_t = path.interpolate(data["x"], jax.random.normal(key_eps, (COUNT, 2)), t)
    denoise = model.denoiser(lambda *inputs: model.predict(teacher, *inputs), label)
    expected = two_step_target(denoise, path, x_t, t, r, s)
    x_0 = model.endpoints(student, x_t, t, label).x_0
    wide = np.asarray(r > s)
    error = np.asarray(((x_0 - expected) ** 2).mean(axis=1))
    np.testing.assert_allclose(found[wide], error[wide], rtol=1e-4, atol=1e-6)
    # The last step of a group is the teacher's own.
    error = np.asarray(((x_0 - denoise(x_t, t).x_0) ** 2).mean(axis=1))
    np.testing.assert_allclose(found[~wide], error[~wide], rtol=1e-4, atol=1e-6)
    assert 0.3 < wide.mean() < 0.7


@pytest.mark.parametrize("name", PATHS)
def test_one_step_to_the_target_ends_where_teacher_and_target_lead(name):
    path = PATHS[name]()
    other = Gaussian(jnp.array([0.1, 0.2]), jnp.array([0.5, 0.6]))
    with jax.enable_x64(True):
        times = draw_times(jax.random.key(2), COUNT, 8, 2, uniform_spacing(path))
        t, r, s = (jnp.asarray(u, float) for u in times)
        x_t = path.interpolate(batch()["x"], jax.random.normal(KEY, (COUNT, 2)), t)
        denoise, jump = DATA.denoiser(path), other.denoiser(path)
        target = two_step_target(denoise, path, x_t, t, r, s, second_denoise=jump)
        x_r = path.interpolate(*denoise(x_t, t), r)
        x_s = path.interpolate(*jump(x_r, r), s)
        x_s = jnp.where(align(r == s, x_r), x_r, x_s)
        eps = (x_t - align(path.alpha(t), x_t) * target) / align(path.sigma(t), x_t)
        np.testing.assert_allclose(path.interpolate(target, eps, s), x_s, rtol=1e-8, atol=1e-8)


def test_a_step_of_every_group_is_drawn_and_ends_in_it():
    grid = uniform_spacing(PATHS["linear"]())
    t, r, s = (np.asarray(u) * 12 for u in draw_times(KEY, 4096, 12, 3, grid))
    np.testing.assert_allclose(t - r, 1.0, atol=1e-5)
    np.testing.assert_allclose(s, 4 * np.floor(r / 4 + 1e-4), atol=1e-4)
    np.testing.assert_allclose(np.bincount(np.round(t).astype(int), minlength=13)[1:], 341, atol=90)


def test_teachers_and_targets_follow_the_student_and_carry_no_gradient():
    model = exact_denoiser(DATA, PATHS["vp_cosine"](), "v")
    objective = tract(model, total_steps=200, step_counts=(8, 4, 1), average_residual=0.01)
    followers = objective.followers
    assert {name: f.source for name, f in followers.items()} == {
        "target": "network",
        "average": "network",
        "teacher": "average",
    }
    assert [f.restarts for f in followers.values()] == [False, False, True]
    one, zero = jnp.float32(1.0), jnp.float32(0.0)
    # A stage has 100 steps, after which a hundredth is left.
    assert float(followers["average"].update(one, zero, 5)) ** 100 == pytest.approx(0.01, rel=1e-3)
    assert float(followers["target"].update(one, zero, 5)) == 0.5
    names, params = ("teacher", "target"), model.network.init(KEY)

    def loss(networks):
        rows = objective.players["network"].loss({"offset": 0.2}, networks, batch(), KEY, 3)[0]
        return rows.mean()

    # The losses are differentiated in their first argument; nothing here is detached by hand.
    assert jax.grad(loss)(dict.fromkeys(names, params))["teacher"]["offset"] != 0.0


def test_guidance_is_computed_in_the_first_stage_alone():
    rows = []

    def apply(params, x, t, s, condition, *, train=False, rng=None):
        if not train:
            jax.debug.callback(lambda x: rows.append(len(x)), x)
        return affine_network().apply(params, x, t, s, condition)

    model = build_model(Network(affine_network().init, apply, shape=(2,)), PATHS["linear"]())
    objective = tract(model, total_steps=8, step_counts=(8, 4, 1), guidance_scale=2.0)
    params = affine_network().init(KEY)
    loss = jax.jit(objective.players["network"].loss)
    for step, expected in ((3, [64, 128]), (4, [64, 64])):
        rows.clear()
        networks = {"teacher": params, "target": params}
        jax.block_until_ready(loss(params, networks, batch(64), KEY, step))
        jax.effects_barrier()
        assert sorted(rows) == expected


@pytest.mark.parametrize("counts", [(8,), (8, 3), (4, 8), (8, 8), (8, 0)])
def test_counts_that_do_not_divide_are_refused(counts):
    with pytest.raises(ValueError, match="must be two numbers of steps or more"):
        grouping_stages(counts, 10)


def test_stages_are_equal_and_sample_in_their_own_steps():
    assert grouping_stages((1024, 32, 1), 9) == (Stage(0, (32,)), Stage(4, (1,)))
    with pytest.raises(ValueError, match="has 2 stages, for which 1 training steps are too few"):
        grouping_stages((8, 4, 1), 1)
    model = exact_denoiser(DATA, PATHS["linear"]())
    with pytest.raises(ValueError, match="average_residual=1 must be between 0 and 1"):
        tract(model, total_steps=4, step_counts=(4, 2), average_residual=1.0)
    objective = tract(model, total_steps=4, step_counts=(4, 2))
    with pytest.raises(StepsError, match="one of 2, not in 4"):
        objective.sample(
            model.network.init(KEY), jnp.zeros((1, 2)), {}, None, steps=4, guidance_scale=1.0
        )
