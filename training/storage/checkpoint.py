"""Checkpoints of a run, written by Orbax: WORKDIR/checkpoints/STEP, one folder per network.

    checkpoints/3000/network              a player, under its name
                     target, ema_0.999    the followers, under theirs
                     optimizer_network    optimizer states
                     run                  JSON: step, config, run, fingerprints of all the others
    damaged/3000                          what could not be read, moved there when an older one was

A step's folder appears under its name only when it is complete, and is never written again. One
folder per network lets sampling read the one that it needs. The data order follows from the seed,
which is in the config, and the step. training/storage/restore.py reads them.
"""

import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies
from orbax.checkpoint.multihost import BarrierSyncFn, get_barrier_sync_fn

from fewstep.files import UNWRITABLE
from fewstep.training.cluster import exits, processes
from fewstep.training.cluster.processes import first_process_says
from fewstep.training.storage.fields import is_int_or_float, is_whole
from fewstep.training.storage.fingerprint import fingerprint
from fewstep.training.storage.identity import Identity, identity_of
from fewstep.training.storage.seal import seal_record
from fewstep.training.storage.train_state import TrainState

FOLDER, DAMAGED = "checkpoints", "damaged"
OPTIMIZER = "optimizer_"
RUN = "run"
UNFINISHED = "unfinished"  # in the record: the row of the log that a stop cut off


class Retention(NamedTuple):
    """Which checkpoints stay; each rule keeps its own, and the newest always stays.

    newest: so many of the last, all of them if 0. hours: one of every so many hours; 0 is no rule.
    steps: these. scores: () -> {step: number}; of those that are there the lowest stays.
    """

    newest: int = 0
    hours: float = 0.0
    steps: tuple[int, ...] = ()
    scores: Callable[[], Mapping[int, float]] = dict


class LowestScore(policies.PreservationPolicy):
    """Preserves the checkpoint with the lowest score, of those that have one."""

    def __init__(self, scores: Callable[[], Mapping[int, float]]) -> None:
        self.scores = scores

    def should_preserve(
        self,
        checkpoints: Sequence[policies.PolicyCheckpointInfo],
        *,
        context: policies.PreservationContext,
    ) -> list[bool]:
        """One answer for each checkpoint."""
        scores = self.scores()
        known = [info.step for info in checkpoints if info.step in scores]
        best = min(known, key=scores.__getitem__, default=None)
        return [info.step == best for info in checkpoints]


KEEP_ALL = Retention()
LONGEST = 86400.0  # seconds that a save may take if nothing else is said


def preservation_policy(retention: Retention) -> policies.PreservationPolicy:
    """Orbax's form of a retention."""
    rules = [policies.LatestN(retention.newest or None), LowestScore(retention.scores)]
    rules.append(policies.CustomSteps(list(retention.steps)))
    if retention.hours > 0.0:
        rules.append(policies.EveryNSeconds(max(int(retention.hours * 3600.0), 1)))
    return policies.AnyPreservationPolicy(rules)


@contextmanager
def open_checkpoints(
    workdir: Path,
    retention: Retention = KEEP_ALL,
    limit: float = LONGEST,
    watched: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[ocp.CheckpointManager]:
    """The checkpoints of a run, to be saved asynchronously; the last save is waited for at the end.

    limit: seconds that the processes wait for each other in a save. watched: entered while that
    last save is waited for. Raises OSError if it could not be written.
    """
    folder = (workdir / FOLDER).absolute()
    options = ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy(retention),
        cleanup_tmp_directories=True,
        async_options=ocp.AsyncOptions(
            timeout_secs=math.ceil(min(limit, LONGEST)),
            barrier_sync_fn=make_barrier(folder) if processes.has_peers() else None,
        ),
    )
    checkpoints = ocp.CheckpointManager(folder, options=options)
    try:
        yield checkpoints
        with watched():
            wait_for_save(checkpoints)
    except BaseException:
        with suppress(Exception), watched():  # of a save that fails too; the first error says why
            checkpoints.close()
        raise
    with watched():
        checkpoints.close()


def make_barrier(folder: Path) -> BarrierSyncFn:
    """Orbax's barrier between the threads that save, but for one whose part has failed.

    Orbax would have it wait for the others, which wait for its part, until both give up; here it
    ends its process, and the others with it.
    """
    wait_for_all = get_barrier_sync_fn()

    def wait_unless_failed(*, key: str, timeout_ms: int) -> None:
        in_background = threading.current_thread() is not threading.main_thread()
        if in_background and sys.exception() is not None:
            with raise_write_errors(folder):
                raise
        wait_for_all(key=key, timeout_ms=timeout_ms)

    return wait_unless_failed


