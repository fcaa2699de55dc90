"""Reads checkpoints of a run: the newest whole one, bit for bit as it was written.

Neither file systems nor Orbax notice flipped bits, so every tree is compared with its fingerprint.
Each process reads on its own, so that damage in one of them leaves no other waiting; then all
agree. Process 0 says which checkpoints exist, and the others wait until they see them: a shared
disk may show files late, and these are not damaged.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from fewstep.objectives.base import Params
from fewstep.training.cluster.channel import process_names
from fewstep.training.cluster.preemption import raise_again
from fewstep.training.cluster.processes import (
    blind_processes,
    broadcast,
    first_process_says,
    say,
    true_everywhere,
)
from fewstep.training.storage.checkpoint import (
    DAMAGED,
    FOLDER,
    OPTIMIZER,
    RUN,
    check_record,
    first_line,
    named_trees,
)
from fewstep.training.storage.fingerprint import fingerprint
from fewstep.training.storage.identity import check_checkpoint
from fewstep.training.storage.seal import unseal_record
from fewstep.training.storage.train_state import TrainState

T = TypeVar("T")


def newest_state(workdir: Path, abstract: TrainState) -> TrainState | None:
    """The newest whole state of a run, None if it has no checkpoint.

    Names damaged checkpoints that are newer on standard error, and moves them to WORKDIR/damaged.
    abstract: a TrainState of shapes with shardings. Raises ValueError if there are checkpoints but
    none can be read.
    """
    if not has_checkpoint_for_all(workdir):
        return None
    with read_checkpoints(workdir) as checkpoints:
        state, damaged = read_newest_whole(
            checkpoints, lambda s: read_state(checkpoints, s, abstract)
        )
    set_aside(workdir, damaged)
    return state


def state_before(workdir: Path, abstract: TrainState, step: int) -> TrainState | None:
    """The state of the newest checkpoint before a step, None if there is none.

    Raises ValueError if that one is damaged.
    """
    if not has_checkpoint_for_all(workdir):
        return None
    with read_checkpoints(workdir) as checkpoints:
        before = max((s for s in steps_for_all(checkpoints) if s < step), default=None)
        if before is None:
            return None
        wait_for_files(checkpoints, before)
        return read_state(checkpoints, before, abstract)


def read_state(checkpoints: ocp.CheckpointManager, step: int, abstract: TrainState) -> TrainState:
    """The state of a step. Raises ValueError if it is damaged or belongs to another model."""
    restored = read_items(checkpoints, step, named_trees(abstract))
    return TrainState(
        step=jax.device_put(np.int32(step), abstract.step.sharding),
        networks={name: restored[name] for name in abstract.networks},
        followers={name: restored[name] for name in abstract.followers},
        optimizers={name: restored[OPTIMIZER + name] for name in abstract.optimizers},
    )


def restore_network(
    workdir: Path, name: str, abstract: Params, step: int | None = None
) -> tuple[Params, int]:
    """One network of a run, and the step it is from; as for `restore_trees`."""
    trees, step = restore_trees(workdir, {name: abstract}, step)
    return trees[name], step


def restore_trees(
    workdir: Path, abstract: Mapping[str, Any], step: int | None = None
) -> tuple[dict[str, Any], int]:
    """Networks or optimizer states of a run by name, and the step they are from.

    step: the newest whole one by default. Raises ValueError if there is no such checkpoint or it
    cannot be read.
    """
    with read_checkpoints(workdir) as checkpoints:

        def read(step: int) -> tuple[dict[str, Any], int]:
            return read_items(checkpoints, step, abstract), step

        chosen = choose_step(steps_for_all(checkpoints), workdir, step)
        if step is None:
            return read_newest_whole(checkpoints, read)[0]
        wait_for_files(checkpoints, chosen)
        return read(chosen)


def read_newest_whole(
    checkpoints: ocp.CheckpointManager, read: Callable[[int], T]
) -> tuple[T, list[int]]:
    """What `read` returns for the newest step that all processes can read, and the damaged steps.

    Damaged steps are those after it; standard error names them. Raises the newest step's ValueError
    if no step can be read.
    """
    errors: dict[int, ValueError] = {}
    for step in reversed(steps_for_all(checkpoints)):
        wait_for_files(checkpoints, step)
        result, error = try_read(read, step)
        if true_everywhere(error is None):
            for other, damage in errors.items():
                say(
                    f"warning: {damage or f'checkpoint {other} is damaged'}; {step} is used",
                    sys.stderr,
                )
            return result, list(errors)
        errors[step] = error
    reasons = [str(error) for error in errors.values() if error] or ["another process says why"]
    raise ValueError(
        f"{reasons[0]}. No checkpoint of {len(errors)} is whole, and nothing was changed; use the "
        "config that the run was trained with, or start another --workdir"
    )


def has_checkpoint_for_all(workdir: Path) -> bool:
    """Whether process 0 sees a checkpoint; if so, waits until all processes see the folder.

    Raises ValueError, in all processes, if some do not see it after a while.
    """
    if not first_process_says(has_checkpoint(workdir)):
        return False
    check_visible(workdir / FOLDER, blind_processes((workdir / FOLDER).is_dir))
    return True


def steps_for_all(checkpoints: ocp.CheckpointManager) -> list[int]:
    """The saved steps that process 0 sees, in order; the same in all processes."""
    return broadcast(sorted(checkpoints.all_steps()))


def wait_for_files(checkpoints: ocp.CheckpointManager, step: int) -> None:
    """Wait until all processes see the files of a checkpoint that process 0 sees.

    Raises ValueError, in all processes, if some do not see them after a while.
    """
    folder = Path(checkpoints.directory) / str(step)
    wanted = broadcast(file_sizes(folder))
    check_visible(folder, blind_processes(lambda: wanted.items() <= file_sizes(folder).items()))
    if step not in checkpoints.all_steps():
        checkpoints.reload()  # the manager was opened before this step was saved


def file_sizes(folder: Path) -> dict[str, int]:
    """Size in bytes of each file in a folder, by its path there."""
    with suppress(FileNotFoundError):  # another process may remove a file at this moment
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    return {}


def check_visible(folder: Path, blind: Sequence[int]) -> None:
    """Raises ValueError that names the processes that do not see a folder as process 0 does."""
    if blind:
        raise ValueError(
            f"{folder} is not what process 0 sees for {process_names(blind)}; put it on a disk "
            "that all hosts see. If that disk is slow to show files, start the same command again"
        )


def try_read(read: Callable[[int], T], step: int) -> tuple[T | None, ValueError | None]:
    """(what `read` returns, None), or (None, the ValueError that it raises)."""
    try:
        return read(step), None
    except ValueError as error:
        return None, error


def set_aside(workdir: Path, steps: Sequence[int]) -> None:
    """Move checkpoints to WORKDIR/damaged; deletes nothing."""
    if not steps:
        return
    if jax.process_index() == 0:
        for step in steps:
            (workdir / DAMAGED).mkdir(exist_ok=True)
            number = sum(
                path.name.split(".")[0] == str(step) for path in damaged_checkpoints(workdir)
            )
            name = f"{step}.{number}" if number else str(step)
            os.replace(workdir / FOLDER / str(step), workdir / DAMAGED / name)
    multihost_utils.sync_global_devices("damaged checkpoints set aside")


def damaged_checkpoints(workdir: Path) -> list[Path]:
    """Paths of the checkpoints in WORKDIR/damaged."""
    return sorted((workdir / DAMAGED).glob("*"))


def read_items(
    checkpoints: ocp.CheckpointManager, step: int, abstract: Mapping[str, Any]
) -> dict[str, Any]:
    """Trees of a step by name, compared with their fingerprints.

    Raises ValueError if one cannot be read, is not what was written, or belongs to another model.
    """
    trees = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
    arguments = ocp.args.Composite(**trees, **{RUN: ocp.args.JsonRestore()})
    folder = Path(checkpoints.directory) / str(step)

    def read(step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        restored = explain_errors(lambda: checkpoints.restore(step, args=arguments), folder)
        return restored, open_record(restored[RUN], folder)["fingerprints"]

    found, error = try_read(read, step)
    # All processes compute a fingerprint together, so none may be missing.
    if not true_everywhere(error is None):
        raise error or ValueError(f"checkpoint {folder} cannot be read by another process")
    restored, recorded = found
    prints = {name: fingerprint(restored[name]) for name in abstract}
    for name in abstract:
        if prints[name] != recorded.get(name):
            raise_again()
            raise ValueError(f"checkpoint {folder} is damaged: {name} is not what was written")
    return {name: restored[name] for name in abstract}


def read_record(workdir: Path, step: int | None = None) -> dict[str, Any]:
    """The record of a checkpoint (`save_state`): by default the newest that can be read.

    Raises ValueError if it does not exist, cannot be read, or is not this run's.
    """
    with read_checkpoints(workdir) as checkpoints:
        newest = choose_step(checkpoints.all_steps(), workdir, step)
        older = [] if step is not None else sorted(checkpoints.all_steps(), reverse=True)[1:]
        errors = []
        for candidate in (newest, *older):
            record, error = try_read(lambda s: read_step_record(checkpoints, s), candidate)
            if record is not None:
                return record
            errors.append(error)
        raise errors[0]


def read_step_record(checkpoints: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """The record of a step. Raises ValueError if it cannot be read, or is not this run's."""
    folder = Path(checkpoints.directory) / str(step)
    arguments = ocp.args.Composite(**{RUN: ocp.args.JsonRestore()})
    return open_record(
        explain_errors(lambda: checkpoints.restore(step, args=arguments)[RUN], folder), folder
    )


