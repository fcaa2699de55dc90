"""--mode=compare: train and evaluate several methods with several seeds, and tabulate the results.

Each run lies in WORKDIR/METHOD/seed_SEED and has the teacher run of the same seed. Finished runs
stay as they are. So the same command, also with more methods or seeds, does only what is missing.
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
from fewstep.modes.job import data_identity, dataset_files
from fewstep.modes.mode import CONFIG, WORKDIR, Flag, Mode, parse_name_list, parse_ranges
from fewstep.modes.request import (
    Request,
    fill_from_record,
    fill_from_runs,
    require_config,
    require_workdir,
    resolve_and_load,
)
from fewstep.modes.train_run import train_run
from fewstep.objectives.stages import allowed_sampling_steps, check_sampling_steps
from fewstep.training.cluster.processes import first_process_says, say
from fewstep.training.experiment import Experiment, build
from fewstep.training.labels import label_counts, with_recorded_label_shares
from fewstep.training.report import DivergedError
from fewstep.training.sharding import check_batch_size, make_mesh
from fewstep.training.storage import restore, workdir
from fewstep.training.storage.identity import as_dict, read_identity
from fewstep.training.teacher import (
    check_teacher,
    check_teacher_given,
    parse_location,
    teacher_identity,
)

PAGE, TABLE = "report.html", "table.csv"


class ComparedRun(NamedTuple):
    """One run of a comparison, with its resolved config. results: ids of its future results."""

    method: str
    seed: int
    folder: Path
    config: ConfigDict
    experiment: Experiment
    results: frozenset[str]


def compare_methods(request: Request) -> None:
    """Train and evaluate the missing runs, teachers first; then write a table and an HTML page.

    A run that diverges is left out, and so are its students. Before any training, raises ValueError
    for an invalid config or a folder with another run, and OSError for a folder that cannot be
    written to.
    """
    require_config(request)
    root = require_workdir(request)
    if jax.process_index() == 0:
        check_writable(root, "choose another --workdir")
    runs = plan_runs(root, request)
    failed: list[Path] = []
    for number, run in enumerate(runs, start=1):
        say(f"[{number}/{len(runs)}] {run.method}, seed {run.seed}: {run.folder}")
        if Path(run.config.teacher) in failed:
            failed.append(run.folder)
            continue
        try:
            complete_run(run)
        except DivergedError as error:
            say(f"left out: {error}", sys.stderr)
            failed.append(run.folder)
    done = [run for run in runs if run.folder not in failed]
    if not done:
        raise ValueError(f"every run diverged: {', '.join(map(str, failed))}")
    if jax.process_index() == 0:
        write_tables(root, done)
        for folder in failed:
            print(f"left out: {folder}; it or its teacher diverged")


def write_tables(root: Path, runs: Sequence[ComparedRun]) -> None:
    """Write and print the table; write the page."""
    ids = frozenset.union(*(run.results for run in runs))
    groups = group_by_method(write_page([run.folder for run in runs], root / PAGE, ids=ids))
    write_csv(root / TABLE, groups)
    print(text_table(groups))
    print(f"{root / PAGE} and {root / TABLE}")


def plan_runs(root: Path, request: Request) -> list[ComparedRun]:
    """Return the runs in the order of training. Raises ValueError for an invalid one."""
    if not request.methods:
        raise ValueError(
            "--methods is missing; name the methods to compare, as in --methods=cd,sim"
        )
    seeds = request.seeds or (request.config.seed,)
    configs: dict[Path, ConfigDict] = {}
    for method in add_teachers(request.methods, request.teachers):
        for seed in seeds:
            config = request.config_of_method(method)
            config.seed = seed
            if method not in request.teachers:
                config.teacher_network = ""  # --config gives it for the students
            else:
                config.teacher = str(run_folder(root, request.teachers[method], seed))
            configs[run_folder(root, method, seed)] = config
    keep_teacher_steps(configs)
    checked = {folder: resolve_run(folder, config) for folder, config in configs.items()}
    for run in checked.values():
        if run.config.teacher:
            check_teacher(run.config, checked[Path(run.config.teacher)].config, run.experiment)
    return add_result_ids(list(checked.values()))


def keep_teacher_steps(configs: Mapping[Path, ConfigDict]) -> None:
    """Make teachers keep the checkpoints from which their students started.

    configs: configs of all runs by folder, changed in place.
    """
    for folder, config in configs.items():
        if config.teacher and workdir.is_run(folder):
            taught = parse_location(workdir.load_config(folder).teacher)
            if taught.folder in configs and taught.step is not None:
                fields = configs[taught.folder].checkpoint
                fields.keep_steps = (*fields.keep_steps, taught.step)


def add_teachers(methods: Sequence[str], teachers: Mapping[str, str]) -> list[str]:
    """Return the methods and their teachers, each once, teachers before students."""
    found: dict[str, None] = {}
    for method in methods:
        if method in teachers:
            found |= dict.fromkeys(add_teachers([teachers[method]], teachers))
        found[method] = None
    return list(found)


def resolve_run(folder: Path, config: ConfigDict) -> ComparedRun:
    """Return a run that can be trained and evaluated. Raises ValueError for any other config."""
    config, dataset = resolve_and_load(fill_from_runs(config, folder))
    experiment, mesh = build(config), make_mesh(**config.mesh)
    check_teacher_given(config, experiment)
    check_batch_size(config.batch_size, mesh, config.micro_batches)
    if not config.evaluate.steps:
        raise ValueError(f"{config.method}: evaluate.steps=() leaves nothing to compare")
    check_evaluation(experiment, dataset, config, mesh)
    check_sampling_steps(experiment.objective.stages, config.steps, config.evaluate.steps)
    if first_process_says(workdir.is_run(folder)):
        data = data_identity(dataset, experiment)
        begun = fill_from_record(config, folder)
        teacher = teacher_identity(begun, experiment) if has_teacher_run(begun) else None
        workdir.check_same_run(folder, begun, data, teacher, dataset_files(dataset))
    if restore.has_checkpoint(folder) and restore.saved_step(folder) > config.steps:
        raise ValueError(
            f"{folder} is at step {restore.saved_step(folder)}, beyond steps={config.steps}; "
            "choose another --workdir or set as many --config.steps"
        )
    config = with_recorded_label_shares(config, folder)
    return ComparedRun(config.method, config.seed, folder, config, experiment, frozenset())


def has_teacher_run(config: ConfigDict) -> bool:
    """Whether the teacher of a run exists already."""
    return bool(config.teacher) and workdir.is_run(parse_location(config.teacher).folder)


def add_result_ids(runs: Sequence[ComparedRun]) -> list[ComparedRun]:
    """Return the runs with the ids of their results; reads or makes what measures them."""
    measures: dict[str, Measures | None] = {}
    completed = []
    for run in runs:
        config, dataset = resolve_and_load(run.config)
        fields, counts = as_dict(config), label_counts(config, dataset, run.folder)
        alike = json.dumps(
            [fields["data"], {**fields["evaluate"], "guidance_scale": None, "steps": None}, counts]
        )
        samples = sample_count(config, config.steps)
        if alike not in measures:
            measures[alike] = prepare_measures(
                run.experiment, dataset, config, make_mesh(), counts, samples
            )
        data = training_data_digest(run.experiment, dataset, read_identity(run.folder))
        stages = run.experiment.objective.stages
        protocols = [
            evaluation_protocol(
                run.experiment, config, config.steps, steps, measures[alike], data, samples
            )
            for steps in allowed_sampling_steps(stages, config.steps, config.evaluate.steps)
        ]
        ids = frozenset(protocol.id for protocol in protocols)
        completed.append(run._replace(results=ids))
    return completed


def run_folder(root: Path, method: str, seed: int) -> Path:
    """Return the absolute folder of a run."""
    return (root / method / f"seed_{seed}").absolute()


def complete_run(run: ComparedRun) -> None:
    """Train and evaluate a run as far as necessary. Raises DivergedError."""
    request = Request(
        config=ConfigDict(run.config),
        workdir=run.folder,
        network=run.experiment.sample_with,
    )
    if not first_process_says(is_trained(run)):
        train_run(request)
    elif first_process_says(is_evaluated(run)):
        say("finished")
    else:
        evaluate_run(request)


def is_trained(run: ComparedRun) -> bool:
    """Whether the run has a checkpoint of its last step."""
    if not restore.has_checkpoint(run.folder):
        return False
    return restore.saved_step(run.folder) == run.config.steps


def is_evaluated(run: ComparedRun) -> bool:
    """Whether the run has all its results."""
    files = [
        run.folder / FOLDER / f"{result}{end}"
        for result in run.results
        for end in (".json", ".npz")
    ]
    return all(file.exists() for file in files)


COMPARE = Mode(
    compare_methods,
    "Train and evaluate several methods with several seeds; tabulate the results.",
    {
        **CONFIG,
        **WORKDIR,
        "methods": Flag(
            "Methods to compare, such as cd,sim. Their teachers are added.", parse_name_list
        ),
        "seeds": Flag(
            "Seeds of the runs, such as 0-2; default: the seed of the config.", parse_ranges
        ),
    },
    together=True,
    trains=True,
)
