from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.models.dit import DIT, SIZES, DiTSize, dit
from fewstep.models.layers import (
    attention_implementation,
    normalize_tokens,
    patchify,
    position_table,
    unpatchify,
)

SIDE, CHANNELS, BATCH, CLASSES = 8, 2, 3, 5
TOY = DiTSize(32, 2, 4)
FIELDS = {"shape": (SIDE, SIDE, CHANNELS), "size": "toy", "num_classes": CLASSES}
T, S = jnp.array([0.9, 0.5, 0.25]), jnp.array([0.4, 0.25, 0.0])
CONDITION = {"label": jnp.array([0, 3, -1]), "guidance_scale": jnp.array([1.0, 2.0, 4.0])}


@pytest.fixture(autouse=True)
def toy_size(monkeypatch):
    monkeypatch.setitem(SIZES, "toy", TOY)


def images(seed=0, batch=BATCH):
    return jax.random.normal(jax.random.key(seed), (batch, SIDE, SIDE, CHANNELS))


def make(random_params, seed=0, **fields):
    """A compiled DiT with random parameters."""
    network = dit(**FIELDS | fields)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return jax.jit(network.apply, static_argnames="train"), random_params(shapes, seed)


def test_output_is_zero_at_first():
    network = dit(**FIELDS, second_time="time", guidance_input=True)
    params = jax.jit(network.init)(jax.random.key(0))
    out = jax.jit(network.apply)(params, images(), T, S, CONDITION)
    assert out.shape == images().shape and out.dtype == jnp.float32
    np.testing.assert_array_equal(out, 0.0)


