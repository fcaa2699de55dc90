import inspect
import re
from functools import cache
from importlib import import_module

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.models import NETWORKS
from fewstep.models.conditioning import fix_guidance
from fewstep.models.dit import SIZES, DiTSize
from fewstep.models.network import check_inputs

# tests/models/test_codec_network.py has the other.
DENOISERS = [name for name in NETWORKS if name != "codec"]
X, T = jnp.zeros((2, 4, 4, 1)), jnp.zeros(2)


def build(name, **fields):
    """The network of that name in NETWORKS."""
    return NETWORKS[name].build(**fields)


@pytest.mark.parametrize(
    ("x", "t", "s", "words"),
    [
        (X[..., 0], T, T, r"x has shape .*\[B, 4, 4, 1\]"),
        (X[:, :3], T, T, "x has shape"),
        (X, T[0], T, "t has shape"),
        (X, T, jnp.zeros(3), "s has shape"),
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
        ("dit", {"shape": (2,)}, r"a DiT takes images .* not \[2\]"),
        ("mlp", {"shape": (0,)}, "dimension=0"),
        ("mlp", {"shape": (2,), "num_classes": -1}, "num_classes=-1"),
        ("mlp", {"shape": (2,), "dtype": "float16"}, "did you mean 'bfloat16'"),
        ("song_unet", {"shape": (2,)}, r"a U-Net takes images .* not \[2\]"),
        ("song_unet", {"shape": (6, 4, 3)}, "6 x 4 pixels are no multiple of 4; give fewer"),
        ("song_unet", {"shape": (4, 4, 3), "width": 48}, "width=48 must be a multiple of 32"),
        ("song_unet", {"shape": (4, 4, 3), "multipliers": ()}, "levels=0"),
        ("song_unet", {"shape": (4, 4, 3), "variant": "ddpm++"}, "is not one of ddpmpp, ncsnpp"),
        ("adm_unet", {"shape": (8, 8, 3), "width": 4, "depth": 0}, "depth=0"),
        ("adm_unet", {"shape": (8, 8, 3), "dropout": 1.0}, r"dropout=1.0 must be in \[0, 1\)"),
        ("adm_unet", {"shape": (8, 8, 3), "width": 224}, "3 heads do not divide 224 channels"),
    ],
)
def test_build_names_what_is_wrong(name, fields, words):
    with pytest.raises(ValueError, match=words):
        build(name, **fields)


UNET = {"width": 4, "multipliers": (1, 2), "depth": 1, "attention_sides": (4,)}
NETWORK_FIELDS = {
    "mlp": {"shape": (2,), "width": 8, "num_classes": 3},
    "dit": {"shape": (4, 4, 1), "size": "nano", "num_classes": 3},
    "song_unet": {"shape": (4, 4, 1), "num_classes": 3} | UNET,
    "adm_unet": {"shape": (4, 4, 1), "num_classes": 3} | UNET,
}
IMAGES = jnp.ones((2, 4, 4, 1))
POINTS = {"mlp": jnp.ones((2, 2)), "dit": IMAGES, "song_unet": IMAGES, "adm_unet": IMAGES}
CONDITION = {
    "label": jnp.array([0, -1]),
    "guidance_scale": jnp.array([1.0, 3.0]),
    "guidance_start": jnp.array([0.1, 0.4]),
    "guidance_end": jnp.array([0.6, 0.9]),
    "score": jnp.ones((2, 2)),
}


@pytest.mark.parametrize("name", DENOISERS)
def test_a_network_says_what_it_reads(name):
    plain = build(name, **NETWORK_FIELDS[name])
    assert (plain.second_time, plain.guidance_input, plain.log_weight) == ("none", False, None)
    network = build(name, **NETWORK_FIELDS[name], guidance_input=True, second_time="interval")
    assert (network.second_time, network.guidance_input, network.log_weight) == (
        "interval",
        True,
        None,
    )


