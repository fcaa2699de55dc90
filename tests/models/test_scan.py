"""A loop over stacked blocks computes the same network as blocks without a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fewstep.models.dit import SIZES, DiTSize, dit, scan_blocks
from fewstep.models.network import STACKED

SIDE, BATCH = 4, 3
TOY = DiTSize(32, 2, 4)
FIELDS = {"shape": (SIDE, SIDE, 2), "size": "toy", "num_classes": 5, "time_scale": 2.0}
T, S = jnp.array([0.9, 0.5, 0.25]), jnp.array([0.4, 0.25, 0.0])
CONDITION = {"label": jnp.array([0, 3, -1])}


@pytest.fixture(autouse=True)
def toy_size(monkeypatch):
    monkeypatch.setitem(SIZES, "toy", TOY)


def images(seed=0):
    return jax.random.normal(jax.random.key(seed), (BATCH, SIDE, SIDE, 2))


def stack_parameters(params):
    """Converts parameters of an unrolled network to those of the loop."""
    blocks = [params[f"block_{index}"] for index in range(TOY.depth)]
    others = {name: part for name, part in params.items() if not name.startswith("block_")}
    return {**others, STACKED: jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)}


def value_derivative_and_gradient(network, params):
    """The output, its derivative along (x, t, s), and the gradient of a function of both."""

    def loss(params):
        velocity = lambda x, t, s: network.apply(params, x, t, s, CONDITION)
        tangents = (images(2), jnp.ones(BATCH), 0.5 * jnp.ones(BATCH))
        value, derivative = jax.jvp(velocity, (images(), T, S), tangents)
        return jnp.mean(jnp.square(value)) + jnp.mean(jnp.square(derivative)), (value, derivative)

    (_, outputs), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return outputs, gradient


def assert_close(a, b):
    scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(b))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5 * scale), a, b)


def test_converted_parameters_give_the_same_function_and_derivatives(random_params):
    unrolled = dit(**FIELDS, second_time="interval")
    params = random_params(jax.eval_shape(unrolled.init, jax.random.key(0)))
    outputs, gradient = value_derivative_and_gradient(unrolled, params)
    assert np.abs(outputs[1]).max() > 0.1
    converted = stack_parameters(params)
    loop = dit(**FIELDS, second_time="interval", scan=True, remat=True)
    shapes = jax.eval_shape(loop.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, converted) == jax.tree.map(jnp.shape, shapes)
    of_loop, its_gradient = value_derivative_and_gradient(loop, converted)
    assert_close(of_loop, outputs)
    assert_close(its_gradient, stack_parameters(gradient))
    kept = dit(**FIELDS, second_time="interval", scan=True)
    assert_close(jax.jit(kept.apply)(converted, images(), T, S, CONDITION), outputs[0])


def test_layers_start_alone_and_xavier_uniform():
    blocks = jax.jit(dit(**FIELDS, scan=True).init)(jax.random.key(0))[STACKED]
    for layer in (*blocks["attention"].values(), *blocks["mlp"].values()):
        bound = np.sqrt(6.0 / sum(layer["kernel"].shape[1:]))
        for kernel in layer["kernel"]:
            assert 0.97 * bound < np.abs(kernel).max() <= bound
        first, second = layer["kernel"]
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.1
        assert not np.any(layer["bias"])
    assert not np.any(blocks["modulation"]["kernel"])


def test_layers_drop_different_units():
    class Dropped(nn.Module):
        @nn.compact
        def __call__(self, x, c):
            return x + nn.Dropout(0.5, deterministic=False)(jnp.ones_like(x))

    layers = nn.apply(lambda block, x: scan_blocks(block, 8, x, x, keep=False)[0], Dropped())
    kept = layers({}, jnp.zeros(256), rngs={"dropout": jax.random.key(0)}) / 2.0
    # On average 4 of 8 layers are kept; one mask for all would keep none or all.
    assert np.mean(kept) == pytest.approx(4.0, abs=0.5)
    assert np.std(kept) == pytest.approx(np.sqrt(2.0), abs=0.3)