def test_at_first_every_block_is_the_identity():
    network = dit(**FIELDS)
    params = jax.jit(network.init)(jax.random.key(0))
    kernel = jax.random.normal(jax.random.key(1), params["final"]["output"]["kernel"].shape)
    params["final"]["output"]["kernel"] = kernel
    patches = patchify(images(), 2)
    assert not np.any(params["patch_embedding"]["bias"])
    positions = position_table(SIDE // 2, SIDE // 2, TOY.width)
    tokens = patches @ params["patch_embedding"]["kernel"] + positions
    expected = unpatchify(normalize_tokens(tokens) @ kernel, (SIDE, SIDE, CHANNELS), 2)
    out = jax.jit(network.apply)(params, images(), T, S, CONDITION)
    np.testing.assert_allclose(out, expected, atol=2e-4)


def test_linear_layers_start_xavier_uniform():
    params = jax.jit(dit(**FIELDS).init)(jax.random.key(0))
    block = params["block_1"]
    layers = [params["patch_embedding"], *block["attention"].values(), *block["mlp"].values()]
    for layer in layers:
        bound = np.sqrt(6.0 / sum(layer["kernel"].shape))
        largest = np.abs(layer["kernel"]).max()
        assert 0.97 * bound < largest <= bound
        assert np.std(layer["kernel"]) == pytest.approx(bound / np.sqrt(3.0), rel=0.06)
        assert not np.any(layer["bias"])


def test_null_class_is_a_class_of_its_own(random_params):
    apply, params = make(random_params)
    labels = jnp.array([-1, CLASSES, 0])
    x = jnp.repeat(images(batch=1), 3, axis=0)
    t = jnp.full(3, 0.5)
    null, last_row, zero = apply(params, x, t, t, {"label": labels})
    np.testing.assert_allclose(null, last_row, atol=1e-5)
    assert np.abs(null - zero).max() > 0.01


def test_examples_do_not_see_each_other(random_params):
    apply, params = make(random_params, second_time="interval", guidance_input=True)
    out = apply(params, images(), T, S, CONDITION)
    order = np.array([2, 0, 1])
    permuted = apply(
        params, images()[order], T[order], S[order], {k: v[order] for k, v in CONDITION.items()}
    )
    np.testing.assert_allclose(permuted, out[order], atol=2e-5)
    other = images(1).at[0].set(images()[0])
    changed = apply(params, other, T.at[1:].set(0.1), S, CONDITION)
    np.testing.assert_allclose(changed[0], out[0], atol=2e-5)
    assert np.abs(changed[1] - out[1]).max() > 0.1


@pytest.mark.parametrize("second_time", ["time", "interval", "step_size"])
def test_both_times_matter(random_params, second_time):
    apply, params = make(random_params, second_time=second_time, time_scale=10.0)
    out = apply(params, images(), T, S, CONDITION)
    for t, s in ((T, S / 2), (T + 0.05, S)):
        assert np.abs(apply(params, images(), t, s, CONDITION) - out).max() > 1e-3


def test_without_a_second_time_s_is_ignored(random_params):
    apply, params = make(random_params)
    one, other = (apply(params, images(), T, s, CONDITION) for s in (S, T))
    np.testing.assert_array_equal(one, other)


def test_guidance_scale_matters_and_is_required(random_params):
    apply, params = make(random_params, guidance_input=True)
    out = apply(params, images(), T, S, CONDITION)
    other = CONDITION | {"guidance_scale": CONDITION["guidance_scale"] + 1.0}
    assert np.abs(apply(params, images(), T, S, other) - out).max() > 1e-3
    params["conditioning"]["guidance_embedder"]["output"] = {
        "kernel": jnp.zeros((TOY.width, TOY.width)),
        "bias": jnp.zeros(TOY.width),
    }
    plain = jax.jit(dit(**FIELDS).apply)(params, images(), T, S, CONDITION)
    np.testing.assert_array_equal(apply(params, images(), T, S, other), plain)
    with pytest.raises(ValueError, match="guidance_scale"):
        apply(params, images(), T, S, {"label": CONDITION["label"]})


def test_dropout_acts_in_training_only(random_params):
    apply, params = make(random_params, dropout=0.3)
    plain, same = make(random_params)
    key, other = jax.random.key(0), jax.random.key(1)
    inputs = (images(), T, S, CONDITION)
    expected = plain(same, *inputs)
    np.testing.assert_array_equal(apply(params, *inputs), expected)
    np.testing.assert_array_equal(apply(params, *inputs, rng=key), expected)
    np.testing.assert_array_equal(plain(same, *inputs, train=True), expected)
    one = apply(params, *inputs, train=True, rng=key)
    np.testing.assert_array_equal(one, apply(params, *inputs, train=True, rng=key))
    for out in (expected, apply(params, *inputs, train=True, rng=other)):
        assert np.abs(one - out).max() > 0.01
    with pytest.raises(ValueError, match="rng is missing"):
        apply(params, *inputs, train=True)


def test_bfloat16_is_close_to_float32(random_params):
    exact, params = make(random_params, second_time="interval")
    rounded, same = make(random_params, second_time="interval", dtype="bfloat16")
    one, other = (f(params, images(), T, S, CONDITION) for f in (exact, rounded))
    assert other.dtype == jnp.float32
    error = np.abs(one - other).max() / np.std(one)
    assert 1e-4 < error < 0.1
    initial = jax.eval_shape(dit(**FIELDS, dtype="bfloat16").init, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(initial)} == {jnp.dtype("float32")}


def squared_jvp(network, params, rng=None):
    """A MeanFlow-like loss: it differentiates a forward-mode derivative in (x, t, s)."""

    def velocity(x, t, s):
        train = {"train": True, "rng": rng} if rng is not None else {}
        return network.apply(params, x, t, s, CONDITION, **train)

    tangents = (images(2), jnp.ones(BATCH), 0.5 * jnp.ones(BATCH))
    return jax.jvp(velocity, (images(), T, S), tangents)


@pytest.mark.parametrize("second_time", ["time", "interval", "step_size"])
def test_jvp_against_finite_differences(random_params, second_time):
    network = dit(**FIELDS, second_time=second_time, time_scale=2.0)
    apply = jax.jit(network.apply)
    params = random_params(jax.eval_shape(network.init, jax.random.key(0)))
    _, derivative = jax.jit(lambda p: squared_jvp(network, p))(params)
    h = 3e-3
    ends = [apply(params, images() + e * images(2), T + e, S + 0.5 * e, CONDITION) for e in (h, -h)]
    difference = (ends[0] - ends[1]) / (2 * h)
    scale = np.abs(difference).max()
    assert scale > 0.1
    assert np.abs(derivative - difference).max() < 3e-3 * scale


def test_modulations_start_at_zero_or_as_any_other_layer():
    zero, other = (
        jax.jit(dit(**FIELDS, adaln_zero=start).init)(jax.random.key(0)) for start in (True, False)
    )
    assert jax.tree.map(jnp.shape, zero) == jax.tree.map(jnp.shape, other)
    for index in range(TOY.depth):
        kernel = other[f"block_{index}"]["modulation"]["kernel"]
        limit = (6.0 / sum(kernel.shape)) ** 0.5  # Glorot & Bengio 2010, eq. 16
        assert 0.9 * limit < np.abs(kernel).max() <= limit
        assert not zero[f"block_{index}"]["modulation"]["kernel"].any()
    for params in (zero, other):
        assert not params["final"]["modulation"]["kernel"].any()
        assert not any(
            block["modulation"]["bias"].any()
            for name, block in params.items()
            if name.startswith("block")
        )
    plain = jax.jit(dit(**FIELDS).init)(jax.random.key(0))
    chex.assert_trees_all_equal(plain, zero)


@pytest.mark.parametrize("fields", [{}, {"remat": True, "dropout": 0.1}, {"dtype": "bfloat16"}])
def test_gradient_of_the_jvp(random_params, fields):
    network = dit(**FIELDS, second_time="interval", time_scale=2.0, **fields)
    params = random_params(jax.eval_shape(network.init, jax.random.key(0)))
    rng = jax.random.key(0) if fields.get("dropout") else None

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        value, derivative = squared_jvp(network, params, rng)
        return jnp.mean(jnp.square(value)) + jnp.mean(jnp.square(derivative))

    gradient = jax.tree.map(np.asarray, loss(params)[1])
    leaves = jax.tree.leaves(gradient)
    assert all(np.all(np.isfinite(leaf)) and np.any(leaf) for leaf in leaves)
    if "dtype" in fields:
        return
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in leaves))
    ends = [
        loss(jax.tree.map(lambda p, g, e=e: p + e * g / norm, params, gradient))[0]
        for e in (np.float32(3e-3), np.float32(-3e-3))
    ]
    assert (ends[0] - ends[1]) / 6e-3 == pytest.approx(float(norm), rel=0.02)


