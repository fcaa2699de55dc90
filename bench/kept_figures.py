"""The figures of runs in a JSON file, for tables (figures.py)."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.eval.metrics.protocol import check_comparable
from fewstep.eval.report.costs import EvaluationCounts, teacher_cost
from fewstep.eval.report.evaluation import FOLDER, Evaluation, load_evaluations
from fewstep.eval.report.folders import find_runs
from fewstep.eval.report.runs import (
    continued_fields,
    describe_differences,
    expand_teacher,
    identifying_fields,
)
from fewstep.files import write_json
from fewstep.messages import common_differences, unknown_choice
from fewstep.training.storage.environment import ENVIRONMENT, describe_hardware, read_environments
from fewstep.training.storage.identity import as_dict, flatten_fields, read_identity
from fewstep.training.storage.workdir import load_config

# Key of a result -> whose metrics it has instead of the samples'.
INSTEAD = {"real": "real data", "prior": "the prior"}
IMAGES, PASSES = "images", "passes"
# budget -> its name in a run's costs (eval.report.costs)
COSTS = {IMAGES: "images_seen", PASSES: "network_evaluations"}
ID_DIGITS = 8  # of a run's id in a heading
Run = Mapping[str, Any]


def keep_runs(
    folders: Sequence[Path], path: Path, name: str | None = None, metric: str | None = None
) -> None:
    """Add the runs in the folders to a file; a run that it has is read again.

    metric: its name, or the id of a result, whose measurement is meant; None for the newest.

    Raises ValueError if the file has another run of that name, data set and seed, or if runs on
    one data set were measured differently.
    """
    kept = {run["run"]: run for run in read_figures(path)} if path.exists() else {}
    counts, found = EvaluationCounts(), find_runs(folders)
    wanted = measurement_of(found, metric) if metric else None
    for folder in found:
        run = run_figures(folder, counts, name, metric, wanted)
        kept[run["run"]] = run
        alike = [r for r in kept.values() if label(r) == label(run)]  # itself included
        if len(alike) > 1:
            raise ValueError(
                f"{path} has another run of {run['name']} on {run['data']} with seed "
                f"{run['seed']}, "
                f"{alike[0]['run']}; name the runs in {folder} by --name, or delete that one"
            )
    for runs in by_data(kept.values()).values():
        check_comparable({" ".join(map(str, label(run))): run["measurement"] for run in runs})
    write_json(path, {"runs": sorted(kept.values(), key=label)})


def read_figures(path: Path) -> list[Run]:
    """The runs that a file keeps. Raises ValueError for another file."""
    try:
        return json.loads(path.read_bytes())["runs"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no file that `keep` wrote ({error})") from error


def label(run: Run) -> tuple[str, str, int]:
    """Data set, heading and seed of a run."""
    return run["data"], run["name"], run["seed"]


def by_data(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """The runs on each data set or density."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run["data"], []).append(run)
    return groups


def groups_of(runs: Iterable[Run]) -> dict[str, list[list[Run]]]:
    """By name, the groups of runs that differ only in the seed.

    Runs that an older version has kept lack fields, and differ from none.
    """
    by_name: dict[str, list[list[Run]]] = {}
    for run in runs:
        groups = by_name.setdefault(run["name"], [])
        for group in groups:
            if not any(common_differences(fields_of([m]), fields_of([run])) for m in group):
                group.append(run)
                break
        else:
            groups.append([run])
    return by_name


def fields_of(group: Sequence[Run]) -> dict[str, Any]:
    """The fields that identify a group, as far as its runs have kept them."""
    return {field: value for run in group for field, value in run.get("fields", {}).items()}


def differing_words(groups: Sequence[Sequence[Run]]) -> list[str]:
    """For each group of one name, the fields in which it differs from the others, in words."""
    fields = [*map(fields_of, groups)]
    words = [", ".join(describe_differences(own, fields)) for own in fields]
    ids = [f"run {group[0].get('run', '')[:ID_DIGITS]}" for group in groups]
    return [
        ", ".join(filter(None, [text, own])) if words.count(text) > 1 else text
        for text, own in zip(words, ids, strict=True)
    ]


