"""The U-Nets, by their parts. tests/parity compares whole networks with PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from fewstep.models.adm_unet import ADM, adm_unet
from fewstep.models.resampling import double, halve, halve_inner
from fewstep.models.song_unet import DDPMPP, song_unet
from fewstep.models.unet_blocks import UNetBlock

SHAPE, CLASSES = (8, 8, 2), 3
FIELDS = {"width": 8, "multipliers": (1, 2), "depth": 1, "attention_sides": (8,)}
NETWORKS = {
    "ddpmpp": lambda **fields: song_unet(SHAPE, CLASSES, **FIELDS | fields),
    "ncsnpp": lambda **fields: song_unet(SHAPE, CLASSES, variant="ncsnpp", **FIELDS | fields),
    "adm": lambda **fields: adm_unet(SHAPE, CLASSES, **FIELDS | fields),
}


def each(test):
    """Run a test with every network, in turn."""
    return pytest.mark.in_turn("name", 3)(pytest.mark.parametrize("name", NETWORKS)(test))


X = jax.random.normal(jax.random.key(0), (3, *SHAPE))
T, S = jnp.array([-1.0, 0.2, 0.9]), jnp.array([-1.5, -0.1, 0.3])
CONDITION = {"label": jnp.array([0, 2, -1]), "guidance_scale": jnp.ones(3)}


def make(name, random_params, **fields):
    network = NETWORKS[name](**fields)
    params = random_params(jax.eval_shape(network.init, jax.random.key(0)))
    return network, params


def matrix(taps, size):
    """The matrix [size / 2, size] that halves a line, by the formula of models/resampling.py."""
    pad = len(taps) // 2 - 1
    rows = np.zeros((size // 2, size))
    for i in range(size // 2):
        for k, tap in enumerate(taps):
            if 0 <= 2 * i + k - pad < size:
                rows[i, 2 * i + k - pad] = tap / sum(taps)
    return rows


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (1, 2, 4, 4, 2, 1)])
def test_resampling_is_a_matrix_along_each_axis(taps):
    x = np.random.default_rng(0).standard_normal((2, 8, 6, 3))
    rows, columns = matrix(taps, 8), matrix(taps, 6)
    np.testing.assert_allclose(
        halve(x, taps), np.einsum("ih,jw,bhwc->bijc", rows, columns, x), atol=1e-6
    )
    # Doubling is the transpose of halving, times 2 along each axis.
    rows, columns = 2 * matrix(taps, 16).T, 2 * matrix(taps, 12).T
    np.testing.assert_allclose(
        double(x, taps), np.einsum("hi,wj,bijc->bhwc", rows, columns, x), atol=1e-6
    )


def test_the_box_averages_and_repeats_and_a_border_is_read():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(halve(x, (1, 1))[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]])
    np.testing.assert_array_equal(double(x, (1, 1)), x.repeat(2, 1).repeat(2, 2))
    smooth = (1, 3, 3, 1)
    inner = halve_inner(jnp.ones((1, 6, 6, 1)), smooth)
    np.testing.assert_array_equal(inner, jnp.ones((1, 2, 2, 1)))
    assert halve(jnp.ones((1, 4, 4, 1)), smooth)[0, 0, 0, 0] == (7 / 8) ** 2


def normalised(x, params, epsilon):
    """Group normalisation by the formula: 4 channels a group here. x: [B, H, W, C]."""
    groups = np.float64(x).reshape(*x.shape[:3], -1, 4)
    centred = groups - groups.mean(axis=(1, 2, 4), keepdims=True)
    deviation = np.sqrt(np.square(centred).mean(axis=(1, 2, 4), keepdims=True) + epsilon)
    return (centred / deviation).reshape(x.shape) * params["scale"] + params["bias"]


def convolved(x, params):
    """A 3 x 3 convolution with a border of zeros, as nine shifted products."""
    wide = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    taps = [(i, j) for i in range(3) for j in range(3)]
    parts = (wide[:, i : i + height, j : j + width] @ params["kernel"][i, j] for i, j in taps)
    return sum(parts) + params["bias"]


def silu(x):
    return x / (1.0 + np.exp(-x))


@pytest.mark.parametrize("style", [DDPMPP, ADM], ids=["ddpmpp", "adm"])
def test_a_block_is_its_equations(style, random_params):
    """With attention of heads of 4 channels, which are 2."""
    style = style._replace(head_width=4)
    block = UNetBlock(8, True, "keep", style, "float32", 0.0)
    rng = np.random.default_rng(0)
    x, c = rng.standard_normal((2, 4, 4, 4)), rng.standard_normal((2, 5))
    x, c = x.astype(np.float32), c.astype(np.float32)
    params = random_params(jax.eval_shape(block.init, jax.random.key(0), x, c))["params"]
    found = block.apply({"params": params}, x, c)

    p = jax.tree.map(np.float64, params)
    h = convolved(silu(normalised(x, p["norm_in"], style.epsilon)), p["conv_in"])
    affine = (c @ p["affine"]["kernel"] + p["affine"]["bias"])[:, None, None]
    if style.modulated:
        scale, shift = affine[..., :8], affine[..., 8:]
        h = normalised(h, p["norm_out"], style.epsilon) * (1.0 + scale) + shift
    else:
        h = normalised(h + affine, p["norm_out"], style.epsilon)
    h = convolved(silu(h), p["conv_out"])
    h = (x @ p["skip"]["kernel"] + p["skip"]["bias"] + h) * style.skip_scale
    a = p["attention"]
    qkv = normalised(h, a["norm"], style.epsilon) @ a["qkv"]["kernel"] + a["qkv"]["bias"]
    q, k, v = np.moveaxis(qkv.reshape(2, 16, 3, 2, 4), 2, 0)
    logits = np.einsum("bqhd,bkhd->bhqk", q, k) / 2.0
    weights = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    mixed = np.einsum("bhqk,bkhd->bqhd", weights, v).reshape(2, 4, 4, 8)
    mixed = mixed @ a["projection"]["kernel"] + a["projection"]["bias"]
    np.testing.assert_allclose(found, (h + mixed) * style.skip_scale, rtol=1e-3, atol=1e-3)


@each
def test_the_output_is_nearly_zero_at_first(name):
    network = NETWORKS[name]()
    out = jax.jit(network.apply)(network.init(jax.random.key(0)), X, T, S, CONDITION)
    assert out.shape == X.shape and out.dtype == jnp.float32
    assert np.abs(out).max() < 1e-4


@each
def test_every_input_matters(name, random_params):
    network, params = make(name, random_params, second_time="interval", guidance_input=True)
    apply = jax.jit(network.apply)
    out = apply(params, X, T, S, CONDITION)
    changes = [
        (X.at[:, 0, 0].add(1.0), T, S, CONDITION),
        (X, T + 0.1, S + 0.1, CONDITION),
        (X, T, S - 0.3, CONDITION),
        (X, T, S, CONDITION | {"label": jnp.array([1, 0, 2])}),
        (X, T, S, CONDITION | {"guidance_scale": jnp.array([2.0, 3.0, 4.0])}),
    ]
    for inputs in changes:
        rows = np.abs(apply(params, *inputs) - out).reshape(3, -1).max(1)
        assert (rows > 1e-3).all()


@each
def test_the_null_class_reads_no_row_and_a_label_past_the_table_is_nan(name, random_params):
    network, params = make(name, random_params)
    apply = jax.jit(network.apply)
    null, past = ({"label": jnp.full(3, label)} for label in (-1, CLASSES))
    mapping = params["mapping"]
    empty = {**mapping, "label_table": jnp.zeros_like(mapping["label_table"])}
    without = apply({**params, "mapping": empty}, X, T, S, {"label": jnp.array([0, 1, 2])})
    np.testing.assert_array_equal(apply(params, X, T, S, null), without)
    assert np.isnan(apply(params, X, T, S, past)).all()


def test_random_frequencies_have_no_gradient(random_params):
    network, params = make("ncsnpp", random_params)

    def loss(params):
        return jnp.square(network.apply(params, X, T, S, CONDITION)).sum()

    mapping = jax.jit(jax.grad(loss))(params)["mapping"]
    assert np.abs(mapping["label_table"][jnp.array([0, 2])]).min() > 0.0
    np.testing.assert_array_equal(mapping["frequencies"], 0.0)


@each
def test_features_are_the_images_after_each_block(name, random_params):
    network, params = make(name, random_params)
    output, hidden = jax.jit(
        lambda params: network.features(params, X, T, S, CONDITION, network.hidden)
    )(params)
    expected = jax.jit(network.apply)(params, X, T, S, CONDITION)
    np.testing.assert_allclose(output, expected, atol=5e-6)
    assert network.hidden == (
        *("encoder_0_block_0", "encoder_1_halving", "encoder_1_block_0", "middle_0", "middle_1"),
        *("decoder_1_block_0", "decoder_1_block_1", "decoder_0_doubling"),
        *("decoder_0_block_0", "decoder_0_block_1"),
    )
    sides = {key: (value.shape[1], value.shape[3]) for key, value in hidden.items()}
    assert sides["encoder_1_halving"] == (4, 8) and sides["middle_1"] == (4, 16)
    assert sides["decoder_0_doubling"] == (8, 16) and sides["decoder_0_block_1"] == (8, 8)


@each
def test_bfloat16_and_recomputation_change_little(name, random_params):
    network, params = make(name, random_params)
    expected = jax.jit(network.apply)(params, X, T, S, CONDITION)
    for fields, most in (({"dtype": "bfloat16"}, 0.05), ({"remat": True}, 1e-5)):
        out = jax.jit(NETWORKS[name](**fields).apply)(params, X, T, S, CONDITION)
        assert np.abs(out - expected).max() < most * np.abs(expected).max()


@each
def test_where_there_is_attention(name):
    # The side 8 has it in every block of ADM's decoder, and in the last block of the others.
    shapes = jax.eval_shape(NETWORKS[name]().init, jax.random.key(0))
    attending = {block for block, part in shapes.items() if "attention" in part}
    every = {"decoder_0_block_0"} if name == "adm" else set()
    assert attending == {"encoder_0_block_0", "middle_0", "decoder_0_block_1"} | every


@pytest.mark.parametrize(
    ("network", "shape", "classes", "fields", "parameters"),
    [
        (song_unet, (32, 32, 3), 10, {}, 55_734_147),
        (song_unet, (32, 32, 3), 0, {"variant": "ncsnpp"}, 56_395_651),
        (song_unet, (64, 64, 3), 0, {"multipliers": (1, 2, 2, 2)}, 61_804_419),
        (adm_unet, (64, 64, 3), 1000, {}, 295_899_267),
    ],
)
def test_published_sizes(network, shape, classes, fields, parameters):
    # Karras et al. 2022, table 7: 56, 62 and 296 million; their code counts 1,152 more, which embed
    # labels of augmentations.
    shapes = jax.eval_shape(network(shape, classes, **fields).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters


@each
def test_guidance_and_its_interval_have_no_effect_at_first(name):
    network = NETWORKS[name](guidance_input=True, guidance_interval=True)
    params = network.init(jax.random.key(0))
    outputs = {
        key[:-2]: value
        for key, value in flatten_dict(params).items()
        if key[-2:] == ("output", "kernel") and "guidance" in key[-3]
    }
    assert len(outputs) == 3 and not any(np.any(value) for value in outputs.values())
