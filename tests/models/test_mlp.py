import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.models.conditioning import Conditioning, scalar_inputs
from fewstep.models.mlp import CoordinateNetworks, mlp

BATCH, DIMENSION, CLASSES = 6, 2, 4
FIELDS = {"shape": (DIMENSION,), "width": 16, "depth": 2, "num_classes": CLASSES}
X = jax.random.normal(jax.random.key(0), (BATCH, DIMENSION))
T, S = jnp.linspace(0.3, 1.0, BATCH), jnp.linspace(0.0, 0.6, BATCH)
CONDITION = {"label": jnp.arange(BATCH) % CLASSES, "guidance_scale": jnp.ones(BATCH)}


def make(random_params, **fields):
    network = mlp(**FIELDS | fields)
    params = random_params(jax.eval_shape(network.init, jax.random.key(0)))
    return jax.jit(network.apply), params


def silu(x):
    return x / (1.0 + np.exp(-x))


def test_output_is_zero_at_first():
    network = mlp(**FIELDS)
    out = network.apply(network.init(jax.random.key(0)), X, T, S, CONDITION)
    assert out.shape == X.shape and out.dtype == jnp.float32
    np.testing.assert_array_equal(out, 0.0)


def affine(layer, x):
    return x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])


def hidden_units(params, c):
    """The units after the blocks, at the points X."""
    h = affine(params["input"], np.asarray(X))
    for index in range(2):
        block = params[f"block_{index}"]
        shift, scale = np.split(affine(block["modulation"], silu(np.asarray(c))), 2, axis=-1)
        hidden = silu(affine(block["expand"], silu(h)) * (1 + scale) + shift)
        h = h + affine(block["contract"], hidden)
    return h


def test_against_numpy(random_params):
    apply, params = make(random_params, second_time="interval", time_scale=3.0)
    scalars = scalar_inputs("interval", False, 3.0)
    c = Conditioning(16, CLASSES, scalars).apply(
        {"params": params["conditioning"]}, T, S, CONDITION
    )

    expected = affine(params["output"], silu(hidden_units(params, c)))
    np.testing.assert_allclose(apply(params, X, T, S, CONDITION), expected, atol=2e-5)


def test_output_beside_a_score_is_clipped(random_params):
    score = CONDITION | {"score": 30.0 * X}
    apply, params = make(random_params, score_input=True)
    params["output"]["kernel"] *= 1e6
    params["score_gate"] = jax.tree.map(jnp.zeros_like, params["score_gate"])
    added = apply(params, X, T, S, score) - score["score"]
    assert np.abs(added).max() == pytest.approx(100.0, rel=1e-5)
    # A student has no paths that could go far, and a clipped output has no gradient.
    assert np.abs(apply(params, X, T, S, CONDITION)).max() > 1e4


def test_networks_of_coordinates_against_numpy(random_params):
    score = CONDITION | {"score": 30.0 * X}
    apply, params = make(random_params, score_input=True, coordinate_width=3)
    own = params["coordinates"]
    without = params | {"coordinates": jax.tree.map(jnp.zeros_like, own)}
    part = apply(params, X, T, S, score) - apply(without, X, T, S, score)

    c = Conditioning(16, CLASSES, scalar_inputs("none", False, 4.0)).apply(
        {"params": params["conditioning"]}, T, S, CONDITION
    )
    h = silu(np.asarray(hidden_units(params, c) + c))
    a, b, bias = np.split(affine(own["weights"], h)[:, None], 3, axis=-1)
    hidden = np.asarray(X)[..., None] * a + np.arcsinh(30.0 * X)[..., None] * b + bias
    np.testing.assert_allclose(part, affine(own["output"], silu(hidden))[..., 0], atol=2e-4)


def test_networks_of_coordinates_treat_coordinates_alike(random_params):
    """With a perceptron that gives one set of weights, they commute with permutations."""
    networks = CoordinateNetworks(5)
    x, h = X, jnp.ones((BATCH, 16))
    params = random_params(networks.init(jax.random.key(0), (x,), h))
    out = networks.apply(params, (x,), h)
    np.testing.assert_allclose(networks.apply(params, (x[:, ::-1],), h), out[:, ::-1], rtol=1e-5)
    assert np.abs(out[:, 0] - out[:, 1]).min() > 1e-3


