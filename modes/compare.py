"""--mode=compare: train and evaluate several methods with several seeds, and put them together.

A cell is a run: WORKDIR/METHOD/seed_SEED, its teacher the run of the same seed. Cells that are
finished are left as they are, so a comparison that was stopped, or was given more methods or seeds,
goes on with what is missing.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from eval.evaluate import check_evaluation, guidance_scale
from eval.runs import by_method, evaluations
from eval.spreadsheet import text_table, write_csv
from modes.evaluate import evaluate
from modes.report import write_page
from modes.request import Request, required_config, required_workdir, resolve_with_data
from modes.train import train
from training import checkpoint, workdir
from training.experiment import Experiment, build
from training.loop import NonFiniteError
from training.sharding import check_batch_size, make_mesh
from training.teacher import pinned

PAGE, TABLE = "report.html", "table.csv"


class Cell(NamedTuple):
    """One run of a comparison; the config is resolved."""

    method: str
    seed: int
    folder: Path
    config: ConfigDict
    experiment: Experiment


def compare(request: Request) -> None:
    """Train and evaluate what is missing, teachers first; write a table, and a page to look at.

    A run that diverges is left out, and what it would have taught. Raises ValueError, before any
    compute, for a config that cannot be trained or a folder that holds another run.
    """
    required_config(request)
    root = required_workdir(request)
    cells = plan(root, request)
    failed: list[Path] = []
    for number, cell in enumerate(cells, start=1):
        print(f"[{number}/{len(cells)}] {cell.method}, seed {cell.seed}: {cell.folder}", flush=True)
        if Path(cell.config.teacher) in failed:
            failed.append(cell.folder)
            continue
        try:
            complete(cell)
        except NonFiniteError as error:
            print(f"left out: {error}", file=sys.stderr)
            failed.append(cell.folder)
    done = [cell.folder for cell in cells if cell.folder not in failed]
    if not done:
        raise ValueError(f"every run diverged: {', '.join(map(str, failed))}")
    if jax.process_index() == 0:
        groups = by_method(write_page(done, root / PAGE))
        write_csv(root / TABLE, groups)
        print(text_table(groups))
        print(f"{root / PAGE} and {root / TABLE}")
        for folder in failed:
            print(f"left out, it or its teacher diverged: {folder}")


def plan(root: Path, request: Request) -> list[Cell]:
    """The cells in the order of training. Raises ValueError for one that cannot be carried out."""
    if not request.methods:
        raise ValueError("--methods=METHOD,METHOD,... is needed: what to compare")
    seeds = request.seeds or (request.config.seed,)
    cells = []
    for method in with_teachers(request.methods, request.teachers):
        for seed in seeds:
            config = request.config_of_method(method)
            config.seed = seed
            if method in request.teachers:
                config.teacher = str(folder_of(root, request.teachers[method], seed))
            cells.append(checked_cell(method, seed, folder_of(root, method, seed), config))
    return cells


def with_teachers(methods: Sequence[str], teachers: Mapping[str, str]) -> list[str]:
    """The methods and their teachers, each once, teachers before what they teach."""
    found: dict[str, None] = {}
    for method in methods:
        if method in teachers:
            found |= dict.fromkeys(with_teachers([teachers[method]], teachers))
        found[method] = None
    return list(found)


def checked_cell(method: str, seed: int, folder: Path, config: ConfigDict) -> Cell:
    """A cell whose config can be trained and evaluated. Raises ValueError."""
    config, dataset = resolve_with_data(config)
    experiment, mesh = build(config), make_mesh(config.mesh.data, config.mesh.fsdp)
    check_batch_size(config.batch_size, mesh)
    if not config.evaluate.steps:
        raise ValueError(f"{method}: evaluate.steps=() leaves nothing to compare")
    check_evaluation(experiment, dataset, config, mesh)
    if (folder / workdir.CONFIG).exists():
        workdir.check_same_run(workdir.load_config(folder), pinned(config, folder), folder)
    return Cell(method, seed, folder, config, experiment)


def folder_of(root: Path, method: str, seed: int) -> Path:
    """The folder of a cell, absolute."""
    return (root / method / f"seed_{seed}").absolute()


def complete(cell: Cell) -> None:
    """Train a cell if it is not, and evaluate it if it is not. Raises NonFiniteError."""
    request = Request(config=ConfigDict(cell.config), workdir=cell.folder)
    if not is_trained(cell):
        train(request)
    if is_evaluated(cell):
        print("finished", flush=True)
    else:
        evaluate(request)


def is_trained(cell: Cell) -> bool:
    """Whether the cell has a checkpoint of its last step."""
    if not checkpoint.has_checkpoint(cell.folder):
        return False
    return checkpoint.saved_step(cell.folder) >= cell.config.steps


def is_evaluated(cell: Cell) -> bool:
    """Whether the last step was evaluated at each number of sampling steps as the config says."""
    if not list((cell.folder / "eval").glob("*.json")):
        return False
    fields = cell.config.evaluate
    measured = {
        evaluation.steps
        for evaluation in evaluations(cell.folder)
        if evaluation.measurement.get("features", "none") == fields.features
        and evaluation.measurement.get("samples", fields.num_samples) == fields.num_samples
        and evaluation.sampling["step"] == cell.config.steps
        and evaluation.sampling["network"] == cell.experiment.sample_with
        and evaluation.sampling["guidance_scale"] == guidance_scale(cell.experiment, cell.config)
    }
    return measured >= set(fields.steps)
