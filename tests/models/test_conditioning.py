import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.models.conditioning import (
    Conditioning,
    LossWeight,
    ScalarEmbedder,
    scalar_inputs,
    sinusoid,
    step_level,
)

WIDTH, CLASSES = 8, 3
T = jnp.array([0.9, 0.5, 0.25])
S = jnp.array([0.3, 0.1, 0.0])
LABEL = jnp.array([0, 2, -1])


TIME_SCALE = 10.0


def conditioning(
    second_time="none",
    guidance_input=False,
    time_scale=TIME_SCALE,
    num_classes=CLASSES,
    guidance_interval=False,
):
    scalars = scalar_inputs(second_time, guidance_input, time_scale, guidance_interval)
    return Conditioning(WIDTH, num_classes, scalars)


def initial_params(module):
    condition = {"label": LABEL, "guidance_scale": jnp.ones(3)}
    condition |= {f"guidance_{end}": jnp.zeros(3) for end in ("start", "end")}
    return module.init(jax.random.key(0), T, S, condition)["params"]


def embed(params, name, value):
    return ScalarEmbedder(WIDTH).apply({"params": params[name]}, jnp.asarray(value))


def test_sinusoid_against_numpy():
    value = np.array([0.0, 1.0, 17.25, 999.0])
    frequencies = np.exp(-np.log(10000.0) * np.arange(128) / 128)
    angles = value[:, None] * frequencies
    expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    ours = sinusoid(jnp.asarray(value, jnp.float32))
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    np.testing.assert_allclose(ours[:2], expected[:2], atol=1e-6)


def test_sinusoid_of_bfloat16_is_float32():
    assert sinusoid(jnp.ones(1, jnp.bfloat16)).dtype == jnp.float32


def test_time_embedder_is_an_mlp_of_the_sinusoid():
    value = jnp.array([3.0, -1.0])
    params = ScalarEmbedder(WIDTH).init(jax.random.key(0), value)["params"]
    bias = jnp.linspace(-1.0, 1.0, WIDTH)
    params = {
        "hidden": params["hidden"] | {"bias": bias},
        "output": params["output"] | {"bias": -bias},
    }
    hidden = np.asarray(sinusoid(value)) @ params["hidden"]["kernel"] + bias
    expected = (hidden / (1.0 + np.exp(-hidden))) @ params["output"]["kernel"] - bias
    ours = ScalarEmbedder(WIDTH).apply({"params": params}, value)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_published_initialisation():
    module = Conditioning(256, 1000, scalar_inputs("none", False, 1000.0))
    params = initial_params(module)
    kernels = [layer["kernel"] for layer in params["time_embedder"].values()]
    for weights in (params["label_table"], *kernels):
        assert np.std(weights) == pytest.approx(0.02, rel=0.02)
        assert np.abs(np.mean(weights)) < 5e-4
    assert not any(np.any(layer["bias"]) for layer in params["time_embedder"].values())


def test_null_label_is_the_last_row():
    module = conditioning()
    params = initial_params(module)
    assert params["label_table"].shape == (CLASSES + 1, WIDTH)
    ours = module.apply({"params": params}, T, S, {"label": LABEL})
    rows = ours - embed(params, "time_embedder", 10.0 * T)
    expected = np.asarray(params["label_table"])[[0, 2, CLASSES]]
    np.testing.assert_allclose(rows, expected, atol=1e-6)


def test_a_label_past_the_table_is_nan_for_that_example_only():
    module = conditioning()
    ours = module.apply({"params": initial_params(module)}, T, S, {"label": jnp.array([0, 4, -1])})
    np.testing.assert_array_equal(np.isnan(ours).all(axis=1), [False, True, False])
    np.testing.assert_array_equal(np.isnan(ours).any(axis=1), [False, True, False])


@pytest.mark.parametrize(
    ("second_time", "value"),
    [("time", 10.0 * S), ("interval", 10.0 * (T - S)), ("step_size", -jnp.log2(T - S))],
)
def test_second_time_is_added_with_its_own_embedder(second_time, value):
    module = conditioning(second_time)
    params = initial_params(module)
    total = module.apply({"params": params}, T, S, {"label": LABEL})
    first = conditioning().apply({"params": params}, T, S, {"label": LABEL})
    expected = embed(params, "second_time_embedder", value)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(total - first, expected, atol=1e-6)


def test_guidance_scale_is_added_unscaled():
    module = conditioning(guidance_input=True)
    params, guidance = initial_params(module), jnp.array([1.0, 4.0, 7.5])
    # It starts at zero, so the test changes it: otherwise both sides would be 0.
    kernel = 0.1 * jax.random.normal(jax.random.key(1), (WIDTH, WIDTH))
    params["guidance_embedder"]["output"]["kernel"] = kernel
    total = module.apply({"params": params}, T, S, {"label": LABEL, "guidance_scale": guidance})
    first = conditioning().apply({"params": params}, T, S, {"label": LABEL})
    expected = embed(params, "guidance_embedder", guidance)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(total - first, expected, atol=1e-6)


