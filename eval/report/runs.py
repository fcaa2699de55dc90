"""Reads evaluated runs from their folders, and groups those that differ only in the seed.

A page compares runs only if they were measured alike (eval.metrics.protocol). A folder may hold
evaluations of several training steps and several measurements. A page shows the newest step of the
one measurement that all runs have.
"""

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fewstep.data import path_in_name
from fewstep.data.spaces.space import Space
from fewstep.eval.metrics.protocol import Protocol, check_comparable
from fewstep.eval.report.evaluation import Evaluation, load_evaluations, read_samples
from fewstep.eval.report.folders import is_added, swept_fields
from fewstep.eval.report.results import Result
from fewstep.messages import common_differences
from fewstep.training.classes import class_names
from fewstep.training.cost.step_cost import training_seconds
from fewstep.training.location import find_teacher
from fewstep.training.metrics import LOG, read_rows
from fewstep.training.storage.identity import CHANGEABLE, DECODING, as_dict, flatten_fields
from fewstep.training.storage.reasons import length_reasons
from fewstep.training.storage.workdir import CONFIG, load_config, recorded_identity

GUIDANCE = "guidance_scale"  # in a sampling protocol
# A heading names at most this many of the fields in which groups of one method differ.
NAMED_DIFFERENCES = 3
# field that identifies a group -> its text in a heading
WORDS = {
    "guidance_scale": "guidance {}",
    "step": "step {}",
    "network": "{}",
    "sampler": "{}",
    "sampling_steps": "sampling steps {}",
    "data": "on {}",
    "training_data": "training data {}",
}
# swept field -> its heading, where another column has its name
TITLES = {"steps": "training_steps"}


class EvaluatedRun(NamedTuple):
    """What a page shows of one run.

    results: by number of sampling steps, all of one training step. rows: of metrics.jsonl.
    images: the first samples by number of sampling steps, finished, [n, ...]. labels: int [n].
    trajectory: states of one sample from noise to data, finished, [m, ...]; m may be 0.
    budget: "images_seen", "network_evaluations" and "seconds" of training; None if unknown.
    total: the same with the training of its teachers; None for a run without a teacher.
    evaluations: network evaluations of a sample by number of sampling steps; {} if unknown.
    added: whether a comparison added it as the teacher of others.
    config: its fields by dotted name; "teacher.FIELD" are those that identify its teacher.
    classes: their names in the order of labels; () if unknown.
    swept: fields of the config that its comparison sweeps, by dotted name.
    guided: results of several guidance scales, by number of sampling steps and scale.
    """

    name: str
    method: str
    seed: int
    folder: Path
    results: dict[int, Result]
    rows: list[dict[str, float]]
    images: dict[int, np.ndarray]
    labels: np.ndarray
    trajectory: np.ndarray
    space: Space
    budget: Mapping[str, float | None]
    config: Mapping[str, Any]
    classes: tuple[str, ...] = ()
    total: Mapping[str, float | None] | None = None
    evaluations: Mapping[int, int] = {}
    added: bool = False
    swept: tuple[str, ...] = ()
    guided: Mapping[int, Mapping[float, Result]] = {}

    @property
    def measurement(self) -> Mapping[str, Any]:
        """How its metrics were measured; {} if they were not."""
        return next(iter(self.results.values()))["protocol"]["measurement"]

    @property
    def sampling(self) -> Mapping[str, Any]:
        """How its samples were made; `steps` is the smallest of its numbers of sampling steps."""
        return self.results[min(self.results)]["protocol"]["sampling"]


# heading of a group -> its runs, which differ only in the seed
Groups = Mapping[str, Sequence[EvaluatedRun]]


def load_runs(
    folders: Iterable[Path], metric: str = "", ids: Container[str] | None = None
) -> list[EvaluatedRun]:
    """The runs in these folders, all of one measurement. Runs without metrics have only pictures.

    metric: the measurement, such as "fd-pixels-1k", if all runs have several; "" is that of the
    first run's newest file. ids: of the results to read; None for all.
    Raises ValueError, and FileNotFoundError if samples are missing.
    """
    found = {folder: load_evaluations(folder, ids) for folder in dict.fromkeys(folders)}
    if not found:
        raise ValueError("no folder of a run was given; give at least one")
    measurement = common_measurement(found, metric)
    runs = [
        read_run(folder, newest_evaluations(of_run, measurement))._replace(
            guided=guided_results(of_run, measurement)
        )
        for folder, of_run in found.items()
    ]
    shapes = {run.name: image.shape[1:] for run in runs for image in run.images.values()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"the runs make samples of different shapes: {shapes}; report each alone")
    return runs


