"""The compiled step and the created state equal those of the functions that they compile."""

import jax.numpy as jnp
import pytest

from fewstep.objectives.base import Mean
from fewstep.training.compiled_step import compile_step, create_state
from fewstep.training.state import initial_state
from tests.training.runs import largest_difference
from tests.training.test_loop import BATCH, FROZEN, OBJECTIVE, OPTIMIZERS, SEED, complete
from tests.training.test_sharding import mesh_of


@pytest.mark.parametrize("seed", [0, 1])
def test_a_created_state_is_the_initial_one_of_its_seed(seed):
    created = create_state(OBJECTIVE, OPTIMIZERS, seed, FROZEN, mesh_of(1, 1))
    assert largest_difference(created, initial_state(OBJECTIVE, OPTIMIZERS, seed, FROZEN)) == 0.0
    other = initial_state(OBJECTIVE, OPTIMIZERS, 1 - seed, FROZEN)
    assert largest_difference(created, other) > 0.1


def test_a_compiled_step_has_the_metrics_of_its_observer():
    observe = lambda gradient: {"slope": Mean(gradient["w"], jnp.float32(1))}
    step = compile_step(OBJECTIVE, OPTIMIZERS, SEED, mesh_of(1, 1), 2, observe)
    state = create_state(OBJECTIVE, OPTIMIZERS, SEED, FROZEN, mesh_of(1, 1))
    metrics = step(state, FROZEN, complete({"number": jnp.zeros(BATCH)}))[1]
    assert abs(float(metrics["slope"].total)) == pytest.approx(
        float(metrics["gradient_norm"].total)
    )
