"""Progressive distillation against closed forms on Gaussian data, with an exact teacher."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.diffusion.path import PATHS, align
from fewstep.diffusion.prediction import KINDS, coefficients
from fewstep.diffusion.spacing import SPACINGS
from fewstep.models.network import Network
from fewstep.objectives.base import Stage
from fewstep.objectives.progressive import (
    WEIGHTINGS,
    ddim_sampler,
    draw_times,
    halving_stages,
    progressive,
    two_step_target,
)
from fewstep.objectives.sampling import learned_guidance
from fewstep.objectives.shortcut import bootstrap_target
from fewstep.samplers.grids import time_grid
from fewstep.samplers.ode import ddim, ddim_step
from fewstep.training.compiled_step import create_state
from fewstep.training.experiment import build
from fewstep.training.sharding import make_mesh
from fewstep.training.step import train_step
from tests.gaussian import Gaussian
from tests.networks import affine_network, build_model, exact_denoiser, unscaled_model
from tests.training.runs import random_batch, small_config

KEY = jax.random.key(0)
GAUSSIAN = Gaussian(jnp.array([0.3, -0.7]), jnp.array([0.25, 1.7]))
COUNT = 512
SPACING_OF = {"ve": "karras"}


def batch(count=COUNT):
    return {"x": GAUSSIAN.sample(jax.random.key(1), count), "label": jnp.arange(count) % 3}


def build_spacing(path):
    return SPACINGS[SPACING_OF.get(path.name, "uniform")](path)


def draw_points(path, steps, count=COUNT):
    """x_t at random times t, then t, and the middle and end of each step."""
    drawn = draw_times(jax.random.key(2), count, steps, build_spacing(path))
    t, middle, s = (jnp.asarray(time, float) for time in drawn)
    eps = jax.random.normal(jax.random.key(3), (count, 2))
    return path.interpolate(GAUSSIAN.sample(KEY, count), eps, t), t, middle, s


@pytest.mark.parametrize("steps", [1, 2, 8])
@pytest.mark.parametrize("name", PATHS)
def test_one_step_to_the_target_ends_where_two_of_the_teacher_s_do(name, steps):
    path = PATHS[name]()
    with jax.enable_x64(True):
        x_t, t, middle, s = draw_points(path, steps)
        teacher = GAUSSIAN.denoiser(path)
        target = two_step_target(teacher, path, x_t, t, middle, s)
        x_middle = ddim_step(teacher, path, x_t, t, middle)
        x_s = ddim_step(teacher, path, x_middle, middle, s)
        eps = (x_t - align(path.alpha(t), x_t) * target) / align(path.sigma(t), x_t)
        np.testing.assert_allclose(path.interpolate(target, eps, s), x_s, rtol=1e-9, atol=1e-9)
        # Without noise at s the target is the second prediction. It is never the first.
        at_end = np.asarray(path.sigma(s) == 0.0)
        last = teacher(x_middle, middle).x_0
        np.testing.assert_array_equal(target[at_end], last[at_end])
        assert np.abs(target - teacher(x_t, t).x_0).max() > 1e-3


@pytest.mark.parametrize("steps", [1, 4])
def test_the_target_of_a_single_image_is_that_image(steps):
    image = Gaussian(jnp.array([0.4, -0.1]), jnp.zeros(2))
    path = PATHS["vp_cosine"]()
    x_t, *times = draw_points(path, steps)
    target = two_step_target(image.denoiser(path), path, x_t, *times)
    np.testing.assert_allclose(target, jnp.tile(image.mean, (COUNT, 1)), atol=1e-5)


def test_on_the_linear_path_it_is_the_bootstrap_of_shortcut_models():
    path = PATHS["linear"]()
    x_t, t, middle, s = draw_points(path, 4)
    target = two_step_target(GAUSSIAN.denoiser(path), path, x_t, t, middle, s)
    velocity = lambda x, t, s, condition: GAUSSIAN.velocity(path, x, t)
    bootstrap = bootstrap_target(velocity, x_t, t, t - s, {})
    np.testing.assert_allclose((x_t - target) / t[:, None], bootstrap, atol=2e-5)


def exact_student(path, kind, teacher_steps):
    """The model whose step from i / N to (i - 1) / N is two of the exact teacher's, at a known N.

    params["halvings"]: number of times that the steps of the exact denoiser were halved.
    """
    spacing, exact = build_spacing(path), GAUSSIAN.denoiser(path)

    def denoise(x, t, halvings):
        if halvings == 0:
            return exact(x, t).x_0
        part = 1.0 / (teacher_steps >> halvings)
        u = spacing.fraction(t)
        middle, s = spacing.time(u - 0.5 * part), spacing.time(jnp.maximum(u - part, 0.0))

        def inner(x, t):
            x_0 = denoise(x, t, halvings - 1)
            c = coefficients(path, t, x)
            return type(exact(x, t))(x_0, (x - c.alpha * x_0) / c.sigma)

        return two_step_target(inner, path, x, t, middle, s)

    def apply(params, x, t, s, condition, *, train=False, rng=None):
        c = coefficients(path, t, x)
        most = teacher_steps.bit_length() - 1
        values = [denoise(x, t, halvings) for halvings in range(most + 1)]
        x_0 = jnp.stack(values)[params["halvings"].astype(int)] + params["offset"]
        ends = type(exact(x, t))(x_0, (x - c.alpha * x_0) / c.sigma)
        return KINDS[kind].encode(ends, x, c)

    init = lambda key: {"offset": jnp.zeros(()), "halvings": jnp.zeros(())}
    return unscaled_model(Network(init, apply, shape=(2,)), path, kind)


def halving(number, offset=0.0):
    return {"offset": jnp.asarray(offset), "halvings": jnp.asarray(float(number))}


@pytest.mark.in_turn("name", 2)
@pytest.mark.parametrize(
    ("name", "kind"), [("vp_cosine", "v"), ("linear", "velocity"), ("ve", "F"), ("trigflow", "F")]
)
def test_a_perfect_student_has_no_loss_in_its_stage_and_the_samples_of_the_first_teacher(
    name, kind
):
    path, most = PATHS[name](), 4
    with jax.enable_x64(True):
        model = exact_student(path, kind, 2 * most)
        objective = progressive(
            model,
            total_steps=30,
            max_steps=most,
            spacing=build_spacing(path),
            weighting=lambda p, t: 1.0,
        )
        loss = objective.players["network"].loss
        for stage in range(3):
            step = 10 * stage + 5
            networks = {"teacher": halving(stage)}
            residual, grads = jax.value_and_grad(
                lambda p, networks=networks, step=step: loss(p, networks, batch(), KEY, step)[
                    0
                ].mean()
            )(halving(stage + 1))
            # Times are float32.
            assert float(residual) < 1e-9 and abs(float(grads["offset"])) < 1e-4
            # In the next stage, or with other parameters, the same student has a loss.
            wrong = loss(halving(stage + 1, 0.1), networks, batch(), KEY, step)[0].mean()
            assert float(wrong) == pytest.approx(0.01, rel=1e-2)
            other = loss(halving(stage), networks, batch(), KEY, step)[0].mean()
            assert float(other) > 1e-6
        eps = jax.random.normal(jax.random.key(5), (COUNT, 2))
        times = time_grid(build_spacing(path), 2 * most)
        start = path.prior(eps)
        expected = ddim()(GAUSSIAN.denoiser(path), path, start, times, None)
        for halvings, steps in ((1, 4), (2, 2), (3, 1)):
            given = halving(halvings), eps, {"label": jnp.zeros(COUNT, int)}, None
            samples = objective.sample(*given, steps=steps, guidance_scale=1.0)
            # The grid is float32.
            np.testing.assert_allclose(samples, expected, atol=2e-4)


@pytest.mark.parametrize("most", [1, 4, 16])
def test_the_last_student_has_the_gain_of_its_first_teacher(most):
    # DDIM in n equal angles scales N(0, 1) by cos(pi / 2n)^n; a student only equals its teacher.
    path = PATHS["vp_cosine"]()
    unit = Gaussian(jnp.zeros(1), jnp.ones(1))
    x = jnp.ones((1, 1))
    samples = ddim()(unit.denoiser(path), path, x, time_grid(build_spacing(path), 2 * most), None)
    gain = np.cos(np.pi / (4 * most)) ** (2 * most)
    assert float(samples[0, 0]) == pytest.approx(gain, rel=1e-5)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_the_loss_is_the_paper_s_in_numpy_in_each_stage(guidance):
    path, most = PATHS["vp_cosine"](), 4
    model = build_model(affine_network(), path, "v")
    objective = progressive(model, total_steps=12, max_steps=most, guidance_scale=guidance)
    student = affine_network().init(KEY)
    teacher = jax.tree.map(lambda leaf: 0.5 - leaf, student)
    data = batch(64)
    key_t, key_eps, _ = jax.random.split(KEY, 3)
    x_0, eps = np.asarray(data["x"]), np.asarray(jax.random.normal(key_eps, (64, 2)))
    null = np.full(64, -1)

    def x_hat(params, z, u, label):
        p = {name: np.asarray(leaf) for name, leaf in params.items()}
        v = p["a"] * z + p["b"] + p["c"] * u + p["e"][label][:, None]
        return np.cos(np.pi / 2 * u) * z - np.sin(np.pi / 2 * u) * v

    def taught(z, u, scale):
        label = np.asarray(data["label"])
        plain = x_hat(teacher, z, u, null)
        return plain + scale * (x_hat(teacher, z, u, label) - plain)

    for stage, step in enumerate((0, 4, 11)):
        n = most >> stage
        scale = guidance if stage == 0 else 1.0
        u = np.asarray(jax.random.randint(key_t, (64,), 1, n + 1))[:, None] / n
        (a, sd), (a_m, sd_m), (a_s, sd_s) = (
            (np.cos(np.pi / 2 * w), np.sin(np.pi / 2 * w)) for w in (u, u - 0.5 / n, u - 1 / n)
        )
        z = a * x_0 + sd * eps
        x = taught(z, u, scale)
        z_m = a_m * x + sd_m / sd * (z - a * x)
        x = taught(z_m, u - 0.5 / n, scale)
        z_s = a_s * x + sd_s / sd_m * (z_m - a_m * x)
        target = (z_s - sd_s / sd * z) / (a_s - sd_s / sd * a)
        error = ((x_hat(student, z, u, np.asarray(data["label"])) - target) ** 2).mean(axis=1)
        expected = np.maximum((a / sd)[:, 0] ** 2, 1.0) * error
        loss, _ = objective.players["network"].loss(student, {"teacher": teacher}, data, KEY, step)
        np.testing.assert_allclose(loss, expected, rtol=2e-3, atol=1e-5)


def test_the_teacher_of_a_stage_is_the_student_of_the_one_before_and_stays():
    """Through the config and the training step: teacher, average and rate of each stage."""
    fields = {"objective.max_steps": 4, "ema.decays": (0.5,), "optimizer.learning_rate": 1e-2}
    config = small_config("progressive", steps=6, **fields)
    experiment = build(config, affine_network())
    rate = experiment.optimizers["network"].learning_rate
    assert rate(0) == rate(2) == rate(4) > rate(1) > 0.0
    objective, optimizers = experiment.objective, experiment.optimizers
    state = create_state(objective, optimizers, 0, {}, make_mesh())
    step = jax.jit(train_step(objective, optimizers, 0))
    batch = random_batch(objective, 16, (2,), 3)
    teachers, students, averages = [], [], []
    for _ in range(6):
        teachers.append(state.followers["teacher"])
        students.append(state.networks["network"])
        averages.append(state.followers["ema_0.5"])
        state, _ = step(state, {}, batch)
    for start in (2, 4):
        jax.tree.map(np.testing.assert_array_equal, teachers[start + 1], students[start])
        # The average lies between the first two students of the stage.
        before, after, found = (
            np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
            for tree in (students[start], students[start + 1], averages[start + 1])
        )
        moved = np.abs(after - before) > 1e-4
        share = (found - before)[moved] / (after - before)[moved]
        assert moved.sum() > 2 and 0.1 < share[0] < 0.95
        np.testing.assert_allclose(share, share[0], rtol=0.02)


def test_guidance_is_computed_in_the_first_stage_alone():
    rows = []

    def apply(params, x, t, s, condition, *, train=False, rng=None):
        if not train:
            jax.debug.callback(lambda x: rows.append(len(x)), x)
        return affine_network().apply(params, x, t, s, condition)

    model = build_model(Network(affine_network().init, apply, shape=(2,)), PATHS["linear"]())
    objective = progressive(model, total_steps=9, max_steps=4, guidance_scale=2.0)
    params = affine_network().init(KEY)
    loss = jax.jit(objective.players["network"].loss)
    for step, expected in ((2, [128, 128]), (3, [64, 64]), (8, [64, 64])):
        rows.clear()
        jax.block_until_ready(loss(params, {"teacher": params}, batch(64), KEY, step))
        jax.effects_barrier()
        assert rows == expected


def test_weights_are_those_of_the_error_of_x_0_and_eps():
    path, t = PATHS["vp_cosine"](), jnp.array([0.1, 0.5, 0.9, 1.0])
    snr = np.tan(np.pi / 2 * np.asarray(t)) ** -2.0
    truncated, plus_one = (WEIGHTINGS[n](path, t) for n in ("truncated_snr", "snr_plus_one"))
    np.testing.assert_allclose(truncated, np.maximum(snr, 1.0), rtol=1e-4)
    np.testing.assert_allclose(plus_one, snr + 1.0, rtol=1e-4)
    # On a variance-preserving path the second is the error of v.
    model = exact_denoiser(GAUSSIAN, path, "v")
    x_t = jax.random.normal(KEY, (4, 2))
    ends = model.endpoints({"offset": jnp.zeros(())}, x_t, t, {})
    moved = model.endpoints({"offset": jnp.float32(0.1)}, x_t, t, {})
    np.testing.assert_allclose(plus_one[:, None] * (moved.x_0 - ends.x_0) ** 2, 0.01, rtol=1e-3)


@pytest.mark.parametrize("name", ["linear", "vp_cosine"])
def test_the_weight_of_the_velocity_is_that_of_its_error(name):
    path, t = PATHS[name](), jnp.array([0.1, 0.5, 0.9, 1.0])
    model = exact_denoiser(GAUSSIAN, path, "velocity")
    x_t = jax.random.normal(KEY, (4, 2))
    ends = model.endpoints({"offset": jnp.zeros(())}, x_t, t, {})
    moved = model.endpoints({"offset": jnp.float32(0.1)}, x_t, t, {})
    weight = WEIGHTINGS["velocity"](path, t)[:, None]
    np.testing.assert_allclose(weight * (moved.x_0 - ends.x_0) ** 2, 0.01, rtol=1e-3)


def test_stages_halve_the_steps_in_equal_parts_of_the_training():
    assert halving_stages(8, 100) == (
        Stage(0, (8,)),
        Stage(25, (4,)),
        Stage(50, (2,)),
        Stage(75, (1,)),
    )
    assert [stage.start for stage in halving_stages(4, 10)] == [0, 3, 6]
    assert halving_stages(1, 7) == (Stage(0, (1,)),)


def test_times_are_the_ends_of_the_steps_that_the_sampler_takes():
    path = PATHS["vp_ddpm"]()
    spacing = build_spacing(path)
    t, middle, s = draw_times(KEY, 4000, jnp.int32(4), spacing)
    for drawn, fractions in ((t, (1, 2, 3, 4)), (middle, (0.5, 1.5, 2.5, 3.5)), (s, (0, 1, 2, 3))):
        values, counts = np.unique(drawn, return_counts=True)
        np.testing.assert_allclose(values, spacing.time(jnp.array(fractions) / 4.0), rtol=1e-5)
        assert counts.min() > 850
    np.testing.assert_allclose(np.unique(t), time_grid(spacing, 4)[-2::-1], rtol=1e-5)
    assert all(late > early for early, late in pairwise(np.unique(t)))


@pytest.mark.parametrize("steps", [0, 3, 16, -1])
def test_other_numbers_of_steps_are_refused(steps):
    model = build_model(affine_network(), PATHS["linear"]())
    sample = ddim_sampler(model, build_spacing(model.path), 8, learned_guidance(1.0))
    inputs = affine_network().init(KEY), jnp.ones((2, 1)), {"label": jnp.zeros(2, jnp.int32)}, None
    with pytest.raises(ValueError, match=f"power of two of steps up to 8, .* not in {steps}$"):
        sample(*inputs, steps=steps, guidance_scale=1.0)
    with pytest.raises(ValueError, match="trained at guidance scale 1 only, not 2"):
        sample(*inputs, steps=4, guidance_scale=2.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_steps": 12}, "objective.max_steps must be a power of two, not 12"),
        ({"max_steps": 0}, "objective.max_steps must be a power of two, not 0"),
        (
            {"max_steps": 8, "total_steps": 3},
            "has 4 stages, for which 3 training steps",
        ),
    ],
)
def test_fields_out_of_range_are_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        progressive(
            build_model(affine_network(), PATHS["linear"]()), **{"total_steps": 10, **fields}
        )


def test_a_prediction_of_noise_cannot_end_in_one_step():
    with pytest.raises(ValueError, match="says too little about the data"):
        progressive(build_model(affine_network(), PATHS["vp_ddpm"](), "eps"), total_steps=10)