def test_remat_changes_memory_not_values(random_params):
    plain, params = make(random_params)
    remat, same = make(random_params, remat=True)
    one, other = (f(params, images(), T, S, CONDITION) for f in (plain, remat))
    np.testing.assert_allclose(one, other, atol=1e-5)
    jaxpr = jax.make_jaxpr(dit(**FIELDS, remat=True).apply)(same, images(), T, S, CONDITION)
    assert sum("prevent_cse" in equation.params for equation in jaxpr.eqns) == TOY.depth


def test_vmap_over_parameters_and_inputs(random_params):
    apply, first = make(random_params)
    second = random_params(first, 1)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), first, second)
    x = jnp.stack([images(0), images(1)])
    mapped = jax.vmap(apply, in_axes=(0, 0, None, None, None))(stacked, x, T, S, CONDITION)
    for index, params in enumerate((first, second)):
        expected = apply(params, x[index], T, S, CONDITION)
        np.testing.assert_allclose(mapped[index], expected, atol=5e-5)


def count_parameters(params):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def expected_parameter_count(width, depth, patch_features, classes):
    """Weights and biases by layer; fixed positions are not parameters."""
    block = 3 * width**2 + 3 * width  # qkv
    block += width**2 + width  # projection
    block += 2 * 4 * width**2 + 4 * width + width  # MLP
    block += 6 * width**2 + 6 * width  # adaLN-Zero
    ends = patch_features * width + width  # patches
    ends += 256 * width + width + width**2 + width  # time
    ends += (classes + 1) * width  # labels
    ends += 2 * width**2 + 2 * width  # final adaLN
    return depth * block + ends + width * patch_features + patch_features  # output


# Heads (table 1) and millions of parameters at patch size 2 of Peebles & Xie 2023, whose networks
# predict a variance too, so that the output layer is twice as wide, and count fixed positions. The
# count of XL/2 to the last digit is the one that the published training code logs.
@pytest.mark.parametrize(
    ("size", "heads", "millions"), [("S", 6, 33), ("B", 12, 130), ("L", 16, 458), ("XL", 16, 675)]
)
def test_published_sizes(size, heads, millions):
    network = dit((32, 32, 4), 1000, size=size)
    ours = count_parameters(jax.eval_shape(network.init, jax.random.key(0)))
    width, depth, ours_heads = SIZES[size]
    assert ours_heads == heads
    assert ours == expected_parameter_count(width, depth, 16, 1000)
    published = ours + 16 * (width + 1) + 256 * width
    assert abs(published / 1e6 - millions) < 0.6
    if size == "XL":
        assert published == 675_129_632


@pytest.mark.parametrize("size", SIZES)
def test_every_size_builds(size):
    network = dit((4, 4, 1), size=size)
    params = jax.eval_shape(network.init, jax.random.key(0))
    width, depth, heads = SIZES[size]
    assert width % heads == 0
    assert sum(name.startswith("block_") for name in params) == depth
    assert params["block_0"]["attention"]["projection"]["kernel"].shape == (width, width)


