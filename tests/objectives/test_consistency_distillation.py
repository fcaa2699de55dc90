import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.diffusion.path import PATHS
from fewstep.diffusion.spacing import SPACINGS
from fewstep.diffusion.time_pairs import constant, grid_pairs
from fewstep.objectives.consistency_distillation import consistency_distillation
from fewstep.samplers.ode import STEPS
from tests.gaussian import Gaussian
from tests.networks import affine_network, build_model, exact_consistency, exact_denoiser

KEY = jax.random.key(0)
GAUSSIAN = Gaussian(jnp.array([0.3, -0.7]), jnp.array([0.25, 1.7]))
COUNT = 4000


def batch(count=COUNT):
    return {"x": GAUSSIAN.sample(jax.random.key(1), count), "label": jnp.zeros(count, jnp.int32)}


def student_and_teacher(teacher, student):
    """(model, student's params, teacher's params): the parameters select the model's function."""

    def apply(params, *inputs, **kwargs):
        teaches = params["teaches"] > 0
        values = (m.network.apply(params, *inputs, **kwargs) for m in (teacher, student))
        return jnp.where(teaches, *values)

    network = student.network._replace(apply=apply)
    params = {"offset": jnp.zeros(()), "teaches": jnp.zeros(())}
    return student._replace(network=network), params, {**params, "teaches": jnp.ones(())}


def residual(path, kind, solver, points, offset=0.0):
    """Root of the mean loss at the exact consistency function, with the exact teacher."""
    with jax.enable_x64(True):
        model, student, teacher = student_and_teacher(
            exact_denoiser(GAUSSIAN, path, kind), exact_consistency(GAUSSIAN, path, kind)
        )
        objective = consistency_distillation(
            model,
            curriculum=constant(points),
            spacing=SPACINGS["uniform"](path),
            teacher_solver=STEPS[solver],
        )
        networks = {"teacher": teacher, "target": student}
        student = {**student, "offset": student["offset"] + offset}
        loss = objective.players["network"].loss(student, networks, batch(), KEY, 0)[0]
        return float(jnp.sqrt(loss.mean()))


@pytest.mark.parametrize(("solver", "order"), [("euler", 2), ("ddim", 2), ("heun", 3)])
@pytest.mark.parametrize("name", ["linear", "trigflow"])
def test_residual_at_the_exact_function_is_the_error_of_one_step(name, solver, order):
    # f(x_t) - f(x_s) with x_s off by O(h^order): it vanishes with the gap, at that rate.
    # Starts at a little noise: without noise Heun's step is Euler's.
    path = PATHS[name]()._replace(t_min=0.1)
    coarse, fine = (residual(path, "velocity", solver, n) for n in (33, 65))
    assert np.log2(coarse / fine) == pytest.approx(order, abs=0.25)
    assert fine < 2e-3
    assert residual(path, "velocity", solver, 65, offset=0.1) > 10 * fine


def test_the_student_learns_the_guided_field_at_the_scale_of_its_condition():
    # Class fields N(mu_y, S) and null field N(mu_0, S): guidance at w gives the field of
    # N(mu_0 + w (mu_y - mu_0), S), so the exact student of every w is known.
    path, variance = PATHS["linear"]()._replace(t_min=0.1), jnp.array([0.25, 1.7])
    means = jnp.array([[1.0, 0.5], [-0.6, 0.2], [0.1, -0.3]])  # two classes and the null class

    def field(condition):
        return Gaussian(means[condition["label"]], variance)

    def guided(condition):
        w = condition["guidance_scale"][:, None]
        mean = means[-1] + w * (means[condition["label"]] - means[-1])
        return Gaussian(mean, variance)

    teacher = exact_consistency(field, path)

    def apply(params, x, t, s, condition, *, train=False, rng=None):
        return field(condition).velocity(path, x, t)

    teacher = teacher._replace(network=teacher.network._replace(apply=apply))
    model, student, teaching = student_and_teacher(teacher, exact_consistency(guided, path))
    model = model._replace(network=model.network._replace(guidance_input=True))

    def loss(points, params):
        objective = consistency_distillation(
            model,
            curriculum=constant(points),
            spacing=SPACINGS["uniform"](path),
            guidance_range=(1.0, 4.0),
            guidance_scale=2.0,
        )
        data = {**batch(), "label": jnp.arange(COUNT) % 2}
        networks = {"teacher": teaching, "target": params}
        return float(objective.players["network"].loss(params, networks, data, KEY, 0)[0].mean())

    with jax.enable_x64(True):
        coarse, fine = loss(17, student), loss(33, student)
    assert np.log2(coarse / fine) == pytest.approx(6, abs=0.6)  # Heun's, squared
    assert fine < 1e-5