def open_record(content: Any, folder: Path) -> dict[str, Any]:
    """The sealed record of a checkpoint's folder, checked.

    Raises ValueError if it is damaged, or belongs to another step or run than the folder.
    """
    record = explain_errors(lambda: unseal_record(content), folder)
    explain_errors(lambda: check_record(record), folder)
    check_checkpoint(record, folder)
    return record


def read_checkpoints(workdir: Path) -> ocp.CheckpointManager:
    """The checkpoints of a run, to read only; the run may be training at this moment.

    Each process reads on its own, so that damage in one of them leaves no other waiting. Raises
    ValueError if there is no such folder.
    """
    if not (workdir / FOLDER).is_dir():
        raise ValueError(f"{workdir} holds no checkpoints; train there first (--mode=train)")
    index = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process_{index}"
    )
    options = ocp.CheckpointManagerOptions(
        read_only=True, create=False, multiprocessing_options=alone
    )
    return ocp.CheckpointManager((workdir / FOLDER).absolute(), options=options)


def has_checkpoint(workdir: Path) -> bool:
    """Whether a run has a checkpoint."""
    if not (workdir / FOLDER).is_dir():
        return False
    with read_checkpoints(workdir) as checkpoints:
        return checkpoints.latest_step() is not None


def choose_step(steps: Sequence[int], workdir: Path, step: int | None) -> int:
    """`step`, or the newest of `steps` if it is None. Raises ValueError if it does not exist."""
    if step is None and not steps:
        raise ValueError(f"{workdir / FOLDER} has no complete checkpoint; train there first")
    step = max(steps) if step is None else step
    if step not in steps:
        raise ValueError(
            f"{workdir / FOLDER} has no step {step}; it has "
            f"{', '.join(map(str, sorted(steps))) or 'no complete checkpoint'}"
        )
    return step


def saved_step(workdir: Path, step: int | None = None) -> int:
    """`step`, by default the newest checkpoint whose record can be read.

    Raises ValueError if there is none, or it belongs to another run.
    """
    return read_record(workdir, step)["step"]


def explain_errors(read: Callable[[], Any], folder: Path) -> Any:
    """What `read` returns. Turns any error into a ValueError that names the checkpoint."""
    try:
        return read()
    except Exception as error:  # Orbax reports damage by many exception types
        raise_again()
        raise ValueError(
            f"checkpoint {folder} cannot be read: it is damaged, or belongs to another model or "
            f"optimizer ({first_line(error)})"
        ) from error
