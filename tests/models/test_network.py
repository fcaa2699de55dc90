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
