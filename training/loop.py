"""The training loop: restore, then take a batch, step, log, save if due, evaluate if due.

The metrics read on the host are those of the step before, so the device never waits for the host;
before a save or an evaluation they are caught up with, so neither sees a state of a failed run. A
save comes before the evaluation, which may fail or be killed, and ends a row of the log, so that a
resumed run writes the rows that an uninterrupted one does. A request to stop is heard after every
step, and in an evaluation at once; the state is then saved, and the run ended. That save ends no
row: what the row has so far is saved with the state, and the resumed run goes on with it.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from fewstep.objectives.base import Batch, Metrics, Objective, Params
from fewstep.objectives.stages import stage_ends
from fewstep.training.cluster.preemption import Preempted, Preemption
from fewstep.training.cluster.processes import first_process_says
from fewstep.training.cluster.watchdog import PATIENCE, Patience, Watchdog
from fewstep.training.optimizer import Optimizer
from fewstep.training.profile import Profile, Window
from fewstep.training.report import Report, due
from fewstep.training.sharding import (
    batch_sharding,
    check_batch_size,
    put_batch,
    put_batches,
    replicated,
    tree_shardings,
)
from fewstep.training.state import initial_state
from fewstep.training.step import NO_METRICS, Observe, train_step
from fewstep.training.storage import checkpoint, restore
from fewstep.training.storage.checkpoint import UNFINISHED, Retention
from fewstep.training.storage.train_state import TrainState

# As training/sources.py makes it: a part for each source.
HostBatch = Mapping[str, Any]
# (state, frozen, batch) -> (state, metrics); the state is donated
Advance = Callable[[TrainState, Mapping[str, Params], HostBatch], tuple[TrainState, Metrics]]


def abstract_state(
    objective: Objective,
    optimizers: Mapping[str, Optimizer],
    seed: int,
    frozen: Mapping[str, Params],
    mesh: Mesh,
) -> TrainState:
    """Shapes, dtypes and shardings of the state, with nothing allocated."""
    shapes = jax.eval_shape(lambda: initial_state(objective, optimizers, seed, frozen))
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        shapes,
        tree_shardings(shapes, mesh),
    )


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
    """`train_step` jitted over the mesh, the state donated, its sharding kept."""
    step = train_step(objective, optimizers, seed, micro_batches, observe)

    def sharded(
        state: TrainState, frozen: Mapping[str, Params], batch: HostBatch
    ) -> tuple[TrainState, Metrics]:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            updated, metrics = step(state, frozen, batch)
        return jax.lax.with_sharding_constraint(updated, tree_shardings(state, mesh)), metrics

    return jax.jit(
        sharded,
        in_shardings=(None, None, batch_sharding(mesh)),
        out_shardings=(None, replicated(mesh)),
        donate_argnums=0,
    )


def compile_steps(step: Advance, count: int, mesh: Mesh) -> Advance:
    """`count` compiled steps in one dispatch: batches and metrics are stacked on a first axis."""

    def steps(
        state: TrainState, frozen: Mapping[str, Params], batches: HostBatch
    ) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(lambda state, batch: step(state, frozen, batch), state, batches)

    return jax.jit(
        steps,
        in_shardings=(None, None, batch_sharding(mesh, stacked=True)),
        out_shardings=(None, replicated(mesh)),
        donate_argnums=0,
    )


class Schedule(NamedTuple):
    """When things are done, in steps. steps: in all; log, save, evaluate: 0 is after the last only.

    dispatch: steps that are dispatched at once where nothing is due between them. stops: further
    numbers of steps after which something is due. ends: those after which a stage ends, which is
    saved and evaluated.
    """

    steps: int
    log: int = 0
    save: int = 0
    evaluate: int = 0
    dispatch: int = 1
    stops: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()

    def is_due(self, done: int, period: int) -> bool:
        """Whether a save or an evaluation every `period` steps is due after `done` of them."""
        return due(done, self.steps, period) or done in self.ends

    def next_dispatch(self, done: int) -> int:
        """How many steps to dispatch after `done` of them: `dispatch`, or one at a time."""
        between = range(done + 1, done + self.dispatch)
        free = not any(
            step in self.stops or any(self.is_due(step, p) for p in (self.save, self.evaluate))
            for step in between
        )
        return self.dispatch if free else 1


def train(
    *,
    objective: Objective,
    optimizers: Mapping[str, Optimizer],
    frozen: dict[str, Params],
    mesh: Mesh,
    config: Mapping[str, Any],
    run: Mapping[str, Any] | None = None,
    seed: int,
    schedule: Schedule,
    batch_size: int,
    micro_batches: int = 1,
    batches: Callable[[int], Iterator[HostBatch]],
    complete: Callable[[Batch], Batch] = dict,
    evaluate: Callable[[TrainState], Mapping[str, float]],
    workdir: Path,
    retention: Retention = checkpoint.KEEP_ALL,
    patience: Patience = PATIENCE,
    preemption: Preemption | None = None,
    least_seconds: float | None = None,
    window: Window | None = None,
    announce: Callable[[int], None] = lambda start: None,
) -> TrainState:
    """Train up to schedule.steps steps in all, from the newest whole checkpoint if there is one.

    frozen: teachers; those that are only started from are removed from it once they have been.
    config, run: plain values that every checkpoint records (checkpoint.save).
    batches: start step -> this process's batches from that step on; complete: what the step is
    given of them, made on the devices. evaluate: state -> numbers to log. least_seconds: of a step
    (training.pace.Pace). window: the steps that are traced. announce: called with the step that the
    run starts from.

    Raises DivergedError; Preempted, once the state is saved; OSError if it could not be.
    """
    check_batch_size(batch_size, mesh, micro_batches)
    preemption = preemption or Preemption()
    ends = stage_ends(objective.stages, schedule.steps)
    schedule = schedule._replace(stops=window or (), ends=ends)
    state = restored_or_created(objective, optimizers, seed, frozen, mesh, workdir)
    step = compile_step(objective, optimizers, seed, mesh, micro_batches)
    steps = compile_steps(step, schedule.dispatch, mesh)
    start = int(state.step)
    unfinished = restore.read_record(workdir, start).get(UNFINISHED) if start else None
    announce(start)
    source = batches(start)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    with (
        in_place(workdir) as check_place,
        Watchdog(workdir, patience, size) as watchdog,
        checkpoint.open_checkpoints(
            workdir, retention, patience.of_save(size), watchdog.saving
        ) as checkpoints,
        Report(
            workdir,
            start,
            schedule.steps,
            batch_size,
            schedule.log,
            optimizers,
            unfinished,
            least_seconds,
            objective.stages,
        ) as report,
        Profile(workdir, window) as profile,
    ):

        def save() -> None:
            check_place()
            with watchdog.saving():
                checkpoint.save(checkpoints, state, config, run, report.unfinished())
            report.restart_clock()

        def stopped(done: int) -> Preempted:
            save()
            with watchdog.saving():
                checkpoint.wait(checkpoints)  # what is raised says that the step is saved
            return preempted(done)

        def evaluate_now(done: int) -> None:
            report.flush(done)
            check_place()
            try:
                with watchdog.paused(), preemption.at_once():
                    results = evaluate(state)
            except Preempted as stop:
                raise stopped(done) from stop
            report.evaluation(done, results)
            report.restart_clock()

        def between_steps(act: Callable[[], None]) -> None:
            with watchdog.paused():
                report.catch_up()
                jax.block_until_ready(state)
                act()
            report.restart_clock()

        evaluated = first_process_says(report.evaluated(start))
        if start and schedule.is_due(start, schedule.evaluate) and not evaluated:
            evaluate_now(start)  # it was ended between the save and the evaluation
        done = start
        while done < schedule.steps:
            if profile.begins(done):
                between_steps(profile.begin)
            count = schedule.next_dispatch(done)
            with profile.step(done):
                if count == 1:
                    batch = complete(put_batch(next(source), mesh))
                    state, metrics = step(state, frozen, batch)
                else:
                    stacked = complete(put_batches(source, count, mesh))
                    state, metrics = steps(state, frozen, stacked)
            done += count
            report.after_steps(done, count, metrics)
            watchdog.beat()
            if profile.ends(done):
                between_steps(profile.end)
            stop, save_due = preemption.requested(done), schedule.is_due(done, schedule.save)
            if save_due:
                report.flush(done)
            if stop:
                raise stopped(done)
            if save_due:
                save()
            if schedule.is_due(done, schedule.evaluate):
                evaluate_now(done)
    return state


@contextmanager
def in_place(folder: Path) -> Iterator[Callable[[], None]]:
    """A check that the folder, made if it is not there, is still the same; made at the end too.

    It raises OSError, so that a run neither ends well nor begins another folder when its own was
    removed, moved or replaced. Any OSError in the block is explained by it, if that has happened.
    """
    if jax.process_index() > 0:
        yield lambda: None
        return
    folder.mkdir(parents=True, exist_ok=True)
    before = folder.stat()

    def check() -> None:
        with suppress(OSError):
            if os.path.samestat(before, folder.stat()):
                return
        raise OSError(
            f"{folder} was removed, moved or replaced while this run trained in it, so the run has "
            "ended and nothing more is written there. The same command goes on from what is there"
        )

    try:
        yield check
    except OSError:
        check()
        raise
    check()


def restored_or_created(
    objective: Objective,
    optimizers: Mapping[str, Optimizer],
    seed: int,
    frozen: dict[str, Params],
    mesh: Mesh,
    workdir: Path,
) -> TrainState:
    """The newest state of the run, or its first; then teachers that are not read again are let go.

    By the caller too: they are removed from `frozen`.
    """
    abstract = abstract_state(objective, optimizers, seed, frozen, mesh)
    state = restore.newest_state(workdir, abstract)
    if state is None:
        state = create_state(objective, optimizers, seed, frozen, mesh)
    for name in set(frozen) - set(objective.frozen):
        del frozen[name]
    return state


def preempted(step: int) -> Preempted:
    """What is raised after the save of a run that was asked to stop."""
    return Preempted(f"preempted, resumable: stopped after step {step}, which is saved")
