"""A run between two of its steps: its state, what keeps and shows it, and what is due.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from fewstep.objectives.base import Metrics
from fewstep.training.cluster.preemption import Preempted, Preemption
from fewstep.training.cluster.processes import first_process_says
from fewstep.training.cluster.watchdog import PATIENCE, Patience, Watchdog
from fewstep.training.profile import Profile
from fewstep.training.report import Report
from fewstep.training.schedule import Schedule
from fewstep.training.storage import checkpoint
from fewstep.training.storage.checkpoint import KEEP_ALL, Retention
from fewstep.training.storage.train_state import TrainState

# state -> numbers to log
Evaluate = Callable[[TrainState], Mapping[str, float]]


class Upkeep(NamedTuple):
    """How a run is kept and watched.

    config, run: plain values that every checkpoint records (checkpoint.save). retention: which
    checkpoints stay. patience: how long a step or a save may take.
    """

    workdir: Path
    config: Mapping[str, Any]
    run: Mapping[str, Any] | None = None
    retention: Retention = KEEP_ALL
    patience: Patience = PATIENCE


@dataclass
class Session:
    """The state of a run after `done` steps, and all that goes on beside them.

    check_place: raises OSError if the folder of the run is not there any more (`in_place`).
    """

    state: TrainState
    done: int
    schedule: Schedule
    upkeep: Upkeep
    evaluate: Evaluate
    preemption: Preemption
    check_place: Callable[[], None]
    watchdog: Watchdog
    checkpoints: ocp.CheckpointManager
    report: Report
    profile: Profile

    def resume(self) -> None:
        """Evaluate the state if the run was ended between its save and its evaluation."""
        evaluated = first_process_says(self.report.evaluated(self.done))
        if self.done and self.schedule.evaluates(self.done) and not evaluated:
            self.evaluate_state()

    def before_steps(self) -> None:
        """Begin the trace if the next step is the first of it."""
        if self.profile.begins(self.done):
            self.at_rest(self.profile.begin)

    def after_steps(self, state: TrainState, count: int, metrics: Metrics) -> None:
        """Take what `count` steps have made, which may still be running."""
        self.state, self.done = state, self.done + count
        self.report.after_steps(self.done, count, metrics)
        self.watchdog.beat()
        if self.profile.ends(self.done):
            self.at_rest(self.profile.end)

    def do_what_is_due(self) -> None:
        """Stop, save and evaluate, in this order. Raises Preempted once a stop is saved."""
        stop = self.preemption.requested(self.done)
        save_due = self.schedule.saves(self.done)
        if save_due:
            self.report.flush(self.done)
        if stop:
            raise self.stopped()
        if save_due:
            self.save()
        if self.schedule.evaluates(self.done):
            self.evaluate_state()

    def save(self) -> None:
        """Start to save the state, with the row of the log that is not finished."""
        self.check_place()
        with self.watchdog.saving():
            checkpoint.save(
                self.checkpoints,
                self.state,
                self.upkeep.config,
                self.upkeep.run,
                self.report.unfinished(),
            )
        self.report.restart_clock()

    def stopped(self) -> Preempted:
        """What to raise in a run that was asked to stop, once its state is saved."""
        self.save()
        with self.watchdog.saving():
            checkpoint.wait(self.checkpoints)  # what is raised says that the step is saved
        return Preempted(f"preempted, resumable: stopped after step {self.done}, which is saved")

    def evaluate_state(self) -> None:
        """Evaluate the state and log the results. Raises Preempted once a stop is saved."""
        self.report.flush(self.done)
        self.check_place()
        try:
            with self.watchdog.paused(), self.preemption.at_once():
                results = self.evaluate(self.state)
        except Preempted as stop:
            raise self.stopped() from stop
        self.report.evaluation(self.done, results)
        self.report.restart_clock()

    def at_rest(self, act: Callable[[], None]) -> None:
        """Do something while the devices have nothing to do, and do not count its time."""
        with self.watchdog.paused():
            self.report.catch_up()
            jax.block_until_ready(self.state)
            act()
        self.report.restart_clock()


@contextmanager
def open_session(
    state: TrainState,
    schedule: Schedule,
    upkeep: Upkeep,
    evaluate: Evaluate,
    preemption: Preemption,
    open_report: Callable[[], Report],
) -> Iterator[Session]:
    """The session of a run that starts from `state`; at its end the last save is waited for.

    Raises OSError if the folder went, or a save failed.
    """
    workdir, patience, start = upkeep.workdir, upkeep.patience, int(state.step)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    with (
        in_place(workdir) as check_place,
        Watchdog(workdir, patience, size) as watchdog,
        checkpoint.open_checkpoints(
            workdir, upkeep.retention, patience.save_seconds(size), watchdog.saving
        ) as checkpoints,
        open_report() as report,
        Profile(workdir, schedule.window) as profile,
    ):
        session = Session(
            state=state,
            done=start,
            schedule=schedule,
            upkeep=upkeep,
            evaluate=evaluate,
            preemption=preemption,
            check_place=check_place,
            watchdog=watchdog,
            checkpoints=checkpoints,
            report=report,
            profile=profile,
        )
        del state  # a reference from here would keep the first state in memory
        yield session


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
