"""The training step compiled for a mesh, and its sharded state, restored or created."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from fewstep.objectives.base import Batch, Metrics, Objective, Params
from fewstep.training.optimizer import Optimizer
from fewstep.training.packed import PackedMetrics, pack_metrics
from fewstep.training.sharding import (
    batch_sharding,
    put_batch,
    put_batches,
    replicated_sharding,
    tree_shardings,
    with_shardings,
)
from fewstep.training.state import initial_state
from fewstep.training.step import NO_METRICS, Observe, train_step
from fewstep.training.storage import restore
from fewstep.training.storage.train_state import TrainState

# A batch as training/sources.py makes it: one part for each source.
HostBatch = Mapping[str, Any]
# (state, frozen, batch) -> (state, metrics); the state is donated
Advance = Callable[[TrainState, Mapping[str, Params], HostBatch], tuple[TrainState, Metrics]]
# (state, batches on the host, count) -> (state, metrics) after the next `count` steps
Dispatch = Callable[[TrainState, Iterator[HostBatch], int], tuple[TrainState, PackedMetrics]]


class Training(NamedTuple):
    """What to train, and on which devices.

    frozen: teachers' parameters by name, and what a run starts from (state.START).
    `restore_or_create` removes all that only initializes the state. step: what `compile_step` makes
    of the rest, if it is there already: what has been traced is not traced again.
    """

    objective: Objective
    optimizers: Mapping[str, Optimizer]
    frozen: dict[str, Params]
    mesh: Mesh
    seed: int
    batch_size: int
    micro_batches: int = 1
    step: Advance | None = None


def abstract_state(
    objective: Objective,
    optimizers: Mapping[str, Optimizer],
    seed: int,
    frozen: Mapping[str, Params],
    mesh: Mesh,
) -> TrainState:
    """Shapes, dtypes and shardings of the state; allocates nothing."""
    shapes = jax.eval_shape(lambda: initial_state(objective, optimizers, seed, frozen))
    return with_shardings(shapes, mesh)


def create_state(
    objective: Objective,
    optimizers: Mapping[str, Optimizer],
    seed: int,
    frozen: Mapping[str, Params],
    mesh: Mesh,
) -> TrainState:
    """The initial state, created already sharded."""
    abstract = abstract_state(objective, optimizers, seed, frozen, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    create = jax.jit(
        lambda frozen: initial_state(objective, optimizers, seed, frozen), out_shardings=shardings
    )
    return create(dict(frozen))


def compile_step(
    objective: Objective,
    optimizers: Mapping[str, Optimizer],
    seed: int,
    mesh: Mesh,
    micro_batches: int = 1,
    observe: Observe = NO_METRICS,
) -> Advance:
    """`train_step` jitted over the mesh; donates the state and keeps its sharding."""
    step = train_step(objective, optimizers, seed, micro_batches, observe)

    def sharded(
        state: TrainState, frozen: Mapping[str, Params], batch: HostBatch
    ) -> tuple[TrainState, Metrics]:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            updated, metrics = step(state, frozen, batch)
        return jax.lax.with_sharding_constraint(updated, tree_shardings(state, mesh)), metrics

    return jit_over(mesh, sharded)


def compile_several(step: Advance, mesh: Mesh) -> Advance:
    """Several compiled steps in one dispatch; batches and metrics are stacked on a first axis."""

    def several(
        state: TrainState, frozen: Mapping[str, Params], batches: HostBatch
    ) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(lambda state, batch: step(state, frozen, batch), state, batches)

    return jit_over(mesh, several, stacked=True)


def jit_over(mesh: Mesh, step: Callable, stacked: bool = False) -> Callable:
    """A step or several, jitted over the mesh: donates the state, splits batches over devices."""
    return jax.jit(
        step,
        in_shardings=(None, None, batch_sharding(mesh, stacked)),
        out_shardings=(None, replicated_sharding(mesh)),
        donate_argnums=0,
    )


def compile_dispatch(training: Training, complete: Callable[[Batch], Batch]) -> Dispatch:
    """A function that takes batches from the host and runs one or several training steps.

    The metrics of several steps are stacked on a first axis. complete: batches on the devices ->
    what losses read.
    """
    objective, optimizers, frozen, mesh, seed, _, micro_batches, step = training
    one = step or compile_step(objective, optimizers, seed, mesh, micro_batches)
    several = compile_several(one, mesh)
    # A program of its own, since a step that packed them would take CPUs twice as long to compile.
    pack = jax.jit(pack_metrics, out_shardings=replicated_sharding(mesh))

    def dispatch(
        state: TrainState, source: Iterator[HostBatch], count: int
    ) -> tuple[TrainState, PackedMetrics]:
        if count == 1:
            state, metrics = one(state, frozen, complete(put_batch(next(source), mesh)))
        else:
            state, metrics = several(state, frozen, complete(put_batches(source, count, mesh)))
        return state, pack(metrics)

    return dispatch


def restore_or_create(training: Training, workdir: Path) -> TrainState:
    """The run's newest saved state, or its initial state if it has none.

    Removes from `training.frozen` what no loss reads, to free its memory.
    """
    objective, optimizers, frozen, mesh, seed, *_ = training
    abstract = abstract_state(objective, optimizers, seed, frozen, mesh)
    state = restore.newest_state(workdir, abstract)
    if state is None:
        state = create_state(objective, optimizers, seed, frozen, mesh)
    for name in set(frozen) - set(objective.read_only):
        del frozen[name]
    return state
