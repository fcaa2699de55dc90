"""--mode=checkpoints: read each checkpoint of a run and compare it with its fingerprints."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from fewstep.eval.metrics import METRICS
from fewstep.eval.metrics.metric import LESS, parse_logged_name
from fewstep.modes.mode import WORKDIR, Mode
from fewstep.modes.request import Request, require_workdir
from fewstep.progress import progress_bar
from fewstep.training.compiled_step import abstract_state
from fewstep.training.experiment import rebuild
from fewstep.training.report import logged_evaluations
from fewstep.training.sharding import make_mesh
from fewstep.training.storage import restore, workdir
from fewstep.training.storage.checkpoint import FOLDER, named_trees
from fewstep.training.storage.identity import Identity
from fewstep.training.storage.train_state import TrainState

TEMPORARY = ".orbax-checkpoint-tmp"  # Orbax puts this into the names of unfinished folders
GONE = "no longer there: the run that trains has removed or renamed it"
HEADER = f"{'step':>10}  {'saved':<16}  {'size':>10}  health"


def print_checkpoints(request: Request) -> None:
    """Print step, time, size, health and distances of each checkpoint, and all unused folders."""
    path = require_workdir(request)
    with restore.read_checkpoints(path) as saved:
        trees = named_trees(abstract_run_state(path))
        recorded = workdir.recorded_identity(path)
        measured = logged_evaluations(path)
        steps = sorted(saved.all_steps())
        rows = [
            checkpoint_row(path / FOLDER / str(step), read_status(saved, step, trees, recorded))
            + format_distances(measured.get(step, {}))
            for step in progress_bar(steps, desc="reading", leave=False)
        ]
    set_aside = [
        checkpoint_row(folder, "damaged, set aside") for folder in restore.damaged_checkpoints(path)
    ]
    others = [
        checkpoint_row(folder, reason_unused(folder)) for folder in unused_folders(path, steps)
    ]
    if jax.process_index() == 0:
        print("\n".join([HEADER, *rows, *others, *set_aside]))


def abstract_run_state(path: Path) -> TrainState:
    """Return shapes and shardings of a run's state. Raises ValueError if it cannot be built."""
    config = workdir.load_config(path)
    experiment = rebuild(config, str(path))
    objective = experiment.objective._replace(init_from={})
    return abstract_state(objective, experiment.optimizers, config.seed, {}, make_mesh())


def read_status(
    saved: ocp.CheckpointManager, step: int, trees: Mapping[str, Any], recorded: Identity
) -> str:
    """Return "whole" or what is wrong. Reads one network at a time to save memory.

    trees: those of the run's state by name. An import has its generator, and may lack the rest.
    """
    try:
        there = restore.read_step_record(saved, step)["fingerprints"]
        for name, tree in trees.items():
            if name in there or not recorded.imported:
                restore.read_items(saved, step, {name: tree})
    except ValueError as error:
        return str(error)
    return "whole"


def unused_folders(path: Path, steps: Sequence[int]) -> list[Path]:
    """Return the folders among the checkpoints that are not those of `steps`."""
    named = {str(step) for step in steps}
    found = sorted((path / FOLDER).glob("*"))
    return [folder for folder in found if folder.is_dir() and folder.name not in named]


def reason_unused(folder: Path) -> str:
    """Return why a folder is not used as a checkpoint."""
    if TEMPORARY in folder.name:
        return "not complete: a save is running or was cut off"
    return "not used: its name is not a training step, or it is not complete"


def checkpoint_row(folder: Path, state: str) -> str:
    """Return a row of the table: step, time, size and state.

    A run that trains may have removed or renamed the folder in the meantime.
    """
    try:
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        saved = time.strftime("%Y-%m-%d %H:%M", time.localtime(folder.stat().st_mtime))
    except FileNotFoundError:
        return f"{folder.name:>10}  {GONE}"
    return f"{folder.name:>10}  {saved}  {size / 2**20:>6.1f} MiB  {state}"


def format_distances(values: dict[str, float]) -> str:
    """Return the metrics of an evaluation for which less is better, as text; "" if none."""
    found = [
        f"{name} {value:.4g}"
        for name, value in values.items()
        if (metric := METRICS.get(parse_logged_name(name)[0])) and metric.better == LESS
    ]
    return f"; {', '.join(found)}" if found else ""


CHECKPOINTS = Mode(print_checkpoints, "Read and check the checkpoints of a run.", WORKDIR)
