import jax
import jax.numpy as jnp
import pytest

from fewstep.models.dit import SIZES, DiTSize
from fewstep.training.cost.arithmetic import product_flops
from fewstep.training.cost.compiled import FOR_INSPECTION, lowered_step, step_inputs
from fewstep.training.cost.step_cost import step_flops
from fewstep.training.experiment import build
from tests.training.runs import small_config
from tests.training.test_sharding import mesh_of

WIDTH, DEPTH, TOKENS, BATCH = 32, 2, 16, 8


def text_of(function, *shapes):
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    lowered = jax.jit(function).lower(*inputs)
    return lowered.compile(compiler_options=FOR_INSPECTION).as_text()


def test_products_are_counted_wherever_they_are():
    product = lambda a, b: jnp.tanh(jnp.einsum("nij,njk->nik", a, b))
    one = 2 * 3 * 8 * 8 * 8
    assert product_flops(text_of(product, (3, 8, 8), (3, 8, 8))) == one

    def nested(a, b):
        turn = lambda c, _: (jax.lax.fori_loop(0, 3, lambda i, c: product(c, b), c), None)
        c = jax.lax.scan(turn, a, length=5)[0]
        return jax.lax.cond(c.sum() > 0, lambda c: product(product(c, b), a), lambda c: c, c)

    assert product_flops(text_of(nested, (3, 8, 8), (3, 8, 8))) == (15 + 2) * one

    def endless(a, b):
        return jax.lax.while_loop(lambda c: c.sum() < 1.0, lambda c: product(c, b), a)

    with pytest.raises(ValueError, match="unknown length"):
        product_flops(text_of(endless, (3, 8, 8), (3, 8, 8)))


@pytest.mark.some_days(2)
def test_a_loop_over_blocks_costs_what_the_blocks_cost(monkeypatch):
    monkeypatch.setitem(SIZES, "toy", DiTSize(WIDTH, DEPTH, 4))

    def flops(scan):
        fields = {"model.size": "toy", "model.scan": scan, "batch_size": BATCH}
        config = small_config("flow_matching", **fields)
        experiment, mesh = build(config), mesh_of(1, 1)
        lowered = lowered_step(config, experiment, mesh, step_inputs(config, experiment, mesh))
        compiled = lowered.compile(compiler_options=FOR_INSPECTION)
        return product_flops(compiled.as_text()), step_flops(config, experiment)

    loop, counted_loop = flops(scan=True)
    blocks, counted = flops(scan=False)
    assert loop == blocks
    assert counted_loop == counted
    # Products alone are less than all operations, by a few operations per element.
    assert 0.85 * counted < blocks < counted
    # By hand, three times forwards: a block's products; attention, of queries, keys and values.
    block = (12 * WIDTH**2) * TOKENS + 6 * WIDTH**2 + 2 * TOKENS**2 * WIDTH
    assert 3 * 2 * BATCH * DEPTH * block < blocks < 1.2 * 3 * 2 * BATCH * DEPTH * block
