"""--mode=compare: train and evaluate several methods with several seeds, and tabulate the results.

Each run lies in WORKDIR/METHOD/seed_SEED and has the teacher run of the same seed. With --sweep, it
lies in WORKDIR/METHOD/FIELD_VALUE/seed_SEED (modes/sweep.py). Finished runs stay as they are. So
the same command, also with more methods, seeds or values, does only what is missing. With --cell,
it does its share of that.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from fewstep.eval.evaluate import prepare_measures, sample_count
from fewstep.eval.measure import Measures
from fewstep.eval.new_result import evaluation_protocol, training_data_digest
from fewstep.eval.report.documents import read_runs, write_document
from fewstep.eval.report.evaluation import FOLDER
from fewstep.eval.report.folders import record_methods
from fewstep.eval.report.results import load_results
from fewstep.eval.report.runs import group_by_method
from fewstep.eval.report.spreadsheet import text_table
from fewstep.eval.sampling import at_each_scale, wanted_samples
from fewstep.files import check_writable
from fewstep.modes.evaluate_run import evaluate_run
from fewstep.modes.job import Draft, check_begun, draft_job
from fewstep.modes.mode import CONFIG, WORKDIR, Flag, Mode, parse_name_list, parse_ranges
from fewstep.modes.request import Request, require_config, require_workdir
from fewstep.modes.sweep import (
    ALL,
    SEED,
    Share,
    check_sweep,
    choose_share,
    configure_runs,
    parse_share,
    parse_sweep,
)
from fewstep.modes.train_run import train_run
from fewstep.objectives.stages import allowed_sampling_steps, check_sampling_steps
from fewstep.samplers.grids import named_steps
from fewstep.training.cluster.processes import first_process_says, say
from fewstep.training.inheritance import inherit
from fewstep.training.labels import with_recorded_label_shares
from fewstep.training.location import parse_location
from fewstep.training.report import DivergedError
from fewstep.training.sharding import make_mesh
from fewstep.training.storage import restore, workdir
from fewstep.training.storage.identity import as_dict, read_identity
from fewstep.training.teacher import check_teacher

PAGE, TABLE = "report.html", "table.csv"


class ComparedRun(NamedTuple):
    """One run of a comparison.

    results: ids of its future results. mine: whether it is in the share of this process.
    """

    folder: Path
    job: Draft
    results: frozenset[str] = frozenset()
    mine: bool = True

    @property
    def config(self) -> ConfigDict:
        """The config that will run."""
        return self.job.config


def compare_methods(request: Request) -> None:
    """Train and evaluate the missing runs, teachers first; then write a table and an HTML page.

    A run that diverges is left out, and so are its students. Before any training, raises ValueError
    for an invalid config or a folder with another run, and OSError for a folder that cannot be
    written to. Raises DivergedError if every run diverges.
    """
    require_config(request)
    root = require_workdir(request)
    if jax.process_index() == 0:
        check_writable(root, "choose another --workdir")
    share = choose_share(request, os.environ)
    runs = plan_runs(root, request, share)
    own = [run for run in runs if run.mine]
    check_shared_teachers(own, runs, share)
    if jax.process_index() == 0:
        record_methods(root, request.methods, [f for f in request.sweep if f != SEED])
    failed = complete_runs(own)
    if own and len(failed) == len(own):
        raise DivergedError(f"every run diverged: {', '.join(map(str, failed))}")
    unfinished = {*failed, *(run.folder for run in runs if not (run.mine or is_evaluated(run)))}
    done = [run for run in runs if run.folder not in unfinished]
    if jax.process_index() == 0:
        if done:
            write_tables(root, done)
        for folder in failed:
            print(f"left out: {folder}; it or its teacher diverged")
        if share.count > 1:
            print(f"share {share.index}/{share.count}: {len(done)} of {len(runs)} runs finished")


def complete_runs(runs: Sequence[ComparedRun]) -> list[Path]:
    """Train and evaluate the runs in turn; return the folders of those that diverged."""
    failed: list[Path] = []
    for number, run in enumerate(runs, start=1):
        say(f"[{number}/{len(runs)}] {run.config.method}, seed {run.config.seed}: {run.folder}")
        if Path(run.config.teacher) in failed:
            failed.append(run.folder)
            continue
        try:
            complete_run(run)
        except DivergedError as error:
            say(f"left out: {error}", sys.stderr)
            failed.append(run.folder)
    return failed


def check_shared_teachers(
    own: Sequence[ComparedRun], runs: Sequence[ComparedRun], share: Share
) -> None:
    """Raises ValueError for a teacher of several shares that is not trained.

    Two processes would train it in one folder, or one would wait for another that has not started.
    """
    needed = {Path(run.config.teacher) for run in own if run.config.teacher}
    for run in runs:
        if run.folder in needed and not run.mine and not first_process_says(is_trained(run)):
            raise ValueError(
                f"share {share.index}/{share.count} needs the teacher {run.folder}, as others do; "
                f"train it first, by --methods={run.config.method} without --cell, and with "
                "--sweep only for the seed and the fields in the name of that folder"
            )


def write_tables(root: Path, runs: Sequence[ComparedRun]) -> None:
    """Write and print the table; write the page."""
    ids = frozenset.union(*(run.results for run in runs))
    evaluated = read_runs([run.folder for run in runs], ids=ids)
    for name in (PAGE, TABLE):
        write_document(root / name, evaluated)
    print(text_table(group_by_method(evaluated)))
    print(f"{root / PAGE} and {root / TABLE}")


def plan_runs(root: Path, request: Request, share: Share = ALL) -> list[ComparedRun]:
    """Return the runs in the order of training. Raises ValueError for an invalid one."""
    if not request.methods:
        raise ValueError(
            "--methods is missing; name the methods to compare, as in --methods=cd,sim"
        )
    if request.config.teacher:
        raise ValueError(
            f"teacher={request.config.teacher}: a comparison trains the teachers of its methods; "
            "leave it out, or train students of that run by --mode=train"
        )
    check_sweep(request)
    configs, own = configure_runs(root, request, share)
    keep_teacher_steps(configs)
    checked: dict[Path, ComparedRun] = {}
    for folder, config in configs.items():
        teacher = checked[Path(config.teacher)].config if config.teacher else None
        run = draft_run(folder, inherit(config, teacher) if teacher else config)
        if teacher:
            check_teacher(run.config, teacher, run.job.experiment)
        checked[folder] = run._replace(mine=folder in own)
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


def draft_run(folder: Path, config: ConfigDict) -> ComparedRun:
    """Return a run that can be trained and evaluated. Raises ValueError for any other config."""
    job = draft_job(folder, config)
    config, steps = job.config, job.config.evaluate.steps
    if not steps:
        raise ValueError(f"{config.method}: evaluate.steps=() leaves nothing to compare")
    with named_steps(f"{config.method}: evaluate.steps={tuple(steps)}"):
        check_sampling_steps(job.experiment.objective.stages, config.steps, steps)
    if first_process_says(workdir.is_run(folder)):
        check_begun(folder, job, not config.teacher or has_teacher_run(config))
    return ComparedRun(folder, job._replace(config=with_recorded_label_shares(config, folder)))


def has_teacher_run(config: ConfigDict) -> bool:
    """Whether the teacher of a run exists already."""
    return bool(config.teacher) and workdir.is_run(parse_location(config.teacher).folder)


def add_result_ids(runs: Sequence[ComparedRun]) -> list[ComparedRun]:
    """Return the runs with the ids of their results; reads or makes what measures them."""
    measures: dict[str, Measures | None] = {}
    completed = []
    for run in runs:
        config, dataset = run.config, run.job.dataset
        samples = sample_count(config, config.steps)
        wanted = wanted_samples(run.job.experiment, config, dataset, run.folder, samples)
        fields, samples = as_dict(config), len(wanted.labels)
        measured_by = {**fields["evaluate"], "guidance_scale": None, "steps": None}
        alike = json.dumps([fields["data"], measured_by, wanted.rule, samples])
        if alike not in measures:
            measures[alike] = prepare_measures(
                run.job.experiment, dataset, config, make_mesh(), wanted
            )
        data = training_data_digest(run.job.experiment, dataset, read_identity(run.folder))
        stages = run.job.experiment.objective.stages
        protocols = [
            evaluation_protocol(
                run.job.experiment, own, config.steps, steps, measures[alike], data, samples
            )
            for own in at_each_scale(config)
            for steps in allowed_sampling_steps(stages, config.steps, config.evaluate.steps)
        ]
        ids = frozenset(protocol.id for protocol in protocols)
        completed.append(run._replace(results=ids))
    return completed


def complete_run(run: ComparedRun) -> None:
    """Train and evaluate a run as far as necessary. Raises DivergedError."""
    request = Request(
        config=ConfigDict(run.config),
        workdir=run.folder,
        network=run.job.experiment.sample_with,
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
    """Whether the run has all its results, with all rows of evaluate.rows."""
    rows = set(run.config.evaluate.rows)
    return all(has_result(run.folder / FOLDER / f"{result}.json", rows) for result in run.results)


def has_result(file: Path, rows: Set[str]) -> bool:
    """Whether a result and its samples exist, with all further rows that are asked for."""
    if not (file.exists() and file.with_suffix(".npz").exists()):
        return False
    return not rows or rows <= {*load_results(file).get("rows", {})}


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
        "sweep": Flag(
            "Values of config fields, of which each method runs the product, such as "
            "'optimizer.learning_rate=1e-4,3e-4;seed=0,1' (docs/evaluation.md).",
            parse_sweep,
        ),
        "cell": Flag(
            "Share of the runs for this process, such as 3/8; default: all, or with --sweep that "
            "of the task of a Slurm array.",
            parse_share,
        ),
    },
    together=True,
    trains=True,
)