def test_an_odd_network_is_odd_in_the_point_and_its_score(random_params):
    apply, params = make(random_params, score_input=True, coordinate_width=3, odd=True)
    out = apply(params, X, T, S, CONDITION | {"score": 3.0 * X + 1.0})
    mirrored = apply(params, -X, T, S, CONDITION | {"score": -3.0 * X - 1.0})
    np.testing.assert_allclose(mirrored, -out, atol=1e-5)
    plain, _ = make(random_params, score_input=True, coordinate_width=3)
    both = [
        plain(params, sign * X, T, S, CONDITION | {"score": sign * (3.0 * X + 1.0)})
        for sign in (1.0, -1.0)
    ]
    np.testing.assert_allclose(out, 0.5 * (both[0] - both[1]), atol=1e-4)
    assert np.abs(both[0] + both[1]).max() > 1e-2


def test_an_odd_network_has_hidden_features_of_the_points_alone(random_params):
    """And rows that share their time may have it once."""
    network = mlp(**FIELDS | {"num_classes": 0}, odd=True)
    params = random_params(jax.eval_shape(network.init, jax.random.key(0)))
    at = lambda t: network.features(params, X, t, t, {}, ["block_1"])
    (out, hidden), (once, _) = at(jnp.full(BATCH, 0.4)), at(jnp.full(1, 0.4))
    np.testing.assert_allclose(once, out, atol=1e-5)
    plain = mlp(**FIELDS | {"num_classes": 0})
    t = jnp.full(BATCH, 0.4)
    _, expected = plain.features(params, X, t, t, {}, ["block_1"])
    np.testing.assert_allclose(hidden["block_1"], expected["block_1"], atol=1e-5)


def test_every_condition_matters(random_params):
    apply, params = make(random_params, second_time="step_size", guidance_input=True)
    out = apply(params, X, T, S, CONDITION)
    changes = [
        (T + 0.1, S, CONDITION),
        (T, S / 2 - 0.05, CONDITION),
        (T, S, CONDITION | {"label": jnp.full(BATCH, -1)}),
        (T, S, CONDITION | {"guidance_scale": 3.0 * jnp.ones(BATCH)}),
    ]
    for change in changes:
        moved = np.abs(apply(params, X, *change) - out).max(axis=1)
        assert moved.min() > 1e-3


def test_jvp_against_finite_differences(random_params):
    apply, params = make(random_params, second_time="time")

    def velocity(x, t, s):
        return apply(params, x, t, s, CONDITION)

    tangents = (jnp.ones_like(X), jnp.ones(BATCH), -jnp.ones(BATCH))
    _, derivative = jax.jvp(velocity, (X, T, S), tangents)
    h = 2e-3
    difference = (velocity(X + h, T + h, S - h) - velocity(X - h, T - h, S + h)) / (2 * h)
    np.testing.assert_allclose(derivative, difference, atol=3e-3 * np.abs(difference).max())


def test_default_time_scale_keeps_the_time_derivative_near_the_output(random_params):
    apply, params = make(random_params)

    def root_mean_square(x):
        return float(jnp.sqrt(jnp.mean(jnp.square(x))))

    out, derivative = jax.jvp(lambda t: apply(params, X, t, S, CONDITION), (T,), (jnp.ones(BATCH),))
    assert 0.05 < root_mean_square(derivative) / root_mean_square(out) < 5.0


def test_bfloat16_is_close_to_float32(random_params):
    exact, params = make(random_params)
    rounded, _ = make(random_params, dtype="bfloat16")
    one, other = (f(params, X, T, S, CONDITION) for f in (exact, rounded))
    assert other.dtype == jnp.float32
    assert 1e-5 < np.abs(one - other).max() / np.std(one) < 0.1


@pytest.mark.parametrize("x", [X[:, :1], X[0]])
def test_bad_points_are_named(random_params, x):
    apply, params = make(random_params)
    with pytest.raises(ValueError, match=r"x has shape .*\[B, 2\]"):
        apply(params, x, T, S, CONDITION)
