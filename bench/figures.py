"""Keep the figures of runs in a JSON file, and tabulate them at equal cost of training.

    python -m bench.figures keep runs/digits --to=docs/digits.json
    python -m bench.figures keep runs/cifar10 --to=cifar10.json --metric=fd-inception-4k
    python -m bench.figures show docs/digits.json --images=384000
    python -m bench.figures show docs/digits.json --passes=2000000 --teachers
    python -m bench.figures show densities.json --images=1e9 --metrics=wasserstein_1,ess

`keep` reads every evaluation of the runs in a folder, those during training included, and adds them
to the file, so that runs of several days and machines stand in one table. Evaluations by two
metrics, as of curves and of final figures, are not alike: it keeps those of the newest, or of
--metric, and says what it leaves out. `show` takes of each run the last evaluation within the
budget: images seen or forward passes of one image (docs/performance.md), with --teachers together
with the training of its teachers. Each data set or density has a table, with what real images and
the other rows of evaluations have instead of samples below it.
"""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from fewstep.eval.metrics import MAIN, METRICS
from fewstep.eval.metrics.protocol import check_comparable
from fewstep.eval.report.costs import EvaluationCounts, teacher_cost
from fewstep.eval.report.evaluation import Evaluation, load_evaluations
from fewstep.eval.report.folders import find_runs
from fewstep.eval.report.results import ROWS
from fewstep.files import write_json
from fewstep.messages import unknown_choice
from fewstep.training.storage.environment import ENVIRONMENT, describe_hardware, read_environments
from fewstep.training.storage.identity import read_identity
from fewstep.training.storage.workdir import load_config

SHOWN = (MAIN, "agreement", "recall")  # metrics of a cell by default
# Key of a result -> whose metrics it has instead of the samples'.
INSTEAD = {"real": "real data", "prior": "the prior"}
IMAGES, PASSES = "images", "passes"
# budget -> its name in a run's costs (eval.report.costs)
COSTS = {IMAGES: "images_seen", PASSES: "network_evaluations"}
Run = Mapping[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Keep or show figures, as the arguments say."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.figures", description="Keep runs' figures, and tabulate them."
    )
    parts = parser.add_subparsers(dest="part", required=True)
    keep = parts.add_parser("keep", help="add the evaluations of runs to a file")
    keep.add_argument("folders", nargs="+", type=Path, help="of runs, or with runs in them")
    keep.add_argument("--to", type=Path, required=True, help="JSON file to add to")
    keep.add_argument("--name", help="heading of the runs; their method by default")
    keep.add_argument("--metric", help="which evaluations; by default those like the newest")
    show = parts.add_parser("show", help="print a table at equal cost of training")
    show.add_argument("file", type=Path)
    budget = show.add_mutually_exclusive_group(required=True)
    budget.add_argument(f"--{IMAGES}", type=float)
    budget.add_argument(f"--{PASSES}", type=float)
    show.add_argument("--teachers", action="store_true", help="count the training of teachers too")
    show.add_argument(
        "--metrics",
        default=",".join(SHOWN),
        help="of each cell, separated by commas; the first with its range over seeds (%(default)s)",
    )
    asked = parser.parse_args(argv)
    try:
        if asked.part == "keep":
            keep_runs(asked.folders, asked.to, asked.name, asked.metric)
        else:
            kind = IMAGES if asked.images is not None else PASSES
            runs, limit = read_figures(asked.file), getattr(asked, kind)
            metrics = asked.metrics.split(",")
            check_metrics(runs, metrics)
            print(tables(runs, kind, limit, asked.teachers, metrics))
    except (OSError, ValueError) as error:
        parser.error(str(error))


def keep_runs(
    folders: Sequence[Path], path: Path, name: str | None = None, metric: str | None = None
) -> None:
    """Add the runs in the folders to a file; a run that it has is read again.

    Raises ValueError if the file has another run of that name, data set and seed, or if runs on
    one data set were measured differently.
    """
    kept = {run["run"]: run for run in read_figures(path)} if path.exists() else {}
    counts = EvaluationCounts()
    for folder in find_runs(folders):
        run = run_figures(folder, counts, name, metric)
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


def check_metrics(runs: Sequence[Run], metrics: Sequence[str]) -> None:
    """Raises ValueError for a metric that no evaluation has."""
    known = {name: None for run in runs for e in run["evaluations"] for name in e["metrics"]}
    for name in metrics:
        if name not in known:
            raise ValueError(unknown_choice("--metrics", name, known))


def label(run: Run) -> tuple[str, str, int]:
    """Data set, heading and seed of a run."""
    return run["data"], run["name"], run["seed"]


