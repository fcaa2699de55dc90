"""Checkpoints of a run, written by Orbax: WORKDIR/checkpoints/STEP, one folder per network.

    checkpoints/3000/network              a player, by its name
                     target, ema_0.999    followers, by their names
                     optimizer_network    optimizer states
                     run                  JSON: step, config, run, fingerprints of all the others
    damaged/3000                          damaged, moved there when an older one was used

The folder of a step gets its name only when it is complete, and is never written again. One folder
per network lets sampling read only the network that it needs. The order of the data follows from
the step and the seed, which is in the config. training/storage/restore.py reads checkpoints.
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
UNFINISHED = "unfinished"  # key in the record: the row of the log that a stop interrupted


class Retention(NamedTuple):
    """Which checkpoints stay: the newest, and all that any rule keeps.

    newest: how many of the newest; 0 keeps all. hours: keeps one in this many hours; 0 keeps none.
    steps: keeps these steps. scores: () -> {step: number}; keeps the lowest of saved steps.
    """

    newest: int = 0
    hours: float = 0.0
    steps: tuple[int, ...] = ()
    scores: Callable[[], Mapping[int, float]] = dict


class LowestScore(policies.PreservationPolicy):
    """Preserves the checkpoint with the lowest score."""

    def __init__(self, scores: Callable[[], Mapping[int, float]]) -> None:
        self.scores = scores

    def should_preserve(
        self,
        checkpoints: Sequence[policies.PolicyCheckpointInfo],
        *,
        context: policies.PreservationContext,
    ) -> list[bool]:
        """Whether to preserve each checkpoint; one without a score is not preserved."""
        scores = self.scores()
        known = [info.step for info in checkpoints if info.step in scores]
        best = min(known, key=scores.__getitem__, default=None)
        return [info.step == best for info in checkpoints]


KEEP_ALL = Retention()
LONGEST = 86400.0  # seconds that a save may take by default


def preservation_policy(retention: Retention) -> policies.PreservationPolicy:
    """A retention as a policy of Orbax."""
    rules = [policies.LatestN(retention.newest or None), LowestScore(retention.scores)]
    rules.append(policies.CustomSteps(list(retention.steps)))
    if retention.hours > 0.0:
        rules.append(policies.EveryNSeconds(max(int(retention.hours * 3600.0), 1)))
    return policies.AnyPreservationPolicy(rules)


class Checkpoints(ocp.CheckpointManager):
    """Orbax's checkpoints, whose saves do not ask JAX whether to stop.

    JAX stops all processes after the question that the last one has asked, and Orbax asks with
    other numbers than the training loop (`Preemption.requested`): some processes would go on alone.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


@contextmanager
def open_checkpoints(
    workdir: Path,
    retention: Retention = KEEP_ALL,
    limit: float = LONGEST,
    watched: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[ocp.CheckpointManager]:
    """A run's checkpoints, for asynchronous saves; waits for the last save at the end.

    limit: seconds that processes wait for each other in a save. watched: a context for the wait at
    the end. Raises OSError if the last save could not be written.
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
    checkpoints = Checkpoints(folder, options=options)
    try:
        yield checkpoints
        with watched():
            wait_for_save(checkpoints)
    except BaseException:
        with suppress(Exception), watched():  # a save may fail too; the first error says why
            checkpoints.close()
        raise
    with watched():
        checkpoints.close()


def make_barrier(folder: Path) -> BarrierSyncFn:
    """Orbax's barrier between the threads that save, which a failed thread does not enter.

    Orbax lets a failed thread wait for the others, which wait for its part, until all time out.
    Here it ends its process, and the others end with it.
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
    """The trees of a state by name, without `step`, which the record has."""
    optimizers = {OPTIMIZER + name: opt for name, opt in state.optimizers.items()}
    return {**state.networks, **state.followers, **optimizers}


def save_state(
    checkpoints: ocp.CheckpointManager,
    state: TrainState,
    config: Mapping[str, Any],
    run: Mapping[str, Any] | None = None,
    unfinished: Mapping[str, Any] | None = None,
) -> None:
    """Start to save a state under its step, unless that step is saved already.

    config, run, unfinished: plain JSON values. config and run (the stamp of an Identity) identify
    the run; unfinished is the row of the log so far. Raises OSError if the save before this one
    could not be written.
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
    """Raises ValueError, KeyError or TypeError unless a record has the fields of `save_state`."""
    run_in_record(record)
    step, prints, row = record["step"], record["fingerprints"], record.get(UNFINISHED)
    if not (is_whole(step) and isinstance(prints, Mapping) and (row is None or is_row(row))):
        raise ValueError("a field of its record has the wrong type")


def run_in_record(record: Mapping[str, Any]) -> Identity:
    """The identity in a checkpoint's record; its id is "" if an older version wrote it."""
    return identity_of({"id": "", **(record.get("run") or {}), "config": record["config"]})


def is_row(row: Any) -> bool:
    """Whether a value is an unfinished row of the log (Report.unfinished_row)."""
    if not isinstance(row, Mapping) or not isinstance(row.get("sums"), Mapping):
        return False
    pairs = row["sums"].values()
    summed = all(map(is_pair, pairs))
    steps = row.get("steps", [])  # earlier versions did not record these
    times = isinstance(steps, list) and all(is_pair(step) for step in steps)
    return summed and times and is_whole(row.get("images")) and is_int_or_float(row.get("seconds"))


def is_pair(value: Any) -> bool:
    """Whether a value is a list of two numbers."""
    return isinstance(value, list) and len(value) == 2 and all(map(is_int_or_float, value))


def wait_for_save(checkpoints: ocp.CheckpointManager) -> None:
    """Wait for the current save. Raises OSError if it could not be written."""
    with raise_write_errors(Path(checkpoints.directory)):
        checkpoints.wait_until_finished()


@contextmanager
def raise_write_errors(folder: Path, step: int | None = None) -> Iterator[None]:
    """Turn errors of Orbax and TensorStore into one OSError that names the newest whole checkpoint.

    In a run of several processes, the process exits instead, and the others end with it.
    """
    try:
        yield
    except TimeoutError as error:  # of Orbax's barrier: another process hangs
        message = f"error: {folder}: a save was not finished in time"
        processes.abort(exits.STALLED, f"{message} ({first_line(error)})")
    except Exception as error:  # of many types
        # Read the folder itself: Orbax would ask the other processes, which may wait elsewhere.
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
            # the next one. So it ends here, and they notice.
            processes.exit_with_error(exits.BAD_INPUT, f"error: {message}")
        raise OSError(message) from error


def first_line(error: Exception) -> str:
    """The reason in an error's message that nothing can be written, else its first line."""
    for number in UNWRITABLE:
        if os.strerror(number) in str(error):
            return os.strerror(number)
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
