"""The training loop: restore, then take a batch, step, log, save if due, evaluate if due.

The metrics read on the host are those of the step before, so the device never waits for the host;
before a save or an evaluation they are caught up with, so neither sees a state of a failed run. A
save comes before the evaluation, which may fail or be killed, and ends a row of the log, so that a
resumed run writes the rows that an uninterrupted one does.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from objectives.base import Metrics, Objective, Params
from training import checkpoint
from training.metrics import Average, MetricLog, read_rows
from training.optimizer import Optimizer
from training.sharding import (
    batch_sharding,
    check_batch_size,
    put_batch,
    replicated,
    tree_shardings,
)
from training.state import TrainState, initial_state
from training.step import train_step

HostBatch = Mapping[str, np.ndarray]
EVALUATION = "evaluate/"  # begins the names of an evaluation's numbers in the log


class DivergedError(RuntimeError):
    """A run that cannot go on as it is."""


class NonFiniteError(DivergedError):
    """A loss or gradient was not finite; nothing after the last finite step was saved."""


class SpikesError(DivergedError):
    """Too many updates were not made because the loss or the gradient jumped."""


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


def abstract_batch(
    objective: Objective, batch_size: int, image_shape: tuple[int, ...]
) -> Mapping[str, Any]:
    """Shapes and dtypes of a batch."""
    label = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    image = jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.float32)
    batch = {"label": label}
    if objective.reads_images:
        batch["x"] = image
    if objective.reads_pairs:
        batch["pairs"] = {"eps": image, "x_0": image, "label": label}
    return batch


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
) -> Callable[[TrainState, Mapping[str, Params], HostBatch], tuple[TrainState, Metrics]]:
    """`train_step` jitted over the mesh, the state donated, its sharding kept."""
    step = train_step(objective, optimizers, seed, micro_batches)

    def sharded(
        state: TrainState, frozen: Mapping[str, Params], batch: HostBatch
    ) -> tuple[TrainState, Metrics]:
        updated, metrics = step(state, frozen, batch)
        return jax.lax.with_sharding_constraint(updated, tree_shardings(state, mesh)), metrics

    return jax.jit(
        sharded,
        in_shardings=(None, None, batch_sharding(mesh)),
        out_shardings=(None, replicated(mesh)),
        donate_argnums=0,
    )


def train(
    *,
    objective: Objective,
    optimizers: Mapping[str, Optimizer],
    frozen: dict[str, Params],
    mesh: Mesh,
    seed: int,
    steps: int,
    batch_size: int,
    micro_batches: int = 1,
    batches: Callable[[int], Iterator[HostBatch]],
    evaluate: Callable[[TrainState], Mapping[str, float]],
    workdir: Path,
    log_every: int,
    checkpoint_every: int,
    keep_checkpoints: int,
    evaluate_every: int,
) -> TrainState:
    """Train up to `steps` steps in all, from the newest checkpoint of the workdir if there is one.

    frozen: teachers; those that are only started from are removed from it once they have been.
    batches: start step -> this process's batches from that step on. evaluate: state -> numbers to
    log. An `every` of 0 means only after the last step. Raises DivergedError.
    """
    check_batch_size(batch_size, mesh, micro_batches)
    with checkpoint.open_checkpoints(workdir, keep_checkpoints) as checkpoints:
        abstract = abstract_state(objective, optimizers, seed, frozen, mesh)
        state = checkpoint.restore(checkpoints, abstract, seed)
        if state is None:
            state = create_state(objective, optimizers, seed, frozen, mesh)
        # A teacher that the players only started from is let go of, by the caller too.
        for name in set(frozen) - set(objective.frozen):
            del frozen[name]
        step = compile_step(objective, optimizers, seed, mesh, micro_batches)
        start = int(state.step)
        source = batches(start)
        report = Report(workdir, start, steps, batch_size, log_every, optimizers)
        try:
            if start and due(start, steps, evaluate_every) and not report.evaluated(start):
                # It was killed between the save and the evaluation.
                report.evaluation(start, evaluate(state))
            for done in range(start + 1, steps + 1):
                state, metrics = step(state, frozen, put_batch(next(source), mesh))
                report.after_step(done, metrics)
                if due(done, steps, checkpoint_every):
                    report.flush(done)
                    checkpoint.save(checkpoints, state, {"seed": seed})
                if due(done, steps, evaluate_every):
                    report.flush(done)
                    report.evaluation(done, evaluate(state))
                    report.restart_clock()
        finally:
            report.close()
    return state


def due(step: int, last: int, period: int) -> bool:
    """Whether something done every `period` steps, and after the last, is due after `step`."""
    return step == last or (period > 0 and step % period == 0)


class Report:
    """Reads metrics one step late, checks that the run is sound, logs and shows them."""

    def __init__(
        self,
        workdir: Path,
        start: int,
        steps: int,
        batch_size: int,
        every: int,
        optimizers: Mapping[str, Optimizer],
    ) -> None:
        self.log = MetricLog(workdir, start) if jax.process_index() == 0 else None
        self.bar = tqdm(
            total=steps,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            file=sys.stderr,
            disable=jax.process_index() > 0,
        )
        self.every, self.steps, self.batch_size = every, steps, batch_size
        self.average = Average()
        self.pending: tuple[int, Metrics] | None = None
        self.workdir, self.optimizers = workdir, optimizers
        self.restart_clock()

    def after_step(self, step: int, metrics: Metrics) -> None:
        """Take the metrics of a step that is still running; handle those of the one before."""
        self.catch_up()
        self.pending = (step, metrics)

    def catch_up(self) -> None:
        """Handle the metrics that were taken last."""
        if self.pending is None:
            return
        (step, metrics), self.pending = self.pending, None
        metrics = jax.device_get(metrics)
        check_finite(step, metrics)
        check_spikes(step, metrics, self.optimizers)
        self.average.add({k: v for k, v in metrics.items() if not k.endswith("finite")})
        self.images += self.batch_size
        self.bar.update()
        if due(step, self.steps, self.every):
            self.flush(step)

    def flush(self, step: int) -> None:
        """Handle what is pending and end the row of the log with the averages since the last."""
        self.catch_up()
        row = self.average.pop()
        if row:
            row["images_per_second"] = self.images / (time.perf_counter() - self.since)
            self.bar.set_postfix({k: f"{v:.4f}" for k, v in row.items() if k.endswith("loss")})
            self.write(step, row)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Count images per second from here, without the evaluation or the save before."""
        self.images, self.since = 0, time.perf_counter()

    def evaluated(self, step: int) -> bool:
        """Whether the log has an evaluation of that step."""
        rows = read_rows(self.workdir / "metrics.jsonl")
        return any(
            row["step"] == step and any(name.startswith(EVALUATION) for name in row) for row in rows
        )

    def evaluation(self, step: int, results: Mapping[str, float]) -> None:
        """Log the results of an evaluation."""
        self.write(step, {EVALUATION + name: value for name, value in results.items()})

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Log numbers of a step."""
        if self.log and row:
            self.log.write(step, row)

    def close(self) -> None:
        """Flush the log and leave the bar as it stands."""
        self.bar.close()
        if self.log:
            self.log.close()


def check_finite(step: int, metrics: Metrics) -> None:
    """Raises NonFiniteError that names the network and the step."""
    for name, finite in metrics.items():
        if name.endswith("finite") and finite.total < finite.count:
            player = name.rpartition("/")[0] or "the network"
            raise NonFiniteError(
                f"loss or gradient of {player} is not finite at step {step}; the update was not "
                "made, and the run cannot go on as it is. Start another --workdir with a lower "
                "optimizer.learning_rate or with optimizer.clip_norm"
            )


def check_spikes(step: int, metrics: Metrics, optimizers: Mapping[str, Optimizer]) -> None:
    """Raises SpikesError that names the network, the step and the factor."""
    for name, optimizer in optimizers.items():
        skipped = metrics.get("skipped" if len(optimizers) == 1 else f"{name}/skipped")
        if skipped is not None and skipped.total > optimizer.spike_cap:
            raise SpikesError(
                f"{name} has skipped {int(skipped.total)} updates at step {step}, more than "
                f"optimizer.spike_cap={optimizer.spike_cap}: their loss or gradient lay "
                f"{optimizer.spike_factor:g} standard deviations (optimizer.spike_factor) above "
                "the last ones. Start another --workdir with a lower optimizer.learning_rate, or "
                "with a higher factor or cap"
            )
