"""Hidden features of networks, and heads that read them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fewstep.models.dit import SIZES, DiTSize, dit
from fewstep.models.heads import add_head
from fewstep.models.mlp import mlp
from fewstep.models.network import STACKED

DEPTH, BATCH = 2, 3
T = jnp.array([0.9, 0.5, 0.25])
CONDITION = {"label": jnp.array([0, 3, -1])}
NAMES = ("block_0", "block_1")


@pytest.fixture(autouse=True)
def toy_size(monkeypatch):
    monkeypatch.setitem(SIZES, "toy", DiTSize(16, DEPTH, 2))


def build(name, **fields):
    if name == "mlp":
        return mlp((5,), 4, width=16, depth=DEPTH, **fields)
    return dit((4, 4, 1), 4, size="toy", **fields)


class Mean(nn.Module):
    """A logit from the mean of what it reads."""

    @nn.compact
    def __call__(self, hidden):
        pooled = [jnp.mean(h.reshape(h.shape[0], -1, h.shape[-1]), 1) for h in hidden.values()]
        return nn.Dense(1, name="output")(jnp.concatenate(pooled, axis=-1))[:, 0]


def inputs(network):
    return jax.random.normal(jax.random.key(1), (BATCH, *network.shape)), T, T, CONDITION


@pytest.mark.parametrize("name", ["dit", "mlp"])
def test_features_are_what_the_output_is_made_of(name, random_params):
    network = build(name)
    assert network.hidden == (("embedding", *NAMES) if name == "dit" else NAMES)
    params = random_params(jax.eval_shape(network.init, jax.random.key(0)))
    output, hidden = jax.jit(network.features, static_argnums=5)(params, *inputs(network), NAMES)
    expected = jax.jit(network.apply)(params, *inputs(network))
    chex.assert_trees_all_close(output, expected, rtol=1e-5, atol=1e-6)
    shape = (BATCH, 4, 16) if name == "dit" else (BATCH, 16)
    assert {k: h.shape for k, h in hidden.items()} == dict.fromkeys(NAMES, shape)
    # A block changes its own output and those after it; the last layer changes none.
    for changed, part in ((NAMES, "block_0"), (NAMES[1:], "block_1"), ((), "output")):
        part = "final" if part == "output" and name == "dit" else part
        other = {**params, part: jax.tree.map(lambda leaf: leaf + 0.1, params[part])}
        _, moved = network.features(other, *inputs(network), NAMES)
        found = [k for k in NAMES if np.abs(moved[k] - hidden[k]).max() > 1e-3]
        assert found == list(changed)
    assert set(network.features(params, *inputs(network), ("block_1",))[1]) == {"block_1"}
    with pytest.raises(ValueError, match="feature='block_2' .*'block_1'"):
        network.features(params, *inputs(network), ("block_2",))


@pytest.mark.parametrize("fields", [{"scan": True}, {"remat": True}, {"scan": True, "remat": True}])
def test_features_and_their_gradients_are_the_same_in_a_loop_and_with_remat(fields, random_params):
    plain, other = build("dit"), build("dit", **fields)
    params = random_params(jax.eval_shape(plain.init, jax.random.key(0)))
    stacked = params
    if "scan" in fields:
        blocks = [params[f"block_{index}"] for index in range(DEPTH)]
        stacked = {name: part for name, part in params.items() if name not in NAMES}
        stacked[STACKED] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)

    def total(network, params, x):
        _, hidden = network.features(params, x, T, T, CONDITION, NAMES)
        return sum(jnp.sum(jnp.sin(h)) for h in hidden.values()), hidden

    x = inputs(plain)[0]
    gradient = jax.value_and_grad(total, argnums=2, has_aux=True)
    (_, expected), grads = jax.jit(gradient, static_argnums=0)(plain, params, x)
    (_, found), its_grads = jax.jit(gradient, static_argnums=0)(other, stacked, x)
    chex.assert_trees_all_close(found, expected, atol=1e-4)
    chex.assert_trees_all_close(its_grads, grads, atol=1e-4)


@pytest.mark.parametrize("name", ["dit", "mlp"])
def test_heads_live_beside_a_network_that_stays_as_it_is(name):
    network = build(name)
    headed = add_head(network, "first", Mean(), ("block_0",))
    headed = add_head(headed, "second", Mean(), NAMES)
    own, params = (jax.jit(n.init)(jax.random.key(0)) for n in (network, headed))
    assert set(params) - set(own) == {"first", "second"}
    chex.assert_trees_all_equal({part: params[part] for part in own}, own)
    reads = {"first": ("block_0",), "second": NAMES}
    assert {head.name: head.reads for head in headed.heads} == reads
    output, hidden = headed.features(params, *inputs(network), NAMES)
    chex.assert_trees_all_equal(output, network.apply(own, *inputs(network)))
    for head in headed.heads:
        assert head.apply(params, hidden).shape == (BATCH,)
        # The gradient of a head reaches its own parameters and no other head's.
        grads = jax.grad(lambda p, head=head: jnp.sum(head.apply(p, hidden)))(params)
        moved = {
            part for part in grads if any(np.any(leaf) for leaf in jax.tree.leaves(grads[part]))
        }
        assert moved == {head.name}


def test_a_network_with_heads_can_be_a_static_argument():
    headed = add_head(build("mlp"), "first", Mean(), ("block_0",))
    assert headed.head("first") is headed.heads[0]
    assert len({headed, build("mlp")}) == 2


def test_a_name_that_is_taken_and_features_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="already has parameters 'input'"):
        add_head(build("mlp"), "input", Mean(), ("block_0",))
    with pytest.raises(ValueError, match="feature='block_7'"):
        add_head(build("mlp"), "head", Mean(), ("block_7",))