@pytest.mark.parametrize("scale", [1.0, 2.0, 3.0])
def test_guidance_at_a_fixed_scale_is_the_teacher_s(scale):
    # In numpy: one Euler step of the guided teacher, then the student at both ends.
    path = PATHS["linear"]()
    spacing, curriculum = SPACINGS["uniform"](path), constant(9)
    objective = consistency_distillation(
        build_model(affine_network(), path),
        curriculum=curriculum,
        spacing=spacing,
        teacher_solver=STEPS["euler"],
        target_decay=0.0,
        guidance_scale=scale,
    )
    student = affine_network().init(KEY)
    teacher = jax.tree.map(lambda leaf: 0.5 - leaf, student)
    data = {"x": GAUSSIAN.sample(KEY, 64), "label": jnp.arange(64) % 3}
    loss, _ = objective.players["network"].loss(student, {"teacher": teacher}, data, KEY, 0)
    key_t, key_eps, _ = jax.random.split(jax.random.split(KEY)[0], 3)
    t, s = (np.asarray(a)[:, None] for a in grid_pairs(spacing, curriculum)(key_t, 64, 0))
    x_0, label = np.asarray(data["x"]), np.asarray(data["label"])

    def u(params, x, time, label):
        p = {name: np.asarray(leaf) for name, leaf in params.items()}
        return p["a"] * x + p["b"] + p["c"] * time + p["e"][label][:, None]

    x_t = (1 - t) * x_0 + t * np.asarray(jax.random.normal(key_eps, (64, 2)))
    null = u(teacher, x_t, t, np.full(64, -1))
    x_s = x_t - (t - s) * (null + scale * (u(teacher, x_t, t, label) - null))
    f_t, f_s = (x - time * u(student, x, time, label) for x, time in ((x_t, t), (x_s, s)))
    np.testing.assert_allclose(loss, ((f_t - f_s) ** 2).mean(axis=1), rtol=1e-4, atol=1e-7)


def test_a_student_of_one_scale_samples_at_no_other():
    objective = consistency_distillation(
        build_model(affine_network(), PATHS["linear"]()), guidance_scale=2.0
    )
    inputs = affine_network().init(KEY), jnp.ones((2, 1)), {"label": jnp.zeros(2, jnp.int32)}, None
    objective.sample(*inputs, steps=1, guidance_scale=objective.guidance_scale)
    with pytest.raises(ValueError, match="trained at guidance scale 2 only, not 1"):
        objective.sample(*inputs, steps=1, guidance_scale=1.0)


def test_ema_target_follows_with_its_decay():
    model = build_model(affine_network(), PATHS["linear"]())
    assert not consistency_distillation(model, target_decay=0.0).followers
    objective = consistency_distillation(model, target_decay=0.9)
    follower = objective.followers["target"]
    assert follower.source == "network"
    assert float(follower.update(jnp.float32(1.0), jnp.float32(0.0), 5)) == pytest.approx(0.9)
    assert objective.frozen == ("teacher",)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"skip": 0}, "objective.skip=0"),
        ({"guidance_range": (2.0, 1.0)}, "0 <= low <= high"),
        ({"guidance_range": (1.0, 3.0)}, "model.guidance_input=True"),
        ({"target_decay": 1.0}, "EMA decay"),
    ],
)
def test_fields_out_of_range_are_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        consistency_distillation(build_model(affine_network(), PATHS["linear"]()), **fields)