def by_data(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """The runs on each data set or density."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run["data"], []).append(run)
    return groups


def alike_evaluations(folder: Path, metric: str | None) -> list[Evaluation]:
    """The evaluations of a run by a metric, or by that of the newest; prints what is left out.

    Raises ValueError without metrics, or without any by this one.
    """
    # Without exact samples of a density an evaluation has numbers, and no measurement.
    found = [e for e in load_evaluations(folder) if e.result["metrics"] or e.result.get("rows")]
    if not found:
        raise ValueError(f"{folder} has no metrics; evaluate it with other evaluate.features")
    names = dict.fromkeys(e.result["metric"] for e in found)
    if metric and metric not in names:
        raise ValueError(f"{folder}: {unknown_choice('--metric', metric, names)}")
    last = [e for e in found if metric in (None, e.result["metric"])][-1]
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
    folder: Path, counts: EvaluationCounts, name: str | None = None, metric: str | None = None
) -> dict[str, Any]:
    """What a run cost by training step, and its metrics by training and sampling steps."""
    config, identity = load_config(folder), read_identity(folder)
    alike = alike_evaluations(folder, metric)
    last = alike[-1]
    per_image = counts.with_evaluations({"images_seen": 1}, config, str(folder))
    taught = teacher_cost(config, counts)
    own = config.objective.get("solver", {"name": config.objective.name})["name"]
    scales = {e.sampling["guidance_scale"] for e in alike}
    networks = {e.sampling["network"] for e in alike}
    start = (read_environments(folder / ENVIRONMENT) or [{}])[-1]
    return {
        "name": name or last.sampling["method"] or config.objective.name,
        "seed": last.sampling["seed"],
        "run": identity.id if identity else str(folder),
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
                "setting": setting(e.sampling, own, len(scales) > 1, len(networks) > 1),
                "metrics": rounded(e.result["metrics"]),
                "rows": {name: rounded(row) for name, row in e.result.get("rows", {}).items()},
            }
            for e in sorted(alike, key=lambda e: (e.sampling["step"], e.steps))
        ],
    }


def setting(
    sampling: Mapping[str, Any], own: str, several_scales: bool, several_networks: bool
) -> str:
    """How samples were made where that is not the run's own way, in words; else "".

    own: the run's solver. several_scales, several_networks: whether the run has other guidance
    scales or networks too.
    """
    network = [sampling["network"]] if several_networks else []
    solver = [sampling["sampler"]] if sampling["sampler"] != own else []
    scale = [f"guidance {sampling['guidance_scale']:g}"] if several_scales else []
    return ", ".join(network + solver + scale)


def rounded(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics to five digits."""
    return {name: float(f"{value:.5g}") for name, value in metrics.items()}


def cost(run: Run, step: int, kind: str, teachers: bool) -> float:
    """What a run cost up to a training step; without a count of passes, infinity."""
    per_image = 1 if kind == IMAGES else run["passes_per_image"]
    before = run["teachers"][kind] if teachers and run["teachers"] else 0
    if per_image is None or before is None:
        return float("inf")
    return step * run["batch_size"] * per_image + before


def at_budget(run: Run, kind: str, budget: float, teachers: bool) -> list[Mapping[str, Any]]:
    """The last evaluations within the budget, one for each number of sampling steps; or []."""
    within = [e for e in run["evaluations"] if cost(run, e["step"], kind, teachers) <= budget]
    last = max((e["step"] for e in within), default=None)
    return [e for e in within if e["step"] == last]


def tables(
    runs: Sequence[Run], kind: str, budget: float, teachers: bool, metrics: Sequence[str]
) -> str:
    """The table of each data set, with what stands for samples below it."""
    parts = []
    for data, members in by_data(runs).items():
        lines = [f"{data}: {', '.join(metrics)}", ""]
        lines += [table(members, kind, budget, teachers, metrics), ""]
        found = {key: row for run in members for key, row in run.get("instead", {}).items()}
        lines += [f"- {INSTEAD[key]}: {cell([row], metrics)}" for key, row in found.items()]
        parts.append("\n".join(lines).rstrip())
    return "\n\n".join(parts)


def table(
    runs: Sequence[Run],
    kind: str,
    budget: float,
    teachers: bool = False,
    metrics: Sequence[str] = SHOWN,
) -> str:
    """A Markdown table: a row for each heading, a column for each number of sampling steps.

    Networks, solvers and guidance scales other than the run's, and the other rows of an evaluation,
    such as samples after HMC, have rows of their own. A cell has the means of the metrics over
    seeds, and the range of the first.
    """
    groups: dict[str, list[tuple[Run, list[Mapping[str, Any]]]]] = {}
    for run in runs:
        found = at_budget(run, kind, budget, teachers)
        if found:
            groups.setdefault(run["name"], []).append((run, found))
    every = sorted({e["sampling_steps"] for g in groups.values() for _, es in g for e in es})
    heads = ["method", "seeds", kind, *(f"{n} step{'s' * (n > 1)}" for n in every)]
    lines = [heads, ["---"] * len(heads)]
    for name, members in groups.items():
        spent = mean(cost(run, found[0]["step"], kind, teachers) for run, found in members)
        start = [str(len(members)), f"{spent:,.0f}"]
        rows: dict[str, list[Mapping[str, Any]]] = {"": []}
        for e in (e for _, found in members for e in found):
            own = e.get("setting", "")
            rows.setdefault(own, []).append(e)
            for row in e.get("rows", {}):
                words = ", ".join(filter(None, [own, ROWS[row]]))
                rows.setdefault(words, []).append({**e, "metrics": e["rows"][row]})
        for words, evaluations in rows.items():
            if not evaluations:
                continue
            heading = ", ".join(filter(None, [f"`{name}`", words]))
            lines.append([heading, *start, *columns(evaluations, every, metrics)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def columns(
    evaluations: Sequence[Mapping[str, Any]], every: Sequence[int], metrics: Sequence[str]
) -> list[str]:
    """A cell for each number of sampling steps."""
    return [
        cell([e["metrics"] for e in evaluations if e["sampling_steps"] == n], metrics)
        for n in every
    ]


def cell(found: Sequence[Mapping[str, float]], metrics: Sequence[str]) -> str:
    """The metrics that all of these have, each a mean over them, the first with its range."""
    texts = []
    for metric in metrics:
        values = [each[metric] for each in found if metric in each]
        if values and len(values) == len(found):
            form = (METRICS[metric].format if metric in METRICS else "{:.3f}").format
            spread = f" ({form(min(values))} to {form(max(values))})"
            texts.append(form(mean(values)) + spread * (metric == metrics[0] and len(values) > 1))
    return ", ".join(texts)


if __name__ == "__main__":
    main()