def test_images_need_not_be_square():
    network = dit((8, 4, 1), size="toy")
    params = jax.jit(network.init)(jax.random.key(0))
    x, t = jnp.ones((2, 8, 4, 1)), jnp.ones(2)
    out = jax.jit(network.apply)(params, x, t, t, {"label": jnp.array([-1, -1])})
    assert out.shape == x.shape and network.token_rows == 4
    assert DIT.shrink({"patch_size": 2}, (48, 32, 1))["patch_size"] == 8


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"patch_size": 3}, "patch_size=3 does not divide an image of 8 x 8"),
        ({"size": "XXL"}, "size='XXL' .* did you mean 'XL'"),
        ({"second_time": "gap"}, "second_time='gap'"),
        ({"dtype": "bf16"}, "is not one of float32, bfloat16"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"shape": (SIDE, SIDE, 0)}, r"takes images .* not \[8, 8, 0\]"),
        ({"shape": (SIDE, 5, 1)}, "patch_size=2 does not divide an image of 8 x 5"),
        ({"shape": (2,)}, r"takes images .* not \[2\]"),
        ({"num_classes": -1}, "num_classes=-1"),
        ({"time_scale": -1.0}, "time_scale=-1.0"),
    ],
)
def test_bad_fields_are_named(fields, words):
    with pytest.raises(ValueError, match=words):
        dit(**FIELDS | fields)


@pytest.mark.parametrize(
    ("size", "words"), [(DiTSize(64, 1, 6), "6 heads"), (DiTSize(66, 1, 6), "divisible by 4")]
)
def test_a_bad_width_is_named(monkeypatch, size, words):
    monkeypatch.setitem(SIZES, "toy", size)
    with pytest.raises(ValueError, match=words):
        dit(**FIELDS)


def test_bad_inputs_are_named_at_apply(random_params):
    apply, params = make(random_params)
    with pytest.raises(ValueError, match="x has shape"):
        apply(params, images()[:, :4], T, S, CONDITION)
    with pytest.raises(ValueError, match="t has shape"):
        apply(params, images(), jnp.float32(0.5), S, CONDITION)


def test_auto_attention_is_xla_without_a_gpu_and_cudnn_is_refused(random_params):
    apply, params = make(random_params, dtype="bfloat16")
    automatic, _ = make(random_params, dtype="bfloat16", attention="auto")
    one, other = (f(params, images(), T, S, CONDITION) for f in (apply, automatic))
    np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match=r"attention=cudnn needs a GPU .* not cpu and bfloat16"):
        dit(**FIELDS, dtype="bfloat16", attention="cudnn")


@pytest.fixture
def device(monkeypatch):
    """Makes this process's device one of a platform version and compute capability."""

    def make(version, capability="", platform="gpu"):
        fake = SimpleNamespace(
            platform=platform,
            device_kind=f"fake {capability}",
            client=SimpleNamespace(platform_version=version),
            compute_capability=capability,
        )
        monkeypatch.setattr(jax, "local_devices", lambda: [fake])

    return make


@pytest.mark.parametrize(
    ("version", "capability", "fused"),
    [
        ("PJRT C API\ncuda 12090", "8.0", True),
        ("PJRT C API\ncuda 12090", "12.0", True),
        ("PJRT C API\ncuda 12090", "7.5", False),  # T4
        ("PJRT C API\nrocm 60300", "gfx90a", False),
    ],
)
def test_fused_attention_is_taken_on_gpus_that_have_it(device, version, capability, fused):
    device(version, capability)
    assert attention_implementation("auto", "bfloat16") == ("cudnn" if fused else "xla")
    if not fused:
        with pytest.raises(ValueError, match=rf"CUDA .* 8\.0 .* not fake {capability} and bfl"):
            attention_implementation("cudnn", "bfloat16")


def test_fused_attention_is_not_for_tpus(device):
    device("cuda in a name", "8.0", platform="tpu")
    assert attention_implementation("auto", "bfloat16") == "xla"


def test_fused_attention_is_taken_in_bfloat16(device):
    device("cuda 12090", "9.0")
    assert attention_implementation("auto", "bfloat16") == "cudnn"
    assert attention_implementation("cudnn", "bfloat16") == "cudnn"
    assert attention_implementation("xla", "bfloat16") == "xla"
    assert attention_implementation("auto", "float32") == "xla"
    with pytest.raises(ValueError, match=r"not fake 9\.0 and float32"):
        attention_implementation("cudnn", "float32")
