import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.diffusion.guidance import (
    check_trained_scale,
    drop_labels,
    extrapolate,
    guide,
    null_condition,
)
from fewstep.diffusion.path import PATHS
from fewstep.diffusion.prediction import KINDS, convert
from tests.gaussian import Gaussian

X = jax.random.normal(jax.random.key(0), (4, 2))
T = jnp.array([0.2, 0.4, 0.6, 0.8])
CONDITION = {"label": jnp.array([0, 1, 1, 0])}
# Class means, and the mean of the null class in the last row.
MEANS = jnp.array([[1.0, -1.0], [0.5, 2.0], [0.2, 0.1]])
VARIANCE = jnp.array([0.6, 1.4])


def class_field(path):
    """Exact velocity of N(MEANS[label], VARIANCE)."""

    def predict(x, t, s, condition):
        rows = [
            Gaussian(MEANS[label], VARIANCE).velocity(path, x[i : i + 1], t[i : i + 1])
            for i, label in enumerate(np.asarray(condition["label"]))
        ]
        return jnp.concatenate(rows)

    return predict


@pytest.mark.parametrize("scale", [0.0, 1.0, 1.5, 4.0])
def test_guided_gaussian_is_the_gaussian_of_the_extrapolated_mean(scale):
    path = PATHS["linear"]()
    guided = guide(class_field(path), scale)(X, T, T, CONDITION)
    mean = MEANS[-1] + scale * (MEANS[CONDITION["label"]] - MEANS[-1])
    for i in range(4):
        exact = Gaussian(mean[i], VARIANCE).velocity(path, X[i : i + 1], T[i : i + 1])
        np.testing.assert_allclose(guided[i : i + 1], exact, rtol=1e-5, atol=1e-5)


def test_guidance_makes_one_call_of_twice_the_rows():
    calls = []

    def predict(x, t, s, condition):
        calls.append(x.shape[0])
        return x

    guide(predict, 2.0)(X, T, T, CONDITION)
    guide(predict, 1.0)(X, T, T, CONDITION)
    assert calls == [8, 4]


def test_rows_that_share_their_time_are_guided_as_rows_of_their_own():
    def predict(x, t, s, condition):
        return (1.0 + t)[:, None] * x + s[:, None] * condition["label"][:, None]

    shared = guide(predict, 2.0)(X, T[1:2], T[:1], CONDITION)
    own = guide(predict, 2.0)(X, jnp.full(4, T[1]), jnp.full(4, T[0]), CONDITION)
    np.testing.assert_array_equal(shared, own)


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_is_the_same_in_every_kind(kind):
    path, kind, velocity = PATHS["vp_cosine"](), KINDS[kind], KINDS["velocity"]
    conditional, null = jax.random.normal(jax.random.key(1), (2, 4, 2))
    to = lambda v: convert(v, X, T, path, source=velocity, to=kind)
    guided = convert(
        extrapolate(to(conditional), to(null), 2.5), X, T, path, source=kind, to=velocity
    )
    np.testing.assert_allclose(guided, extrapolate(conditional, null, 2.5), rtol=1e-3, atol=1e-3)


def test_scale_per_row():
    guided = extrapolate(jnp.ones((2, 3)), jnp.zeros((2, 3)), jnp.array([0.0, 3.0]))
    np.testing.assert_array_equal(guided, [[0, 0, 0], [3, 3, 3]])


def test_guide_takes_a_scale_per_row():
    predict = class_field(PATHS["linear"]())
    scale = jnp.array([0.0, 1.0, 1.5, 4.0])
    together = guide(predict, scale)(X, T, T, CONDITION)
    for i, w in enumerate(scale):
        alone = guide(predict, float(w))(X, T, T, CONDITION)
        np.testing.assert_allclose(together[i], alone[i], rtol=1e-5, atol=1e-6)
    # Images too: the scale meets the rows, not the last axis.
    images = jnp.arange(4.0).reshape(4, 1, 1, 1) * jnp.ones((4, 2, 4, 1))
    by_label = lambda x, t, s, c: x * (c["label"] >= 0)[:, None, None, None]
    guided = guide(by_label, scale)(images, T, T, CONDITION)
    np.testing.assert_allclose(guided, images * scale[:, None, None, None])


def test_labels_are_dropped_at_the_given_rate():
    condition = {"label": jnp.arange(20_000) % 10, "other": jnp.zeros(20_000)}
    dropped = drop_labels(jax.random.key(3), condition, 0.1)
    is_null = np.asarray(dropped["label"]) == -1
    assert is_null.mean() == pytest.approx(0.1, abs=0.01)
    np.testing.assert_array_equal(dropped["label"][~is_null], condition["label"][~is_null])
    assert (np.asarray(null_condition(condition)["label"]) == -1).all()
    assert dropped["other"] is condition["other"]


@pytest.mark.parametrize("probability", [-0.1, 1.1])
def test_dropout_that_is_no_probability(probability):
    with pytest.raises(ValueError, match="label_dropout"):
        drop_labels(jax.random.key(0), CONDITION, probability)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_no_label_is_dropped_or_every_one(probability):
    dropped = drop_labels(jax.random.key(0), CONDITION, probability)
    expected = null_condition(CONDITION) if probability else CONDITION
    np.testing.assert_array_equal(dropped["label"], expected["label"])


def test_a_student_knows_its_own_scale_or_its_range_with_both_ends():
    check_trained_scale(1.5, 1.5)
    for scale in (1.0, 2.5, 4.0):
        check_trained_scale(scale, 1.5, (1.0, 4.0))
    for scale in (1.49, 1.51):
        with pytest.raises(ValueError, match="trained at guidance scale 1.5 only"):
            check_trained_scale(scale, 1.5)
    for scale in (0.99, 4.01):
        with pytest.raises(ValueError, match="outside 1 to 4"):
            check_trained_scale(scale, 1.5, (1.0, 4.0))


def test_guidance_of_leading_channels_leaves_the_others_as_predicted():
    path = PATHS["linear"]()
    field = class_field(path)
    conditional, guided = field(X, T, T, CONDITION), guide(field, 3.0)(X, T, T, CONDITION)
    partly = guide(field, 3.0, channels=1)(X, T, T, CONDITION)
    np.testing.assert_array_equal(partly[..., :1], guided[..., :1])
    np.testing.assert_array_equal(partly[..., 1:], conditional[..., 1:])
    assert float(jnp.abs(guided - conditional)[..., 1:].min()) > 1e-3