def common_measurement(
    found: Mapping[Path, Sequence[Evaluation]], metric: str = ""
) -> Mapping[str, Any]:
    """The measurement that all measured runs share; {} if no run was measured.

    Raises ValueError if they share none, or none named `metric`.
    """
    every = {str(f): [e.measurement for e in of_run] for f, of_run in found.items()}
    measured = {name: [m for m in those if m] for name, those in every.items() if any(those)}
    if not measured:
        return {}
    first, *others = measured.values()
    common = [m for m in first if all(m in other for other in others)]
    if not common:
        check_comparable({name: those[-1] for name, those in measured.items()})
    named = [m for m in common if metric in ("", Protocol(m, {}).metric)]
    if not named:
        names = ", ".join(dict.fromkeys(Protocol(m, {}).metric for m in common))
        raise ValueError(f"not every run was measured by {metric}; all were measured by {names}")
    return named[-1]


def newest_evaluations(
    of_run: Sequence[Evaluation], measurement: Mapping[str, Any]
) -> list[Evaluation]:
    """Evaluations of the newest training step, which differ only in the number of sampling steps.

    If the step was sampled in several ways, these are of the newest file's way.
    """
    alike = [e for e in of_run if e.measurement == measurement]
    alike = alike or [e for e in of_run if not e.measurement]
    step = max(e.sampling["step"] for e in alike)
    newest = [e for e in alike if e.sampling["step"] == step]
    return sorted((e for e in newest if e.sampling == newest[-1].sampling), key=lambda e: e.steps)


def guided_results(
    of_run: Sequence[Evaluation], measurement: Mapping[str, Any]
) -> dict[int, dict[float, Result]]:
    """Results that differ from `newest_evaluations` in the guidance scale alone, of 2 or more.

    By number of sampling steps and by scale, in increasing order.
    """
    free = {GUIDANCE: None}
    own = newest_evaluations(of_run, measurement)[-1]
    found: dict[int, dict[float, Result]] = {}
    for e in of_run:
        if e.measurement == own.measurement and e.sampling | free == own.sampling | free:
            found.setdefault(e.steps, {})[float(e.sampling[GUIDANCE])] = e.result
    return {
        steps: dict(sorted(results.items()))
        for steps, results in sorted(found.items())
        if len(results) > 1
    }


def read_run(folder: Path, shown: Sequence[Evaluation]) -> EvaluatedRun:
    """A run from its folder. shown: its evaluations to show, by number of sampling steps."""
    config = load_config(folder)
    rows = read_rows(folder / LOG)
    arrays = {e.steps: read_samples(e) for e in shown}
    last = shown[-1]
    return EvaluatedRun(
        name=str(folder),
        method=last.sampling["method"] or config.objective.name,
        seed=last.sampling["seed"],
        folder=folder,
        results={e.steps: e.result for e in shown},
        rows=rows,
        images={steps: of_steps["x"] for steps, of_steps in arrays.items()},
        labels=arrays[last.steps]["y"],
        trajectory=arrays[last.steps]["way"],
        space=last.space,
        budget={
            # The training of an imported network is unknown.
            "images_seen": None if is_imported(folder) else last.result["images_seen"],
            "network_evaluations": None,
            "seconds": training_seconds(rows, last.sampling["step"], config.batch_size),
        },
        config=expand_teacher(flatten_fields(as_dict(config)), folder) | continued_fields(folder),
        classes=class_names(folder),
        added=is_added(folder),
        swept=tuple(swept_fields(folder)),
    )


def is_imported(folder: Path) -> bool:
    """Whether a run has a network that others trained."""
    return bool(recorded_identity(folder).imported)


def continued_fields(folder: Path) -> dict[str, Any]:
    """What a run's config does not say: whether it started from another, and its lengths."""
    run = recorded_identity(folder)
    return {"started_from": bool(run.started_from), "lengths": [*map(list, run.lengths)]}


