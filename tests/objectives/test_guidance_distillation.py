"""Guidance distillation on classes of one covariance, whose guidance is known in closed form.

E[x_0 | x_t] is affine in the mean. Guidance at w of N(mean_y, S) against N(mean_null, S) is thus
the Gaussian of mean mean_null + w (mean_y - mean_null).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.diffusion.path import PATHS
from fewstep.diffusion.prediction import KINDS, Endpoints, coefficients
from fewstep.diffusion.spacing import SPACINGS, uniform_spacing
from fewstep.models.network import Network
from fewstep.objectives.guidance_distillation import guidance_distillation
from fewstep.objectives.progressive import draw_times, progressive, two_step_target
from tests.gaussian import Gaussian
from tests.networks import affine_network, build_model, unscaled_model

KEY = jax.random.key(0)
MEANS = jnp.array([[1.0, -1.0], [-0.5, 0.4], [0.2, 0.1]])  # the last is the null class
VARIANCE = jnp.array([0.25, 1.7])
RANGE = (1.0, 4.0)
COUNT = 512


def guided_means(label, scale):
    null, own = MEANS[-1], MEANS[jnp.where(label < 0, 2, label)]
    return null + scale[:, None] * (own - null)


def class_model(path, kind, second_time="none"):
    """The model of all classes at scale 1 + params["reads"] (w - 1): 0 is a teacher, 1 a student.

    params["offset"] is added to the output.
    """

    def apply(params, x, t, s, condition, *, train=False, rng=None):
        scale = 1.0 + params["reads"] * (condition["guidance_scale"] - 1.0)
        data = Gaussian(guided_means(condition["label"], scale), VARIANCE)
        ends = Endpoints(data.x_0(path, x, t), data.eps(path, x, t))
        return KINDS[kind].encode(ends, x, coefficients(path, t, x)) + params["offset"]

    init = lambda key: {"reads": jnp.zeros(()), "offset": jnp.zeros(())}
    network = Network(init, apply, second_time, guidance_input=True, shape=(2,))
    return unscaled_model(network, path, kind)


def weights(reads, offset=0.0):
    return {"reads": jnp.float32(reads), "offset": jnp.float32(offset)}


def data(count=COUNT):
    label = jnp.arange(count) % 2
    x = Gaussian(jnp.zeros(2), VARIANCE).sample(jax.random.key(1), count) + MEANS[label]
    return {"x": x, "label": label}


@pytest.mark.parametrize(
    ("name", "kind"), [("linear", "velocity"), ("vp_cosine", "v"), ("ve", "F")]
)
def test_the_optimum_is_the_guided_teacher_at_every_scale(name, kind):
    path = PATHS[name]()
    spacing = SPACINGS["karras" if name == "ve" else "uniform"](path)
    objective = guidance_distillation(
        class_model(path, kind), guidance_range=RANGE, spacing=spacing
    )
    loss = objective.players["network"].loss
    mean = lambda params: float(loss(params, {"teacher": weights(0)}, data(), KEY, 0)[0].mean())
    assert mean(weights(1)) < 1e-8
    assert mean(weights(1, 0.1)) == pytest.approx(0.01, rel=1e-3)
    assert mean(weights(0)) > 1e-2  # the unguided teacher, where a student starts
    # Samples of a scale are those of the extrapolated mean.
    eps, label = jax.random.normal(KEY, (64, 2)), jnp.arange(64) % 2
    for scale in (1.0, 3.0):
        made = objective.sample(
            weights(1), eps, {"label": label}, None, steps=256, guidance_scale=scale
        )
        target = Gaussian(guided_means(label, jnp.full(64, scale)), VARIANCE)
        start, (high, low) = path.prior(eps), (jnp.full(64, t) for t in (path.t_max, path.t_min))
        np.testing.assert_allclose(made, target.flow_map(path, start, high, low), atol=0.1)


def test_a_row_without_label_learns_the_null_prediction_at_every_scale():
    path = PATHS["linear"]()
    objective = guidance_distillation(
        class_model(path, "velocity"), guidance_range=RANGE, label_dropout=1.0
    )
    rows, _ = objective.players["network"].loss(weights(0), {"teacher": weights(0)}, data(), KEY, 0)
    assert float(jnp.abs(rows).max()) < 1e-8


def test_the_student_has_a_gradient_and_its_teacher_matters():
    model = class_model(PATHS["linear"](), "velocity")
    loss = guidance_distillation(model, guidance_range=RANGE).players["network"].loss
    mean = lambda p, teacher: loss(p, {"teacher": teacher}, data(), KEY, 0)[0].mean()
    student = weights(0.5)
    gradient = jax.grad(mean)(student, weights(0))
    assert abs(float(gradient["reads"])) > 1e-3
    assert abs(float(mean(student, weights(0, 0.2)) - mean(student, weights(0)))) > 1e-3


@pytest.mark.parametrize("stage", [0, 1])
def test_progressive_from_it_keeps_the_scale_of_each_row(stage):
    # Its first teacher takes the scale as an input: no null row, and no guidance twice.
    path, most = PATHS["linear"](), 4
    calls, model = [], class_model(path, "velocity")._replace(teacher_scales=RANGE)
    apply = model.network.apply

    def record(params, x, t, s, condition, **mode):
        calls.append((x, condition))
        return apply(params, x, t, s, condition, **mode)

    model = model._replace(network=model.network._replace(apply=record))
    objective = progressive(
        model, total_steps=30, max_steps=most, guidance_range=RANGE, guidance_scale=2.0
    )
    loss = objective.players["network"].loss
    rows, _ = loss(weights(1), {"teacher": weights(1)}, data(), KEY, 10 * stage + 5)
    assert [len(x) for x, _ in calls] == [COUNT] * 3
    scale = calls[0][1]["guidance_scale"]
    assert 1.0 <= float(scale.min()) < 1.2 and 3.8 < float(scale.max()) <= 4.0
    for _, condition in calls:
        np.testing.assert_array_equal(condition["guidance_scale"], scale)
    # The target is that of the guided Gaussian of each row.
    spacing = uniform_spacing(path)
    t, middle, s = draw_times(jax.random.split(KEY, 4)[0], COUNT, most >> stage, spacing)
    guided = Gaussian(guided_means(data()["label"], scale), VARIANCE)
    x_t = calls[0][0]
    target = two_step_target(guided.denoiser(path), path, x_t, t, middle, s)
    weight = np.maximum((np.asarray(t) / np.maximum(1e-9, 1 - np.asarray(t))) ** -2.0, 1.0)
    expected = weight * np.mean((guided.x_0(path, x_t, t) - target) ** 2, axis=1)
    np.testing.assert_allclose(rows, expected, rtol=1e-3, atol=1e-5)


def test_a_range_of_progressive_guides_a_plain_teacher_by_row_in_the_first_stage():
    path = PATHS["linear"]()
    model = class_model(path, "velocity")
    objective = progressive(model, total_steps=20, max_steps=2, guidance_range=RANGE)
    loss = objective.players["network"].loss
    both = [
        loss(weights(1), {"teacher": weights(reads)}, data(), KEY, step)[0]
        for reads, step in ((0, 5), (1, 5), (1, 15))
    ]
    aware = (
        progressive(
            model._replace(teacher_scales=RANGE), total_steps=20, max_steps=2, guidance_range=RANGE
        )
        .players["network"]
        .loss(weights(1), {"teacher": weights(1)}, data(), KEY, 5)[0]
    )
    # Guided from outside, or by its input: the same target.
    np.testing.assert_allclose(both[0], aware, rtol=1e-3, atol=1e-5)
    assert np.abs(both[1] - aware).max() > 1e-2  # guided twice
    given = weights(1), jnp.ones((2, 2)), {"label": jnp.zeros(2, int)}, None
    one, other = (objective.sample(*given, steps=2, guidance_scale=w) for w in (1.0, 4.0))
    assert np.abs(one - other).max() > 0.1
    with pytest.raises(ValueError, match="guidance scale 5 is outside 1 to 4"):
        objective.sample(*given, steps=2, guidance_scale=5.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"guidance_range": ()}, "objective.guidance_range is empty"),
        ({"guidance_range": (4.0, 1.0)}, r"must be \(low, high\), 0 <= low <= high"),
        ({"guidance_scale": 9.0}, "objective.guidance_scale=9, the default of sampling, must be"),
    ],
)
def test_fields_out_of_range_are_errors(fields, message):
    model = class_model(PATHS["linear"](), "velocity")
    with pytest.raises(ValueError, match=message):
        guidance_distillation(model, **fields)
    with pytest.raises(ValueError, match="needs model.guidance_input=True"):
        guidance_distillation(build_model(affine_network(), PATHS["linear"]()))
