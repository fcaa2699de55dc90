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
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from bench.kept_figures import IMAGES, INSTEAD, PASSES, Run, by_data, keep_runs, read_figures
from fewstep.eval.metrics import MAIN, METRICS
from fewstep.eval.report.results import ROWS
from fewstep.messages import unknown_choice

SHOWN = (MAIN, "agreement", "recall")  # metrics of a cell by default


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
    budget.add_argument("--images", type=float)
    budget.add_argument("--passes", type=float)
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


def check_metrics(runs: Sequence[Run], metrics: Sequence[str]) -> None:
    """Raises ValueError for a metric that no evaluation has."""
    known = {name: None for run in runs for e in run["evaluations"] for name in e["metrics"]}
    for name in metrics:
        if name not in known:
            raise ValueError(unknown_choice("--metrics", name, known))


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
    left_out: list[str] = []
    for run in runs:
        found = at_budget(run, kind, budget, teachers)
        if found:
            groups.setdefault(run["name"], []).append((run, found))
        else:
            left_out.append(f"`{run['name']}`, seed {run['seed']}")
    every = sorted({e["sampling_steps"] for g in groups.values() for _, es in g for e in es})
    heads = ["method", "seeds", kind, *(f"{n} step{'s' * (n > 1)}" for n in every)]
    lines = [heads, ["---"] * len(heads)]
    for name, members in groups.items():
        spent = mean(cost(run, found[0]["step"], kind, teachers) for run, found in members)
        rows: dict[str, list[Mapping[str, Any]]] = {"": []}
        own_runs = enumerate(found for _, found in members)
        for e in ({**e, "run": index} for index, found in own_runs for e in found):
            own = e.get("setting", "")
            rows.setdefault(own, []).append(e)
            for row in e.get("rows", {}):
                words = ", ".join(filter(None, [own, ROWS[row]]))
                rows.setdefault(words, []).append({**e, "metrics": e["rows"][row]})
        for words, evaluations in rows.items():
            if not evaluations:
                continue
            heading = ", ".join(filter(None, [f"`{name}`", words]))
            start = [str(len({e["run"] for e in evaluations})), f"{spent:,.0f}"]
            lines.append([heading, *start, *columns(evaluations, every, metrics)])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    if left_out:
        text += f"\n\nNothing known within the budget: {'; '.join(left_out)}."
    return text


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