def test_token_rows_are_those_that_devices_can_split(monkeypatch):
    fields = {**NETWORK_FIELDS["dit"], "shape": (12, 8, 1), "patch_size": 4}
    assert build("dit", **fields).token_rows == 3
    assert build("mlp", **NETWORK_FIELDS["mlp"]).token_rows == 1
    monkeypatch.setattr(
        import_module("fewstep.models.dit"), "attention_implementation", lambda *_: "cudnn"
    )
    assert build("dit", **fields).token_rows == 1


@pytest.mark.in_turn("name", 3)
@pytest.mark.parametrize("name", DENOISERS)
def test_a_loss_weight_has_its_own_parameters_and_leaves_apply_as_it_is(name, random_params):
    plain = build(name, **NETWORK_FIELDS[name])
    weighted = build(name, **NETWORK_FIELDS[name], loss_weight=True)
    params = jax.jit(weighted.init)(jax.random.key(0))
    own = jax.jit(plain.init)(jax.random.key(0))
    assert set(params) - set(own) == {"loss_weight"}
    chex.assert_trees_all_equal({k: params[k] for k in own}, own)
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
    # The weight does not read the network's parameters either.
    both = {**moved, "loss_weight": params["loss_weight"]}
    np.testing.assert_array_equal(weighted.log_weight(both, t), [0.0, 0.0])


@pytest.mark.parametrize("name", DENOISERS)
@pytest.mark.parametrize("second_time", ["none", "step_size"])
def test_rows_that_share_their_times_may_have_them_once(name, second_time, random_params):
    network = build(
        name, **NETWORK_FIELDS[name], second_time=second_time, guidance_input=True, dtype="float32"
    )
    params = random_params(jax.eval_shape(network.init, jax.random.key(0)))
    x = jax.random.normal(jax.random.key(1), POINTS[name].shape)
    t, s = jnp.array([0.7]), jnp.array([0.2])
    each = [jnp.repeat(time, len(x)) for time in (t, s)]
    apply = jax.jit(network.apply)
    expected = apply(params, x, *each, CONDITION)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3
    np.testing.assert_allclose(apply(params, x, t, s, CONDITION), expected, atol=1e-5)
    later = apply(params, x, t + 0.1, s, CONDITION)
    assert np.abs(later - expected).max() > 1e-4


# Fields that all networks have, and those of one: another value, and what is then another thing:
# the parameters' shapes, the network as it samples and as it trains, the loss's weight.
ALL = {
    "num_classes": (4, "shapes sampling training"),
    "second_time": ("time", "shapes sampling training"),
    "guidance_input": (True, "shapes sampling training"),
    "guidance_interval": (True, "shapes sampling training"),
    "loss_weight": (True, "shapes sampling training weight"),  # parameters are given to all
    "time_scale": (7.0, "sampling training weight"),
    "dtype": ("bfloat16", "sampling training"),
}
UNET_OWN = {
    "shape": ((8, 8, 1), "shapes sampling training"),
    "width": (8, "shapes sampling training"),
    "multipliers": ((2, 2), "shapes sampling training"),
    "depth": (2, "shapes sampling training"),
    "attention_sides": ((), "shapes sampling training"),
    "dropout": (0.1, "training"),
    "remat": (True, "sampling training"),
}
OWN = {
    "dit": {
        "shape": ((4, 4, 3), "shapes sampling training"),
        "size": ("wide", "shapes sampling training"),
        "patch_size": (4, "shapes sampling training"),
        "dropout": (0.1, "training"),
        "remat": (True, "sampling training"),
        "scan": (True, "shapes sampling training"),
        "trajectory": (2, "shapes sampling training"),
    },
    "song_unet": UNET_OWN | {"variant": ("ncsnpp", "shapes sampling training")},
    "adm_unet": UNET_OWN,
    "mlp": {
        "shape": ((3,), "shapes sampling training"),
        "width": (16, "shapes sampling training"),
        "depth": (1, "shapes sampling training"),
        "trajectory": (2, "shapes sampling training"),
        "score_input": (True, "shapes sampling training"),
        "coordinate_width": (4, "shapes sampling training"),
        "odd": (True, "sampling training"),
    },
}
# Fields of both networks; the last value of a field counts.
BESIDE = {"time_scale": [("loss_weight", True)], "dropout": [("dropout", 0.3)]}
# CPUs have xla only: tests/models/test_layers.py; of initial values: tests/models/test_dit.py; read
# by Model: tests/objectives/test_path_sampling.py
ELSEWHERE = {"attention", "adaln_zero", "score_precision"}