def expand_teacher(config: Mapping[str, Any], run: Path) -> dict[str, Any]:
    """The fields of a run's config, with those that identify its teacher in place of its folder.

    Students whose teachers differ only in the seed are then runs of one method. The folder stays if
    neither it nor a place nearby holds the run, as after a move.
    """
    fields = dict(config)
    if not fields["teacher"]:
        return fields
    folder, step = find_teacher(run, fields["teacher"])
    if not (folder / CONFIG).is_file():
        return fields
    fields["teacher"] = "taught"
    taught = flatten_fields(as_dict(load_config(folder)))
    of_teacher = identifying_fields(expand_teacher(taught, folder))
    return fields | {f"teacher.{k}": v for k, v in {**of_teacher, "step": step}.items()}


def identifying_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that identify a run, without the seed: those that may not change if it continues.

    Rules of decoding are not among them. Several rules may give the same images, and the hash of
    the images identifies these.
    """
    free = CHANGEABLE[1:] if length_reasons(config) else CHANGEABLE
    free += ("seed", DECODING)
    return {name: value for name, value in config.items() if not name.startswith(free)}


def group_by_method(runs: Sequence[EvaluatedRun]) -> dict[str, list[EvaluatedRun]]:
    """Groups of runs that differ only in the seed, by heading: the method, and what sets it apart.

    Runs of the same seed are never in one group, since nothing tells them apart. Fields that one of
    two runs lacks do not count, since records of a newer version have fields unknown to this one.
    """
    groups: list[list[EvaluatedRun]] = []
    for run in runs:
        for group in groups:
            if run.seed not in {r.seed for r in group} and not any(
                common_differences(group_identity(member), group_identity(run)) for member in group
            ):
                group.append(run)
                break
        else:
            groups.append([run])
    named = headings([group[0] for group in groups])
    return {
        name: sorted(group, key=lambda run: run.seed)
        for name, group in zip(named, groups, strict=True)
    }


def split_seeds(groups: Groups) -> dict[str, list[EvaluatedRun]]:
    """The runs of all groups as groups of one, by heading and seed."""
    return {f"{name}, seed {run.seed}": [run] for name, runs in groups.items() for run in runs}


def swept_values(runs: Sequence[EvaluatedRun]) -> dict[str, Any]:
    """The values of the swept fields that a group of runs has, by heading: the dotted name."""
    fields = runs[0].config
    return {TITLES.get(name, name): fields[name] for name in runs[0].swept if name in fields}


def all_results(groups: Groups) -> list[Result]:
    """All results of all runs."""
    return [result for runs in groups.values() for run in runs for result in run.results.values()]


def group_identity(run: EvaluatedRun) -> dict[str, Any]:
    """All fields that the runs of a group share."""
    sampling = {k: v for k, v in run.sampling.items() if k not in ("seed", "steps")}
    steps = ", ".join(map(str, sorted(run.results)))
    data = run.results[min(run.results)]["data"]
    shared = {**sampling, "method": run.method, "sampling_steps": steps, "data": data}
    shared |= identifying_fields(run.config)
    if "training_data" in sampling and path_in_name(data):
        del shared["data"]  # the hash identifies the images, wherever they lie
        shared.pop("data.name", None)
    return shared


def headings(firsts: Sequence[EvaluatedRun]) -> list[str]:
    """One heading for each group: the method, and what sets the group apart.

    firsts: the first run of each group.
    """
    named = []
    for run in firsts:
        others = [group_identity(other) for other in firsts if other.method == run.method]
        named.append(", ".join([run.method, *describe_differences(group_identity(run), others)]))
    return [
        f"{name} ({run.folder})" if named.count(name) > 1 else name
        for name, run in zip(named, firsts, strict=True)
    ]


def describe_differences(own: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> list[str]:
    """Texts of the fields in which one group differs from others, with its values."""
    found = {d.field for other in others for d in common_differences(own, other)}
    differing = [field for field in own if field in found]
    return [
        WORDS.get(field, f"{field} {{}}").format(value_text(own[field]))
        for field in differing[:NAMED_DIFFERENCES]
    ]


def value_text(value: Any) -> str:
    """A value as text: text unchanged, a float without trailing zeros, all else as JSON."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)
