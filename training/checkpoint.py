"""Checkpoints of a run, by Orbax: WORKDIR/checkpoints/STEP, one folder per network.

    checkpoints/3000/network              a player, under its name
                     target, ema_0.999    the followers, under theirs
                     optimizer_network    optimizer states
                     run                  JSON: step and seed; the data order follows from both

A step's folder appears under its name only when it is complete, and is never written again. One
folder per network lets sampling read the one that it needs.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from objectives.base import Params
from training.state import TrainState

FOLDER = "checkpoints"
OPTIMIZER = "optimizer_"
RUN = "run"


def open_checkpoints(workdir: Path, keep: int = 0) -> ocp.CheckpointManager:
    """The checkpoints of a run, saved asynchronously; the newest `keep` stay, all of them if 0."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep or None, cleanup_tmp_directories=True)
    return ocp.CheckpointManager((workdir / FOLDER).absolute(), options=options)


def items(state: TrainState) -> dict[str, Any]:
    """The named trees of a state; `step` apart, which is in `run`."""
    optimizers = {OPTIMIZER + name: opt for name, opt in state.optimizers.items()}
    return {**state.networks, **state.followers, **optimizers}


def save(checkpoints: ocp.CheckpointManager, state: TrainState, run: dict[str, Any]) -> None:
    """Start to save a state under its step, if that step is not there yet."""
    step = int(state.step)
    if step in checkpoints.all_steps():
        return
    trees = {name: ocp.args.StandardSave(tree) for name, tree in items(state).items()}
    record = ocp.args.JsonSave({**run, "step": step})
    checkpoints.save(step, args=ocp.args.Composite(**trees, **{RUN: record}), force=True)


def restore(
    checkpoints: ocp.CheckpointManager, abstract: TrainState, seed: int
) -> TrainState | None:
    """The newest state, None if there is no checkpoint.

    abstract: a TrainState of shapes with shardings. Raises ValueError if the checkpoint cannot be
    read, was made by another model or optimizer, or with another seed.
    """
    step = checkpoints.latest_step()
    if step is None:
        return None
    names = items(abstract)
    trees = {name: ocp.args.StandardRestore(tree) for name, tree in names.items()}
    arguments = ocp.args.Composite(**trees, **{RUN: ocp.args.JsonRestore()})
    restored = _read(
        lambda: checkpoints.restore(step, args=arguments), Path(checkpoints.directory) / str(step)
    )
    if restored[RUN]["seed"] != seed:
        raise ValueError(
            f"{checkpoints.directory} is a run with seed={restored[RUN]['seed']}, not {seed}; "
            "use that seed or another --workdir"
        )
    return TrainState(
        step=jax.device_put(jax.numpy.int32(step), abstract.step.sharding),
        networks={name: restored[name] for name in abstract.networks},
        followers={name: restored[name] for name in abstract.followers},
        optimizers={name: restored[OPTIMIZER + name] for name in abstract.optimizers},
    )


def restore_network(
    workdir: Path, name: str, abstract: Params, step: int | None = None
) -> tuple[Params, int]:
    """One network of a run and its step, the newest by default.

    Raises ValueError if there is no such checkpoint or it cannot be read.
    """
    with read_checkpoints(workdir) as checkpoints:
        step = choose_step(checkpoints, workdir, step)
        arguments = ocp.args.Composite(**{name: ocp.args.StandardRestore(abstract)})
        folder = workdir / FOLDER / str(step) / name
        return _read(lambda: checkpoints.restore(step, args=arguments), folder)[name], step


def read_checkpoints(workdir: Path) -> ocp.CheckpointManager:
    """The checkpoints of a run, which may be saving at this moment, to be read only.

    Raises ValueError if there is no such folder.
    """
    if not (workdir / FOLDER).is_dir():
        raise ValueError(f"{workdir} holds no checkpoints; train there first (--mode=train)")
    options = ocp.CheckpointManagerOptions(read_only=True)
    return ocp.CheckpointManager((workdir / FOLDER).absolute(), options=options)


def has_checkpoint(workdir: Path) -> bool:
    """Whether a run has been saved."""
    if not (workdir / FOLDER).is_dir():
        return False
    with read_checkpoints(workdir) as checkpoints:
        return checkpoints.latest_step() is not None


def choose_step(checkpoints: ocp.CheckpointManager, workdir: Path, step: int | None) -> int:
    """`step`, the newest if None. Raises ValueError if it is not there."""
    steps = checkpoints.all_steps()
    step = max(steps, default=None) if step is None else step
    if step not in steps:
        raise ValueError(
            f"{workdir / FOLDER} has {sorted(steps) or 'no complete checkpoint'}, not {step}"
        )
    return step


def saved_step(workdir: Path, step: int | None = None) -> int:
    """`step`, the newest if None, of a run's checkpoints. Raises ValueError if it is not there."""
    with read_checkpoints(workdir) as checkpoints:
        return choose_step(checkpoints, workdir, step)


def _read(read: Callable[[], Any], folder: Path) -> Any:
    try:
        return read()
    except Exception as error:  # Orbax reports damage by half a dozen exception types
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            f"checkpoint {folder} cannot be read: it is damaged, or belongs to another model or "
            f"optimizer ({reason[:200]}). Use the config it was trained with; to go back to the "
            "checkpoint before, move this step's folder away"
        ) from error
