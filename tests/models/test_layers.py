import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.models.layers import (
    Attention,
    DiTBlock,
    FinalLayer,
    Mlp,
    modulate,
    normalize_tokens,
    patchify,
    position_table,
    unpatchify,
)

WIDTH, HEADS, TOKENS = 16, 4, 5


def draw(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def numpy_attention(x, params, heads):
    """One head at a time, in float64."""
    qkv = x @ np.float64(params["qkv"]["kernel"]) + np.float64(params["qkv"]["bias"])
    query, key, value = np.split(qkv, 3, axis=-1)
    head = x.shape[-1] // heads
    parts = []
    for start in range(0, x.shape[-1], head):
        q, k, v = (part[..., start : start + head] for part in (query, key, value))
        parts.append(softmax(q @ k.swapaxes(-1, -2) / np.sqrt(head)) @ v)
    mixed = np.concatenate(parts, axis=-1)
    return mixed @ np.float64(params["projection"]["kernel"]) + params["projection"]["bias"]


def attention_params(scale):
    return {
        "qkv": {
            "kernel": draw(WIDTH, 3 * WIDTH, seed=1, scale=scale),
            "bias": draw(3 * WIDTH, seed=2),
        },
        "projection": {"kernel": draw(WIDTH, WIDTH, seed=3), "bias": draw(WIDTH, seed=4)},
    }


def test_attention_against_numpy():
    x, params = draw(2, TOKENS, WIDTH), attention_params(scale=0.4)
    ours = Attention(HEADS, "float32").apply({"params": params}, x)
    np.testing.assert_allclose(ours, numpy_attention(x, params, HEADS), atol=2e-5)


@pytest.mark.parametrize("tokens", [5, 20])  # fewer queries than a chunk has; no multiple of it
def test_attention_in_chunks_is_the_same(tokens):
    x, params = draw(2, tokens, WIDTH), attention_params(scale=0.4)

    def outputs(implementation):
        attention = Attention(HEADS, "float32", implementation)
        value, pullback = jax.vjp(lambda p, x: attention.apply({"params": p}, x), params, x)
        return value, pullback(jnp.sin(value))

    whole, chunked = jax.jit(lambda: (outputs("xla"), outputs("chunked")))()
    np.testing.assert_allclose(chunked[0], numpy_attention(x, params, HEADS), atol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), chunked, whole)


def test_bfloat16_attention_keeps_its_softmax_in_float32():
    # bfloat16 would round logits of some hundreds by about one, a factor e in a weight.
    logit_scale = 8.0
    x = np.asarray(jnp.asarray(draw(2, TOKENS, WIDTH), jnp.bfloat16), np.float32)
    identity = np.eye(WIDTH, dtype=np.float32)
    query_key = np.float32(logit_scale) * identity
    params = {
        "qkv": {
            "kernel": np.concatenate([query_key, query_key, identity], axis=1),
            "bias": np.zeros(3 * WIDTH, np.float32),
        },
        "projection": {"kernel": identity, "bias": np.zeros(WIDTH, np.float32)},
    }
    ours = Attention(HEADS, "bfloat16").apply({"params": params}, x)
    expected = numpy_attention(x, params, HEADS)
    np.testing.assert_allclose(np.float32(ours), expected, atol=0.02, rtol=0.02)


def test_mlp_is_four_times_as_wide_with_tanh_gelu():
    params = {
        "expand": {"kernel": draw(WIDTH, 4 * WIDTH, seed=1), "bias": draw(4 * WIDTH, seed=2)},
        "contract": {"kernel": draw(4 * WIDTH, WIDTH, seed=3), "bias": draw(WIDTH, seed=4)},
    }
    x = draw(2, TOKENS, WIDTH, scale=0.3)
    h = np.float64(x) @ params["expand"]["kernel"] + params["expand"]["bias"]
    gelu = 0.5 * h * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (h + 0.044715 * h**3)))
    expected = gelu @ params["contract"]["kernel"] + params["contract"]["bias"]
    ours = Mlp("float32").apply({"params": params}, x)
    np.testing.assert_allclose(ours, expected, atol=5e-5)


def kept_sizes(module, x):
    """Numbers of elements of the arrays that a module keeps for its backward pass."""
    params = module.init(jax.random.key(0), x)
    backward = jax.vjp(lambda x: module.apply(params, x), x)[1]
    return [leaf.size for leaf in jax.tree.leaves(backward)]


def test_a_backward_pass_keeps_one_array_of_weights_and_one_of_hidden_features():
    x = jnp.ones((3, 40, 8))
    # Attention weights [3, 2, 40, 40]; neither their logits nor their exponentials.
    assert kept_sizes(Attention(2, "float32"), x).count(3 * 2 * 40 * 40) == 1
    # The input of GELU; none of its terms.
    assert kept_sizes(Mlp("float32"), x).count(3 * 40 * 32) == 1