def measurement_of(folders: Sequence[Path], result: str) -> Mapping[str, Any] | None:
    """How the result of that id was measured; None if no run has it."""
    for folder in folders:
        if (folder / FOLDER / f"{result}.json").is_file():
            return load_evaluations(folder, {result})[0].measurement
    return None


def alike_evaluations(
    folder: Path, metric: str | None, wanted: Mapping[str, Any] | None = None
) -> list[Evaluation]:
    """The evaluations of a run by a metric, or by that of the newest; prints what is left out.

    wanted: the measurement, if `metric` is the id of a result. Raises ValueError without metrics,
    or without any by this one.
    """
    # Without exact samples of a density an evaluation has numbers, and no measurement.
    found = [e for e in load_evaluations(folder) if e.result["metrics"] or e.result.get("rows")]
    if not found:
        raise ValueError(f"{folder} has no metrics; evaluate it with other evaluate.features")
    named = [e for e in found if metric in (None, e.result["metric"]) or e.measurement == wanted]
    if not named and wanted is not None:
        raise ValueError(f"{folder} has no evaluation that was measured as {metric} was")
    if not named:
        names = dict.fromkeys(e.result["metric"] for e in found)
        raise ValueError(f"{folder}: {unknown_choice('--metric', metric, names)}")
    last = named[-1]
    alike = [e for e in found if measured_as(e) == measured_as(last)]
    if len(alike) < len(found):
        print(
            f"{folder}: keeps {len(alike)} evaluations by {last.result['metric']}, and leaves out "
            f"{len(found) - len(alike)} that were measured in another way (--metric chooses)"
        )
    return alike


def measured_as(evaluation: Evaluation) -> tuple[Mapping[str, Any], int | None]:
    """How an evaluation was measured, and the number of samples that were diagnosed."""
    return evaluation.measurement, evaluation.sampling.get("diagnosed")


def run_figures(
    folder: Path,
    counts: EvaluationCounts,
    name: str | None = None,
    metric: str | None = None,
    wanted: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a run cost by training step, and its metrics by training and sampling steps."""
    config, identity = load_config(folder), read_identity(folder)
    fields = expand_teacher(flatten_fields(as_dict(config)), folder) | continued_fields(folder)
    alike = alike_evaluations(folder, metric, wanted)
    last = alike[-1]
    per_image = counts.with_evaluations({"images_seen": 1}, config, str(folder))
    taught = teacher_cost(config, folder, counts)
    own = config.objective.get("solver", {"name": config.objective.name})["name"]
    start = (read_environments(folder / ENVIRONMENT) or [{}])[-1]
    return {
        "name": name or last.sampling["method"] or config.objective.name,
        "seed": last.sampling["seed"],
        "run": identity.id if identity else str(folder),
        "fields": identifying_fields(fields),
        "imported": bool(identity and identity.imported),
        "data": last.result["data"],
        "measurement": last.measurement,
        "batch_size": config.batch_size,
        "passes_per_image": per_image["network_evaluations"],
        "teachers": None if taught is None else {kind: taught[COSTS[kind]] for kind in COSTS},
        "instead": {key: rounded(last.result[key]) for key in INSTEAD if last.result.get(key)},
        "hardware": describe_hardware(start),
        "code": start.get("code"),
        "evaluations": [
            {
                "step": e.sampling["step"],
                "network": e.sampling["network"],
                "sampling_steps": e.steps,
                "guidance_scale": e.sampling["guidance_scale"],
                "solver": "" if e.sampling["sampler"] == own else e.sampling["sampler"],
                "metrics": rounded(e.result["metrics"]),
                "rows": {name: rounded(row) for name, row in e.result.get("rows", {}).items()},
            }
            for e in sorted(alike, key=lambda e: (e.sampling["step"], e.steps))
        ],
    }


def rounded(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics to five digits."""
    return {name: float(f"{value:.5g}") for name, value in metrics.items()}