def test_each_end_of_the_guidance_interval_has_its_embedder():
    module = conditioning(guidance_interval=True)
    params = initial_params(module)
    ends = {"start": jnp.array([0.0, 0.2, 0.4]), "end": jnp.array([0.6, 1.0, 0.9])}
    for i, end in enumerate(ends):
        kernel = 0.1 * jax.random.normal(jax.random.key(i), (WIDTH, WIDTH))
        params[f"guidance_{end}_embedder"]["output"]["kernel"] = kernel
    given = {f"guidance_{end}": value for end, value in ends.items()}
    total = module.apply({"params": params}, T, S, {"label": LABEL, **given})
    first = conditioning().apply({"params": params}, T, S, {"label": LABEL})
    scaled = {end: TIME_SCALE * value for end, value in ends.items()}
    expected = sum(embed(params, f"guidance_{end}_embedder", t) for end, t in scaled.items())
    np.testing.assert_allclose(total - first, expected, atol=1e-6)


def test_guidance_scale_starts_without_effect_and_can_get_one():
    module = conditioning("time", guidance_input=True)
    params = initial_params(module)
    condition = {"label": LABEL, "guidance_scale": jnp.array([1.0, 4.0, 7.5])}
    total = module.apply({"params": params}, T, S, condition)
    plain = conditioning("time").apply({"params": params}, T, S, {"label": LABEL})
    np.testing.assert_array_equal(total, plain)
    assert np.any(embed(params, "second_time_embedder", T))  # the others do not start at zero

    def loss(params):
        return jnp.sum(module.apply({"params": params}, T, S, condition) ** 2)

    gradient = jax.grad(loss)(params)["guidance_embedder"]["output"]
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_log_weight_is_zero_at_first_then_a_function_of_the_scaled_time():
    module = LossWeight(time_scale=10.0)
    params = module.init(jax.random.key(0), T)["params"]
    np.testing.assert_array_equal(module.apply({"params": params}, T), np.zeros(3))
    assert jax.tree.map(jnp.shape, params) == {"output": {"kernel": (256, 1), "bias": (1,)}}
    kernel = jax.random.normal(jax.random.key(1), (256, 1))
    moved = {"output": {"kernel": kernel, "bias": jnp.array([0.5])}}
    expected = np.asarray(sinusoid(10.0 * T)) @ np.asarray(kernel)[:, 0] + 0.5
    np.testing.assert_allclose(module.apply({"params": moved}, T), expected, rtol=1e-5)
    # At first the weight must be able to learn: d w / d kernel is not zero.
    grads = jax.grad(lambda p: module.apply({"params": p}, T).sum())(params)
    assert np.abs(grads["output"]["kernel"]).max() > 1.0


def test_without_a_second_time_s_is_ignored():
    module = conditioning()
    params = initial_params(module)
    one = module.apply({"params": params}, T, S, {"label": LABEL})
    other = module.apply({"params": params}, T, T, {"label": LABEL})
    np.testing.assert_array_equal(one, other)


def test_extra_embedders_leave_the_others_as_they_are():
    plain = initial_params(conditioning())
    extended = initial_params(conditioning("interval", guidance_input=True))
    assert set(plain) == {"time_embedder", "label_table"}
    assert set(extended) - set(plain) == {"second_time_embedder", "guidance_embedder"}
    chex.assert_trees_all_equal(plain, {name: extended[name] for name in plain})


def test_step_level_of_dyadic_gaps():
    t, s = jnp.array([1.0, 1.0, 0.75, 0.5]), jnp.array([0.0, 0.75, 0.5, 0.5 - 2.0**-7])
    np.testing.assert_allclose(step_level(t, s), [0.0, 2.0, 2.0, 7.0], atol=1e-6)
    assert step_level(t, s)[1] == step_level(t, s)[2]


def test_step_level_is_finite_with_a_finite_derivative_at_equal_times():
    t = jnp.array([0.5])
    level, change = jax.jvp(lambda t: step_level(t, jnp.array([0.5])), (t,), (jnp.ones(1),))
    assert level == pytest.approx(12.0) and change == 0.0


def test_without_classes_no_label_is_read():
    module = conditioning(num_classes=0)
    params = module.init(jax.random.key(0), T, S, {})["params"]
    assert set(params) == {"time_embedder"}
    ours = module.apply({"params": params}, T, S, {})
    np.testing.assert_allclose(ours, embed(params, "time_embedder", 10.0 * T), atol=1e-6)


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ({"guidance_scale": jnp.ones(3)}, "'label'"),
        ({"label": LABEL}, "'guidance_scale'"),
        ({"label": LABEL, "guidance_scale": jnp.ones(())}, "shape"),
        ({"label": jnp.ones(3), "guidance_scale": jnp.ones(3)}, "integer"),
        ({"label": jnp.ones((3, 2), int), "guidance_scale": jnp.ones(3)}, "shape"),
    ],
)
def test_a_bad_condition_is_named(condition, words):
    module = conditioning(guidance_input=True)
    with pytest.raises(ValueError, match=words):
        module.apply({"params": initial_params(module)}, T, S, condition)


def test_bad_fields_are_named():
    with pytest.raises(ValueError, match="did you mean 'interval'"):
        scalar_inputs("intervals", False, 1.0)
    with pytest.raises(ValueError, match="time_scale"):
        scalar_inputs("none", False, 0.0)


@pytest.mark.parametrize("scale", [0.0, -1.0, np.inf, np.nan])
def test_a_time_scale_is_positive_and_finite(scale):
    scalar_inputs("none", False, 1e-6)
    with pytest.raises(ValueError, match="must be positive and finite"):
        scalar_inputs("none", False, scale)
