import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.models.convnet import convnet, feature_maps
from fewstep.objectives.distances import (
    DISTANCES,
    cauchy,
    exponential,
    features,
    huber,
    l1,
    log_cosh,
    norm,
    pseudo_huber,
    pseudo_huber_elementwise,
    squared_error,
    squared_l2,
)

KEY = jax.random.key(0)
A = jax.random.normal(KEY, (5, 3, 4))
B = jax.random.normal(jax.random.key(1), (5, 3, 4))
DIFFERENCE = np.asarray(A - B, np.float64).reshape(5, 12)
LENGTH = np.linalg.norm(DIFFERENCE, axis=1)
# Distances of any arrays; `features` and `lpips` compare images.
OF_ARRAYS = sorted(DISTANCES.keys() - {"features", "lpips"})
# A scale between the lengths, so that the test covers both branches.
C = float(np.median(LENGTH))


@pytest.mark.parametrize(
    ("distance", "expected"),
    [
        (squared_l2(), (DIFFERENCE**2).mean(axis=1)),
        (l1(), np.abs(DIFFERENCE).mean(axis=1)),
        (pseudo_huber(0.3), np.sqrt((DIFFERENCE**2).sum(axis=1) + 0.09) - 0.3),
        (pseudo_huber(0.0), np.linalg.norm(DIFFERENCE, axis=1)),
        (pseudo_huber_elementwise(0.3), (np.sqrt(DIFFERENCE**2 + 0.09) - 0.3).mean(axis=1)),
        (norm(), LENGTH),
        (norm(3.0), LENGTH**3),
        (huber(C), np.where(LENGTH <= C, LENGTH**2 / 2, C * LENGTH - C**2 / 2)),
        (log_cosh(), np.log(np.cosh(DIFFERENCE)).mean(axis=1)),
        (exponential(4.0), np.exp(LENGTH**2 / 16.0) - 1.0),
        (cauchy(2.0), np.log(1.0 + LENGTH**2 / 4.0)),
    ],
)
def test_distances_are_their_formulas(distance, expected):
    np.testing.assert_allclose(distance(A, B), expected, rtol=1e-5)


def test_default_scale_of_the_pseudo_huber_distance_grows_with_the_dimension():
    # c = 0.00054 sqrt(D): at a difference far below c it is || a - b ||^2 / (2 c).
    for dimensions in (4, 400):
        # Large enough for float32 to see beside c.
        gap = 1e-4 * jnp.ones((1, dimensions))
        c = 0.00054 * dimensions**0.5
        expected = np.sqrt(dimensions * 1e-8 + c**2) - c
        assert float(pseudo_huber()(gap, 0 * gap)[0]) == pytest.approx(expected, rel=1e-2)


def test_gradient_of_the_pseudo_huber_distance_is_shorter_than_one():
    gradient = jax.grad(lambda a: pseudo_huber(0.3)(a, B).sum())(A).reshape(5, 12)
    norm = np.linalg.norm(DIFFERENCE, axis=1)
    expected = norm / np.sqrt(norm**2 + 0.09)
    np.testing.assert_allclose(np.linalg.norm(gradient, axis=1), expected, rtol=1e-5)


@pytest.mark.parametrize("name", OF_ARRAYS)
def test_equal_points_are_at_distance_zero_with_a_finite_gradient(name):
    options = {"c": 0.0} if "pseudo_huber" in name else {}
    distance = DISTANCES[name](**options)
    value, gradient = jax.value_and_grad(lambda a: distance(a, A).sum())(A)
    assert float(value) == pytest.approx(0.0, abs=1e-10)
    assert np.isfinite(gradient).all()


def test_scales_and_powers_out_of_range_are_errors():
    with pytest.raises(ValueError, match="distance.c=-1.0 must be 0 or more"):
        pseudo_huber(-1.0)
    with pytest.raises(ValueError, match="distance.c=0.0 must be positive"):
        cauchy(0.0)
    with pytest.raises(ValueError, match="distance.power=0.5 must be 1 or more"):
        norm(0.5)


def test_the_edges_of_scales_and_powers():
    for distance in (pseudo_huber, pseudo_huber_elementwise):
        distance(0.0)
        with pytest.raises(ValueError, match="must be 0 or more"):
            distance(-1e-9)
    for distance in (huber, exponential, cauchy):
        distance(1e-9)
        for c in (0.0, -1.0):
            with pytest.raises(ValueError, match="must be positive"):
                distance(c)
    with pytest.raises(ValueError, match="must be 1 or more"):
        norm(0.999)


@pytest.mark.parametrize(
    ("distance", "least"),
    [
        (squared_l2(), 1),
        (l1(), np.inf),
        (pseudo_huber(0.0), 2),
        (pseudo_huber(1e-9), 1),
        (pseudo_huber(), 1),
        (pseudo_huber_elementwise(0.0), np.inf),
        (pseudo_huber_elementwise(1e-9), 1),
        (norm(1.0), 2),
        (norm(1.5), 1),
        (huber(), 1),
        (log_cosh(), 1),
        (exponential(), 1),
        (cauchy(), 1),
    ],
)
def test_where_the_gradient_has_no_jump_that_matters(distance, least):
    assert distance.least_dimensions == least


def test_default_scales():
    for default, explicit in (
        (pseudo_huber_elementwise(), pseudo_huber_elementwise(0.001)),
        (norm(), norm(1.0)),
        (huber(), huber(1.0)),
        (exponential(), exponential(1.0)),
        (cauchy(), cauchy(1.0)),
    ):
        np.testing.assert_array_equal(default(A, B), explicit(A, B))


@pytest.mark.parametrize("name", OF_ARRAYS)
def test_shapes_that_numpy_would_broadcast_are_refused(name):
    with pytest.raises(AssertionError):
        DISTANCES[name]()(A, B[:1])
    with pytest.raises(AssertionError):
        squared_error(A, B[:1])


@pytest.fixture(scope="module")
def networks():
    return {"classifier": convnet((8, 8, 1), 3).init(jax.random.key(2))}


def pictures(seed):
    return jax.random.uniform(jax.random.key(seed), (3, 8, 8, 1), minval=-1.0, maxval=1.0)


def test_features_compare_the_channels_of_each_position_without_their_length(networks):
    a, b = pictures(0), pictures(1)
    expected = 0.7 * np.abs(np.asarray(a - b)).mean(axis=(1, 2, 3))
    for one, other in zip(*(feature_maps(networks["classifier"], x) for x in (a, b)), strict=True):
        one, other = (np.asarray(x, np.float64) for x in (one, other))
        one, other = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (one, other))
        expected = expected + ((one - other) ** 2).sum(axis=-1).mean(axis=(1, 2))
    np.testing.assert_allclose(features(0.7).given(networks)(a, b), expected, rtol=1e-5)


def test_features_of_equal_images_are_at_distance_zero_with_a_finite_gradient(networks):
    distance, images = features().given(networks), jnp.stack([jnp.zeros((8, 8, 1)), pictures(0)[0]])
    value, gradient = jax.value_and_grad(lambda a: distance(a, images).sum())(images)
    assert float(value) == pytest.approx(0.0, abs=1e-6)
    assert np.isfinite(gradient).all()


def test_features_read_one_network_and_refuse_a_negative_weight(networks):
    assert features().networks == ("classifier",) and squared_l2().networks == ()
    assert squared_l2().given({})(A, B).shape == (5,)
    with pytest.raises(ValueError, match=r"distance.pixels=-1 must be 0 or more"):
        features(-1.0)
    with pytest.raises(AssertionError):
        features().given(networks)(pictures(0), pictures(1)[:1])
