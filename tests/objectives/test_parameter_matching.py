"""Matching in the teacher's parameters: the gradient is that of the distance between moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.diffusion.path import PATHS, align
from fewstep.objectives.base import SHARED
from fewstep.objectives.parameter_matching import (
    parameter_matching,
    precondition,
    teacher_gradient,
)
from fewstep.objectives.rows import split_rows
from tests.gaussian import Gaussian
from tests.networks import gaussian_denoiser

KEY = jax.random.key(0)
PATH = PATHS["linear"]()
MEAN, STD = 0.4, 0.7


def points(count, mean=MEAN, std=STD):
    """Samples of a generator N(mean, std^2), and their times and noises."""
    keys = jax.random.split(jax.random.key(3), 3)
    data = Gaussian(jnp.array([mean]), jnp.array([std**2]))
    return {
        "x_g": data.sample(keys[0], count),
        "t": jax.random.uniform(keys[1], (count,), minval=0.1, maxval=0.9),
        "eps": jax.random.normal(keys[2], (count, 1)),
    }


def evaluate(shared):
    """(gradient of the loss in x_g [B, 1], the metric `gap`) for an exact teacher."""
    model = gaussian_denoiser(PATH, MEAN, STD)
    teacher, count = model.network.init(KEY), len(shared["t"])
    loss = parameter_matching(model).players["network"].loss

    def total(x_g):
        batch = {"label": jnp.zeros(count, int), SHARED: {**shared, "x_g": x_g}}
        rows, metrics = loss(teacher, {"teacher": teacher}, batch, KEY, 0)
        return rows.sum(), metrics["gap"]

    gradient, gap = jax.grad(total, has_aux=True)(shared["x_g"])
    return gradient, float(gap.total / gap.count)


def test_the_gradient_is_that_of_the_distance_between_moments_at_fixed_points():
    model, shared = gaussian_denoiser(PATH, MEAN, STD), points(64, mean=1.0, std=0.5)
    teacher, label = model.network.init(KEY), {"label": jnp.zeros(64, int)}
    z_s = PATH.interpolate(shared["x_g"], shared["eps"], shared["t"])
    halves = [half[0] for half in split_rows(({**shared, "z": z_s}, label), 2)]

    def gradient_of(half, x_g):
        t = align(half["t"], x_g)
        own = {"x_g": x_g, "t": half["t"], "eps": (half["z"] - PATH.alpha(t) * x_g) / PATH.sigma(t)}
        return teacher_gradient(model, teacher, own, {"label": jnp.zeros(len(x_g), int)})

    nu = [gradient_of(half, half["x_g"]) for half in halves]
    directions, _ = precondition(*nu)

    def distance(x_g):  # nu_a^T Lambda nu_b; its derivative in both halves is that of nu^T nu / 2
        own = gradient_of(halves[0], x_g)
        return sum(-(own[name] * directions[1][name]).sum() for name in own)

    # The error of a velocity is that of x_0 over t; the mean is over 32 rows of one dimension.
    weight = 2.0 / halves[0]["t"] ** 2 / 32
    expected = jax.grad(distance)(halves[0]["x_g"])
    found = evaluate(shared)[0][::2]
    np.testing.assert_allclose(weight[:, None] * found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("mean", "std"), [(1.0, STD), (MEAN, 1.1)])
def test_a_student_that_matches_shares_no_gradient_and_another_is_led_to_the_data(mean, std):
    count = 2**14
    _, gap = evaluate(points(count))
    assert abs(gap) < 0.1
    moved, gap = evaluate(points(count, mean, std))
    assert gap > 0.15
    # Descent moves samples to the mean of the data, and narrows a distribution that is too wide.
    shift = points(count, mean, std)["x_g"] - MEAN
    assert float(moved.mean()) > 0.5 if mean > MEAN else float((moved * shift).mean()) > 0.1


def test_one_step_of_the_teacher_s_descent_is_the_fake_score_to_first_order():
    """y is the change of the prediction along -Lambda nu."""
    model, shared = gaussian_denoiser(PATH, MEAN, STD), points(64, mean=1.0)
    teacher = model.network.init(KEY)
    halves = [half[0] for half in split_rows((shared, {}), 2)]
    label = {"label": jnp.zeros(32, int)}
    directions, _ = precondition(*(teacher_gradient(model, teacher, h, label) for h in halves))
    small = 1e-3
    moved = jax.tree.map(lambda p, d: p + small * d, teacher, directions[1])
    z_s = PATH.interpolate(halves[0]["x_g"], halves[0]["eps"], halves[0]["t"])
    before, after = (
        model.endpoints(params, z_s, halves[0]["t"], label).x_0 for params in (teacher, moved)
    )
    np.testing.assert_allclose(evaluate(shared)[0][::2], (after - before) / small, rtol=2e-2)


def test_odd_batches_and_other_predictions_are_refused():
    with pytest.raises(ValueError, match="7 rows, .*use an even number"):
        evaluate(points(7))
    model = gaussian_denoiser(PATHS["linear"]())
    with pytest.raises(ValueError, match="least_steps=0 must be 1 or more"):
        parameter_matching(model, least_steps=0)
