"""Packed metrics are the metrics, bit for bit, in one array."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.objectives.base import Mean
from fewstep.training.compiled_step import compile_dispatch, compile_step, create_state
from fewstep.training.packed import pack_metrics, unpack_metrics
from tests.training.runs import largest_difference
from tests.training.test_loop import (
    FROZEN,
    OBJECTIVE,
    OPTIMIZERS,
    SEED,
    TRAINING,
    batches,
    complete,
)
from tests.training.test_sharding import mesh_of


def means(i):
    """Totals and counts that differ, of several types; b is not finite, and c was not counted."""
    total = 0.1 + jnp.float32(i)
    return {
        "a": Mean(total, jnp.float32(3)),
        "b": Mean(total * jnp.inf, jnp.float32(1)),
        "c": Mean(jnp.int32(0), jnp.int32(0)),
        "d": Mean(total.astype(jnp.bfloat16), jnp.float32(1)),
    }


def test_metrics_come_back_as_they_were_from_one_array():
    packed = jax.device_get(jax.jit(lambda i: pack_metrics(means(i)))(5))
    assert [leaf.shape for leaf in jax.tree.leaves(packed)] == [(4, 2)]
    (found,) = unpack_metrics(packed)
    assert found == jax.tree.map(np.float32, means(5))


def test_metrics_of_several_steps_come_back_in_order():
    packed = jax.lax.scan(lambda _, i: (None, pack_metrics(means(i))), None, jnp.arange(3))[1]
    found = list(unpack_metrics(jax.device_get(packed)))
    assert found == [jax.tree.map(np.float32, means(i)) for i in range(3)]


@pytest.mark.parametrize("sizes", [(1, 1), (2, 2)])
@pytest.mark.parametrize("count", [1, 3])
def test_a_dispatch_returns_the_metrics_of_its_steps_in_one_array_on_every_device(sizes, count):
    training = TRAINING._replace(mesh=mesh_of(*sizes), frozen=dict(FROZEN))
    create = lambda: create_state(OBJECTIVE, OPTIMIZERS, SEED, FROZEN, training.mesh)
    state, packed = compile_dispatch(training, complete)(create(), batches(0), count)
    assert packed.pairs.shape[-1] == 2 and packed.pairs.sharding.is_fully_replicated
    found = list(unpack_metrics(jax.device_get(packed)))
    one, expected = create(), []
    step = compile_step(OBJECTIVE, OPTIMIZERS, SEED, training.mesh, training.micro_batches)
    for number in range(count):
        one, metrics = step(one, FROZEN, complete({"number": jnp.full(8, number, jnp.float32)}))
        expected.append(jax.device_get(metrics))
    assert found == expected and {"loss", "rows", "finite"} < found[0].keys()
    # XLA may round a step in a loop in another way.
    assert largest_difference(state, one) <= (0.0 if count == 1 else 1e-6)


def test_metrics_are_packed_by_a_program_of_their_own():
    # A step that packed them would take CPUs twice as long to compile.
    given = lambda state, frozen, batch: (state + 1, means(state))
    training = TRAINING._replace(step=given, frozen=dict(FROZEN))
    state, packed = compile_dispatch(training, complete)(5, batches(0), 1)
    assert state == 6
    (found,) = unpack_metrics(jax.device_get(packed))
    assert found == jax.tree.map(np.float32, means(5))
