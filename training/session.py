"""What a run does between training steps: stop, save and evaluate, each when it is due.

The host reads metrics one step late, so devices never wait for it. Before a save or an evaluation
it reads all of them, so neither ever sees a state that is not finite.

A save comes before an evaluation, which may fail or be killed. A save ends the row of the log, so
that a resumed run writes the same rows as one that was never interrupted.

The run checks for a request to stop after every step, and at any moment of an evaluation. It then
saves its state and ends. This save does not end the row: the checkpoint has the row so far, and
the resumed run completes it.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from fewstep.training.cluster.preemption import Preempted, Preemption
from fewstep.training.cluster.processes import first_process_says
from fewstep.training.cluster.watchdog import PATIENCE, Patience, Watchdog
from fewstep.training.loggers import DEFAULT
from fewstep.training.packed import PackedMetrics
from fewstep.training.profile import Profile
from fewstep.training.report import Report
from fewstep.training.schedule import Schedule
from fewstep.training.storage import checkpoint
from fewstep.training.storage.checkpoint import KEEP_ALL, Retention
from fewstep.training.storage.train_state import TrainState

# state -> numbers to log
Evaluate = Callable[[TrainState], Mapping[str, float]]


class Upkeep(NamedTuple):
    """How a run is saved and watched.

    config, run: plain values that every checkpoint records (checkpoint.save_state). retention:
    which checkpoints stay. patience: how long a step or a save may take. log_to: names of loggers.
    """

    workdir: Path
    config: Mapping[str, Any]
    run: Mapping[str, Any] | None = None
    retention: Retention = KEEP_ALL
    patience: Patience = PATIENCE
    log_to: tuple[str, ...] = DEFAULT


@dataclass
class Session:
    """The state of a run after `done` steps, and all that saves, watches and reports it.

    check_place: raises OSError if the run's folder is gone (`guard_folder`).
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
        """Evaluate the state if the run ended after its save and before its evaluation."""
        evaluated = first_process_says(self.report.has_evaluation(self.done))
        if self.done and self.schedule.evaluates(self.done) and not evaluated:
            self.evaluate_state()

    def before_steps(self) -> None:
        """Begin the trace if the next step is its first."""
        if self.profile.begins(self.done):
            self.run_when_idle(self.profile.begin)

    def after_steps(self, state: TrainState, count: int, metrics: PackedMetrics) -> None:
        """Take the state and metrics of `count` steps, which may still be running."""
        self.state, self.done = state, self.done + count
        self.report.after_steps(self.done, count, metrics)
        self.watchdog.beat()
        if self.profile.ends(self.done):
            self.run_when_idle(self.profile.end)

    def do_what_is_due(self) -> None:
        """Stop, save and evaluate, in this order.

        Raises Preempted, or KeyboardInterrupt after a Ctrl-C, once the state is saved.
        """
        stop = self.preemption.requested()
        save_due = self.schedule.saves(self.done)
        if save_due:
            self.report.flush(self.done)
        if stop:
            raise self.save_and_stop()
        if save_due:
            self.save()
        if self.schedule.evaluates(self.done):
            self.evaluate_state()

    def save(self) -> None:
        """Start to save the state and the unfinished row of the log."""
        self.check_place()
        with self.watchdog.saving():
            checkpoint.save_state(
                self.checkpoints,
                self.state,
                self.upkeep.config,
                self.upkeep.run,
                self.report.unfinished_row(),
            )
        self.report.restart_clock()

    def save_and_stop(self) -> BaseException:
        """Save the state of a run that was asked to stop; returns the error to raise."""
        self.save()
        with self.watchdog.saving():
            checkpoint.wait_for_save(self.checkpoints)  # the error says that the step is saved
        return self.preemption.stop_exception(f"stopped after step {self.done}, which is saved")

    def evaluate_state(self) -> None:
        """Evaluate the state and log the results; a request to stop saves the state instead."""
        self.report.flush(self.done)
        self.check_place()
        try:
            with self.watchdog.paused(), self.preemption.at_once_if_alone():
                results = self.evaluate(self.state)
        except (Preempted, KeyboardInterrupt) as stop:
            raise self.save_and_stop() from stop
        self.report.log_evaluation(self.done, results)
        self.report.restart_clock()

    def run_when_idle(self, act: Callable[[], None]) -> None:
        """Call `act` while the devices are idle; its time counts for no step."""
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
    """The session of a run that starts from `state`; waits for the last save at the end.

    Raises OSError if the folder is gone or a save fails.
    """
    workdir, patience, start = upkeep.workdir, upkeep.patience, int(state.step)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    with (
        guard_folder(workdir) as check_place,
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
        del state  # a reference here would keep the first state in memory
        yield session


@contextmanager
def guard_folder(folder: Path) -> Iterator[Callable[[], None]]:
    """Yields a check that the folder is still the same one; creates the folder if it is missing.

    The check raises OSError if the folder was removed, moved or replaced, so that a run neither
    succeeds nor writes to another folder then. It also runs at the end of the block, and after any
    OSError in the block, whose cause it may be.
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
            f"{folder} was removed, moved or replaced while this run trained in it; the run ends "
            "and writes nothing more there. Start the same command again to go on from what is "
            "there"
        )

    try:
        yield check
    except OSError:
        check()
        raise
    check()