def named_trees(state: TrainState) -> dict[str, Any]:
    """The named trees of a state; `step` apart, which is in `run`."""
    optimizers = {OPTIMIZER + name: opt for name, opt in state.optimizers.items()}
    return {**state.networks, **state.followers, **optimizers}


def save_state(
    checkpoints: ocp.CheckpointManager,
    state: TrainState,
    config: Mapping[str, Any],
    run: Mapping[str, Any] | None = None,
    unfinished: Mapping[str, Any] | None = None,
) -> None:
    """Start to save a state under its step, if that step is not there yet.

    config, run, unfinished: plain JSON values. The first two say what the checkpoint is of (run is
    an Identity's stamp), the last has the row of the log that is not written yet. Raises OSError if
    the save before this one could not be written.
    """
    wait_for_save(checkpoints)
    step = int(state.step)
    if first_process_says(step in checkpoints.all_steps()):
        return
    trees = named_trees(state)
    prints = {name: fingerprint(tree) for name, tree in trees.items()}
    stamp = {"step": step, "config": config, "run": run, "fingerprints": prints}
    record = seal_record({**stamp, UNFINISHED: unfinished})
    arguments = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
    arguments[RUN] = ocp.args.JsonSave(record)
    with raise_write_errors(Path(checkpoints.directory), step):
        checkpoints.save(step, args=ocp.args.Composite(**arguments), force=True)


def check_record(record: Any) -> None:
    """Raises ValueError, KeyError or TypeError unless a record has what `save_state` writes."""
    run_in_record(record)
    step, prints, row = record["step"], record["fingerprints"], record.get(UNFINISHED)
    if not (is_whole(step) and isinstance(prints, Mapping) and (row is None or is_row(row))):
        raise ValueError("a field of its record has another type than was written")


def run_in_record(record: Mapping[str, Any]) -> Identity:
    """The run in the record of a checkpoint; its id is "" if an older version wrote it."""
    return identity_of({"id": "", **(record.get("run") or {}), "config": record["config"]})


def is_row(row: Any) -> bool:
    """Whether it is a row of the log that is not written yet (Report.unfinished_row)."""
    if not isinstance(row, Mapping) or not isinstance(row.get("sums"), Mapping):
        return False
    pairs = row["sums"].values()
    summed = all(map(is_pair, pairs))
    steps = row.get("steps", [])  # which earlier versions did not record
    times = isinstance(steps, list) and all(is_pair(step) for step in steps)
    return summed and times and is_whole(row.get("images")) and is_int_or_float(row.get("seconds"))


def is_pair(value: Any) -> bool:
    """Whether it is a list of two numbers."""
    return isinstance(value, list) and len(value) == 2 and all(map(is_int_or_float, value))


def wait_for_save(checkpoints: ocp.CheckpointManager) -> None:
    """Wait for the save that is under way. Raises OSError if it could not be written."""
    with raise_write_errors(Path(checkpoints.directory)):
        checkpoints.wait_until_finished()


@contextmanager
def raise_write_errors(folder: Path, step: int | None = None) -> Iterator[None]:
    """Turn what Orbax and TensorStore raise into one OSError that says what is left.

    One of several processes ends instead, and with it the others.
    """
    try:
        yield
    except TimeoutError as error:  # in Orbax's barrier: another process hangs in its part
        message = f"error: {folder}: a save was not finished in time"
        processes.abort(exits.STALLED, f"{message} ({first_line(error)})")
    except Exception as error:  # of half a dozen types
        # As the folder says: Orbax would ask the other processes, which may wait elsewhere.
        names = [path.name for path in folder.glob("*")]
        left = max((int(name) for name in names if name.isdigit()), default=None)
        name = "the last checkpoint" if step is None else f"checkpoint {step}"
        message = (
            f"{name} could not be written to {folder} ({first_line(error)}); "
            f"{'none' if left is None else left} is the newest whole one. Free disk space or mend "
            "the folder, and start the same command again"
        )
        if processes.has_peers():
            # The others wait for this process in Orbax's barrier, and it would wait for them in
            # the next one: it ends here, and they hear of it.
            processes.exit_with_error(exits.BAD_INPUT, f"error: {message}")
        raise OSError(message) from error


def first_line(error: Exception) -> str:
    """That a disk is full, wherever it stands in an error's message; else its first line."""
    for number in UNWRITABLE:
        if os.strerror(number) in str(error):
            return os.strerror(number)
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
