import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import NETWORKS, build
from models.network import check_inputs

X, T = jnp.zeros((2, 4, 4, 1)), jnp.zeros(2)


@pytest.mark.parametrize(
    ("x", "t", "s", "words"),
    [
        (X[..., 0], T, T, r"x has shape .*\[B, 4, 4, 1\]"),
        (X[:, :3], T, T, "x has shape"),
        (X, T[0], T, "t has shape"),
        (X, T, T[:1], "s has shape"),
        (X.astype(jnp.uint8), T, T, "x is uint8"),
        (X, T.astype(int), T, "t is int32"),
    ],
)
def test_bad_inputs_are_named(x, t, s, words):
    with pytest.raises(ValueError, match=words):
        check_inputs(x, t, s, (4, 4, 1))


def test_good_inputs_pass():
    check_inputs(X, T, np.zeros(2, np.float32), (4, 4, 1))


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("dot", {}, "network 'dot' .* Did you mean 'dit'"),
        ("dit", {"image_size": 4, "chanels": 1}, "dit field 'chanels' .* Did you mean 'channels'"),
        ("dit", {"image_size": 4}, "channels is missing"),
        ("mlp", {"image_size": 4}, "mlp field 'image_size' .* Did you mean"),
        ("mlp", {"dimension": 0}, "dimension=0"),
        ("mlp", {"dimension": 2, "num_classes": -1}, "num_classes=-1"),
        ("mlp", {"dimension": 2, "dtype": "float16"}, "Did you mean 'bfloat16'"),
    ],
)
def test_build_names_what_is_wrong(name, fields, words):
    with pytest.raises(ValueError, match=words):
        build(name, **fields)


def test_build_passes_the_fields_on():
    built = build("mlp", dimension=3, width=8, depth=2).init(jax.random.key(0))
    direct = NETWORKS["mlp"](dimension=3, width=8, depth=2).init(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, built, direct)
    assert built["output"]["kernel"].shape == (8, 3)
    assert {name for name in built if name.startswith("block")} == {"block_0", "block_1"}


NETWORK_FIELDS = {
    "mlp": {"dimension": 2, "width": 8, "num_classes": 3},
    "dit": {"image_size": 4, "channels": 1, "size": "nano", "num_classes": 3},
}
POINTS = {"mlp": jnp.ones((2, 2)), "dit": jnp.ones((2, 4, 4, 1))}
CONDITION = {"label": jnp.array([0, -1]), "guidance_scale": jnp.array([1.0, 3.0])}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_says_what_it_reads(name):
    plain = build(name, **NETWORK_FIELDS[name])
    assert (plain.second_time, plain.guidance_input, plain.log_weight) == ("none", False, None)
    told = build(name, **NETWORK_FIELDS[name], guidance_input=True, second_time="interval")
    assert (told.second_time, told.guidance_input, told.log_weight) == ("interval", True, None)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_loss_weight_has_its_own_parameters_and_leaves_apply_as_it_is(name, random_params):
    plain = build(name, **NETWORK_FIELDS[name])
    weighted = build(name, **NETWORK_FIELDS[name], loss_weight=True)
    params = jax.jit(weighted.init)(jax.random.key(0))
    own = jax.jit(plain.init)(jax.random.key(0))
    assert set(params) - set(own) == {"loss_weight"}
    jax.tree.map(np.testing.assert_array_equal, {k: params[k] for k in own}, own)
    t = jnp.array([0.2, 0.9])
    np.testing.assert_array_equal(weighted.log_weight(params, t), [0.0, 0.0])
    moved = random_params(params)
    log_weight = weighted.log_weight(moved, t)
    assert log_weight.shape == (2,) and np.abs(log_weight[0] - log_weight[1]) > 1e-3
    x = POINTS[name]
    expected = jax.jit(plain.apply)({k: moved[k] for k in own}, x, t, t, CONDITION)
    apply = jax.jit(weighted.apply)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_array_equal(apply(moved, x, t, t, CONDITION), expected)
    # It does not read the network's parameters either.
    both = {**moved, "loss_weight": params["loss_weight"]}
    np.testing.assert_array_equal(weighted.log_weight(both, t), [0.0, 0.0])