def test_normalize_uses_float32_statistics_and_the_published_epsilon():
    x = draw(3, 8, scale=1e-3)
    centred = np.float64(x) - np.float64(x).mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(normalize_tokens(jnp.asarray(x)), expected, rtol=1e-4)
    assert normalize_tokens(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.float32
    far = 1e3 + draw(3, 8, seed=1)
    centred = np.float64(far) - np.float64(far).mean(-1, keepdims=True)
    expected = centred / centred.std(-1, keepdims=True)
    np.testing.assert_allclose(normalize_tokens(jnp.asarray(far)), expected, atol=2e-3)


def test_modulation_is_by_example():
    x, shift, scale = draw(2, TOKENS, 3), draw(2, 3, seed=1), draw(2, 3, seed=2)
    ours = modulate(jnp.asarray(x), jnp.asarray(shift), jnp.asarray(scale))
    for b in range(2):
        for n in range(TOKENS):
            np.testing.assert_allclose(ours[b, n], x[b, n] * (1 + scale[b]) + shift[b], rtol=1e-5)


def test_patches_run_by_rows_and_come_back():
    x = draw(2, 6, 4, 3)
    tokens = patchify(jnp.asarray(x), 2)
    assert tokens.shape == (2, 6, 12)
    for index in range(6):
        i, j = 2 * (index // 2), 2 * (index % 2)
        np.testing.assert_array_equal(tokens[:, index], x[:, i : i + 2, j : j + 2].reshape(2, -1))
    np.testing.assert_array_equal(unpatchify(tokens, (6, 4, 3), 2), x)


@pytest.mark.parametrize(("rows", "columns", "width"), [(3, 3, 8), (4, 2, 24)])
def test_positions_against_numpy(rows, columns, width):
    table = position_table(rows, columns, width)
    assert table.dtype == np.float32
    for i in range(rows):
        for j in range(columns):
            row = []
            for index in (j, i):
                omega = [1.0 / 10000 ** (4.0 * k / width) for k in range(width // 4)]
                row += [np.sin(index * w) for w in omega] + [np.cos(index * w) for w in omega]
            np.testing.assert_allclose(table[i * columns + j], row, atol=1e-7)


def test_a_block_starts_as_the_identity_and_does_not_stay_it(random_params):
    x, c = draw(2, TOKENS, WIDTH), draw(2, WIDTH, seed=1)
    block = DiTBlock(HEADS, "float32", "xla", 0.0)
    params = block.init(jax.random.key(0), x, c)["params"]
    np.testing.assert_array_equal(block.apply({"params": params}, x, c), x)
    assert not np.any(params["modulation"]["kernel"])
    assert np.all(np.any(params["attention"]["qkv"]["kernel"], axis=0))
    moved = block.apply({"params": random_params(params)}, x, c)
    assert np.abs(moved - x).max() > 0.1


def test_block_against_its_equations(random_params):
    x, c = draw(2, TOKENS, WIDTH), draw(2, WIDTH, seed=1)
    block = DiTBlock(HEADS, "float32", "xla", 0.0)
    params = random_params(block.init(jax.random.key(0), x, c)["params"])
    silu = c / (1.0 + np.exp(-c))
    parts = silu @ params["modulation"]["kernel"] + params["modulation"]["bias"]
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = np.split(parts[:, None], 6, axis=-1)

    def norm(h):
        return (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)

    inner = norm(x) * (1 + scale_1) + shift_1
    h = x + gate_1 * numpy_attention(inner, params["attention"], HEADS)
    inner = (norm(h) * (1 + scale_2) + shift_2).astype(np.float32)
    h = h + gate_2 * Mlp("float32").apply({"params": params["mlp"]}, inner)
    np.testing.assert_allclose(block.apply({"params": params}, x, c), h, atol=3e-5)


@pytest.mark.parametrize("branch", [0, 1])
def test_dropout_scales_or_zeroes_each_branch(random_params, branch):
    x, c, rate = draw(8, TOKENS, WIDTH), draw(8, WIDTH, seed=1), 0.75
    params = random_params(
        DiTBlock(HEADS, "float32", "xla", rate).init(jax.random.key(0), x, c)["params"]
    )
    gates = np.zeros(6 * WIDTH, np.float32)
    gates[(3 * branch + 2) * WIDTH : (3 * branch + 3) * WIDTH] = 1.0  # the other gate is shut
    params["modulation"] = {"kernel": np.zeros((WIDTH, 6 * WIDTH)), "bias": gates}
    full = DiTBlock(HEADS, "float32", "xla", 0.0).apply({"params": params}, x, c) - x
    block = DiTBlock(HEADS, "float32", "xla", rate)
    rngs = {"dropout": jax.random.key(1)}
    dropped = block.apply({"params": params}, x, c, rngs=rngs) - x
    kept = np.abs(dropped) > 1e-6
    assert np.mean(kept) == pytest.approx(1.0 - rate, abs=0.06)
    np.testing.assert_allclose(dropped[kept], full[kept] / (1.0 - rate), atol=1e-4)


def test_the_final_layer_is_float32_and_starts_at_zero():
    x, c = draw(2, TOKENS, WIDTH), draw(2, WIDTH, seed=1)
    layer = FinalLayer(6)
    params = layer.init(jax.random.key(0), x, c)["params"]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(params))
    params["output"]["kernel"] = jnp.asarray(draw(WIDTH, 6))
    expected = np.asarray(normalize_tokens(x)) @ params["output"]["kernel"]
    ours = layer.apply({"params": params}, x, jnp.asarray(c, jnp.bfloat16))
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, expected, atol=1e-5)
