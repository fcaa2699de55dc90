"""--mode=compare: train and evaluate several methods with several seeds, and put them together.

A cell is a run: WORKDIR/METHOD/seed_SEED, its teacher the run of the same seed. Cells that are
finished are left as they are, so a comparison that was stopped, or was given more methods or seeds,
goes on with what is missing.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from fewstep.eval.evaluate import (
    check_evaluation,
    evaluation_protocol,
    prepare_measures,
    sample_count,
    training_data_digest,
)
from fewstep.eval.measure import Measures
from fewstep.eval.report.evaluation import FOLDER
from fewstep.eval.report.run_page import write_page
from fewstep.eval.report.runs import group_by_method
from fewstep.eval.report.spreadsheet import text_table, write_csv
from fewstep.files import check_writable
from fewstep.modes.evaluate_run import evaluate_run
from fewstep.modes.job import data_identity, files_of
from fewstep.modes.mode import CONFIG, WORKDIR, Flag, Mode, names, ranges
from fewstep.modes.request import (
    Request,
    as_begun,
    decoded_as_begun,
    required_config,
    required_workdir,
    resolve_with_data,
)
from fewstep.modes.train_run import train_run
from fewstep.training.cluster.processes import first_process_says, say
from fewstep.training.experiment import Experiment, build
from fewstep.training.labels import label_counts, with_recorded_label_shares
from fewstep.training.report import DivergedError
from fewstep.training.sharding import check_batch_size, make_mesh
from fewstep.training.storage import restore, workdir
from fewstep.training.storage.identity import as_dict, read_identity
from fewstep.training.teacher import check_teacher, parse_location, teacher_identity

PAGE, TABLE = "report.html", "table.csv"


class Cell(NamedTuple):
    """One run of a comparison; the config is resolved. results: ids of what it will have."""

    method: str
    seed: int
    folder: Path
    config: ConfigDict
    experiment: Experiment
    results: frozenset[str]


def compare(request: Request) -> None:
    """Train and evaluate what is missing, teachers first; write a table, and a page to look at.

    A run that diverges is left out, and what it would have taught. Raises ValueError, before
    anything is trained, for a config that cannot be, or a folder that holds another run; OSError
    for one that cannot be written to.
    """
    required_config(request)
    root = required_workdir(request)
    if jax.process_index() == 0:
        check_writable(root, "choose another --workdir")
    cells = plan(root, request)
    failed: list[Path] = []
    for number, cell in enumerate(cells, start=1):
        say(f"[{number}/{len(cells)}] {cell.method}, seed {cell.seed}: {cell.folder}")
        if Path(cell.config.teacher) in failed:
            failed.append(cell.folder)
            continue
        try:
            complete(cell)
        except DivergedError as error:
            say(f"left out: {error}", sys.stderr)
            failed.append(cell.folder)
    done = [cell for cell in cells if cell.folder not in failed]
    if not done:
        raise ValueError(f"every run diverged: {', '.join(map(str, failed))}")
    if jax.process_index() == 0:
        show(root, done)
        for folder in failed:
            print(f"left out, it or its teacher diverged: {folder}")


def show(root: Path, cells: Sequence[Cell]) -> None:
    """Write and print the table, and write the page."""
    ids = frozenset.union(*(cell.results for cell in cells))
    groups = group_by_method(write_page([cell.folder for cell in cells], root / PAGE, ids=ids))
    write_csv(root / TABLE, groups)
    print(text_table(groups))
    print(f"{root / PAGE} and {root / TABLE}")


def plan(root: Path, request: Request) -> list[Cell]:
    """The cells in the order of training. Raises ValueError for one that cannot be carried out."""
    if not request.methods:
        raise ValueError("--methods=METHOD,METHOD,... is needed: what to compare")
    seeds = request.seeds or (request.config.seed,)
    configs: dict[Path, ConfigDict] = {}
    for method in with_teachers(request.methods, request.teachers):
        for seed in seeds:
            config = request.config_of_method(method)
            config.seed = seed
            if method not in request.teachers:
                config.teacher_network = ""  # given for the others
            else:
                config.teacher = str(folder_of(root, request.teachers[method], seed))
            configs[folder_of(root, method, seed)] = config
    keep_taught_steps(configs)
    checked = {folder: checked_cell(folder, config) for folder, config in configs.items()}
    for cell in checked.values():
        if cell.config.teacher:
            check_teacher(cell.config, checked[Path(cell.config.teacher)].config, cell.experiment)
    return with_results(list(checked.values()))


def keep_taught_steps(configs: Mapping[Path, ConfigDict]) -> None:
    """Have teachers keep the checkpoints that students were started from, however long they go on.

    configs: of all cells, by folder.
    """
    for folder, config in configs.items():
        if config.teacher and workdir.is_run(folder):
            taught = parse_location(workdir.load_config(folder).teacher)
            if taught.folder in configs and taught.step is not None:
                fields = configs[taught.folder].checkpoint
                fields.keep_steps = (*fields.keep_steps, taught.step)


def with_teachers(methods: Sequence[str], teachers: Mapping[str, str]) -> list[str]:
    """The methods and their teachers, each once, teachers before what they teach."""
    found: dict[str, None] = {}
    for method in methods:
        if method in teachers:
            found |= dict.fromkeys(with_teachers([teachers[method]], teachers))
        found[method] = None
    return list(found)


def checked_cell(folder: Path, config: ConfigDict) -> Cell:
    """A cell whose config can be trained and evaluated. Raises ValueError."""
    config, dataset = resolve_with_data(decoded_as_begun(config, folder))
    experiment, mesh = build(config), make_mesh(**config.mesh)
    check_batch_size(config.batch_size, mesh, config.micro_batches)
    if not config.evaluate.steps:
        raise ValueError(f"{config.method}: evaluate.steps=() leaves nothing to compare")
    check_evaluation(experiment, dataset, config, mesh)
    if first_process_says(workdir.is_run(folder)):
        data = data_identity(dataset, experiment)
        begun = as_begun(config, folder)
        teacher = teacher_identity(begun, experiment) if is_taught(begun) else None
        workdir.check_same_run(folder, begun, data, teacher, files_of(dataset))
    if restore.has_checkpoint(folder) and restore.saved_step(folder) > config.steps:
        raise ValueError(
            f"{folder} is at step {restore.saved_step(folder)}, beyond steps={config.steps}; "
            "choose another --workdir or as many steps"
        )
    config = with_recorded_label_shares(config, folder)
    return Cell(config.method, config.seed, folder, config, experiment, frozenset())


def is_taught(config: ConfigDict) -> bool:
    """Whether the teacher of a cell is there already."""
    return bool(config.teacher) and workdir.is_run(parse_location(config.teacher).folder)


def with_results(cells: Sequence[Cell]) -> list[Cell]:
    """The cells with the ids of their results; what they are measured with is read or made."""
    measures: dict[str, Measures | None] = {}
    completed = []
    for cell in cells:
        config, dataset = resolve_with_data(cell.config)
        fields, counts = as_dict(config), label_counts(config, dataset, cell.folder)
        alike = json.dumps(
            [fields["data"], {**fields["evaluate"], "guidance_scale": None, "steps": None}, counts]
        )
        if alike not in measures:
            samples = sample_count(config, config.steps)
            measures[alike] = prepare_measures(
                cell.experiment, dataset, config, make_mesh(), counts, samples
            )
        data = training_data_digest(cell.experiment, dataset, read_identity(cell.folder))
        stages = cell.experiment.objective.stages
        protocols = [
            evaluation_protocol(cell.experiment, config, config.steps, steps, measures[alike], data)
            for steps in allowed_sampling_steps(stages, config.steps, config.evaluate.steps)
        ]
        ids = frozenset(protocol.id for protocol in protocols)
        completed.append(cell._replace(results=ids))
    return completed


def folder_of(root: Path, method: str, seed: int) -> Path:
    """The folder of a cell, absolute."""
    return (root / method / f"seed_{seed}").absolute()


def complete(cell: Cell) -> None:
    """Train and evaluate a cell, as far as it is not. Raises DivergedError."""
    request = Request(
        config=ConfigDict(cell.config),
        workdir=cell.folder,
        network=cell.experiment.sample_with,
    )
    if not first_process_says(is_trained(cell)):
        train_run(request)
    elif first_process_says(is_evaluated(cell)):
        say("finished")
    else:
        evaluate_run(request)


def is_trained(cell: Cell) -> bool:
    """Whether the cell has a checkpoint of its last step."""
    if not restore.has_checkpoint(cell.folder):
        return False
    return restore.saved_step(cell.folder) == cell.config.steps


def is_evaluated(cell: Cell) -> bool:
    """Whether the cell has all its results."""
    files = [
        cell.folder / FOLDER / f"{result}{end}"
        for result in cell.results
        for end in (".json", ".npz")
    ]
    return all(file.exists() for file in files)


COMPARE = Mode(
    compare,
    "Train and evaluate several methods with several seeds, and tabulate them.",
    {
        **CONFIG,
        **WORKDIR,
        "methods": Flag("Methods to compare, such as cd,sim; their teachers are added.", names),
        "seeds": Flag("Seeds of the runs; default the config's.", ranges),
    },
    together=True,
    trains=True,
)