@pytest.fixture(scope="module")
def describe():
    """(name, fields) -> each part of a network as text, computed once."""
    with pytest.MonkeyPatch.context() as patch:
        for size, width in (("nano", 8), ("wide", 16)):
            patch.setitem(SIZES, size, DiTSize(width, 1, 2))
        yield cache(
            lambda name, *fields: describe_parts(build(name, **NETWORK_FIELDS[name] | dict(fields)))
        )


def describe_parts(network):
    """Each part of a network as text."""
    key = jax.random.key(0)
    params = jax.eval_shape(network.init, key)
    x, t = jnp.ones((2, *network.shape)), jnp.ones(2)

    def apply(params, x, t, s, condition, key, train):
        return network.apply(params, x, t, s, condition, train=train, rng=key)

    inputs = params, x, t, t, CONDITION, key
    made = {
        "shapes": params,
        "sampling": jax.make_jaxpr(lambda *inputs: apply(*inputs, train=False))(*inputs),
        "training": jax.make_jaxpr(lambda *inputs: apply(*inputs, train=True))(*inputs),
    }
    if network.log_weight:
        made["weight"] = jax.make_jaxpr(network.log_weight)(params, t)
    return {name: re.sub(r"0x[0-9a-f]+", "", str(part)) for name, part in made.items()}


@pytest.mark.in_turn("name", 3)
@pytest.mark.parametrize(
    ("name", "field"), [(name, field) for name in DENOISERS for field in (*ALL, *OWN[name])]
)
def test_a_field_reaches_what_it_is_for(describe, name, field):
    value, parts = (ALL | OWN[name])[field]
    beside = BESIDE.get(field, ())
    one, other = describe(name, *beside), describe(name, *beside, (field, value))
    differing = {part for part in one.keys() | other.keys() if one.get(part) != other.get(part)}
    assert differing == set(parts.split())


@pytest.mark.parametrize("name", DENOISERS)
def test_every_field_of_a_network_is_in_a_table(name):
    fields = set(inspect.signature(NETWORKS[name].build).parameters)
    assert fields - ELSEWHERE == {*ALL, *OWN[name]}


@pytest.mark.in_turn("name", 3)
@pytest.mark.parametrize("name", DENOISERS)
def test_a_network_at_one_guidance_scale_is_one_without_that_input(name, random_params):
    reads = build(name, **NETWORK_FIELDS[name], guidance_input=True)
    plain = build(name, **NETWORK_FIELDS[name])
    params = random_params(jax.eval_shape(reads.init, jax.random.key(0)))
    t = jnp.array([0.3, 0.8])
    for scale in (1.0, 3.5):
        condition = CONDITION | {"guidance_scale": jnp.full(2, scale)}
        fixed = fix_guidance(params, scale)
        chex.assert_trees_all_equal_shapes(fixed, jax.eval_shape(plain.init, jax.random.key(0)))
        ours = plain.apply(fixed, POINTS[name], t, t, {"label": CONDITION["label"]})
        np.testing.assert_allclose(
            ours, reads.apply(params, POINTS[name], t, t, condition), rtol=1e-4, atol=1e-5
        )
    other = reads.apply(params, POINTS[name], t, t, CONDITION | {"guidance_scale": jnp.ones(2)})
    assert np.abs(ours - other).max() > 1e-3
    # Parameters without that input stay as they are.
    chex.assert_trees_all_equal(fix_guidance(fixed, 2.0), fixed)
