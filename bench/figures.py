"""Keep the figures of runs in a JSON file, and tabulate them at equal cost of training.

    python -m bench.figures keep runs/digits --to=docs/digits.json
    python -m bench.figures keep runs/cifar10 --to=cifar10.json --metric=fd-inception-4k
    python -m bench.figures show docs/digits.json --images=384000
    python -m bench.figures show docs/digits.json --passes=2000000 --teachers
    python -m bench.figures show densities.json --images=1e9 --metrics=wasserstein_1,ess

`keep` reads every evaluation of the runs in a folder, those during training included, and adds them
to the file, so that runs of several days and machines stand in one table. Evaluations by two
metrics, as of curves and of final figures, are not alike: it keeps those of the newest, or of
--metric, a name or the id of a result, and says what it leaves out. `show` takes of each run the
last evaluation within the budget: images seen or forward passes of one image (docs/performance.md),
with --teachers together with the training of its teachers. Runs of one name that differ in more
than the seed have rows of their own. Each data set or density has a table, with what real images
and the other rows of evaluations have instead of samples below it.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from bench.kept_figures import (
    IMAGES,
    INSTEAD,
    PASSES,
    Run,
    by_data,
    differing_words,
    fields_of,
    groups_of,
    keep_runs,
    read_figures,
)
from fewstep.eval.metrics import MAIN, METRICS
from fewstep.eval.report.results import ROWS
from fewstep.messages import unknown_choice
from fewstep.training.storage.environment import count_text

# Ways of sampling, and their words in a heading if they vary between runs of one name.
WAYS = {"network": "{}", "guidance_scale": "guidance {:g}"}
Found = tuple[Run, list[Mapping[str, Any]]]  # a run, and its last evaluations within a budget
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
    keep.add_argument(
        "--metric",
        help="which evaluations, by the name of their metric or the id of one; default: the newest",
    )
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
    """What a run cost up to a training step; infinity if that is unknown.

    It is without a count of passes, and for a network that others or another run have trained.
    """
    if step == 0 or run.get("imported") or fields_of([run]).get("started_from"):
        return float("inf")
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
    """A Markdown table: rows for each group of runs, a column for each number of sampling steps.

    Networks, solvers and guidance scales other than the run's, and the other rows of an evaluation,
    such as samples after HMC, have rows of their own. A cell has the means of the metrics over
    seeds, and the range of the first. The sentences below say which runs are in no mean.
    """
    groups, notes = found_groups(runs, kind, budget, teachers)
    every = sorted(
        {e["sampling_steps"] for found in groups.values() for _, es in found for e in es}
    )
    heads = ["method", "seeds", kind, *(f"{n} step{'s' * (n > 1)}" for n in every)]
    lines = [heads, ["---"] * len(heads)]
    for heading, found in groups.items():
        spent = mean(cost(run, own[0]["step"], kind, teachers) for run, own in found)
        for words, evaluations in rows_of(found).items():
            seeds = len({e["run"] for e in evaluations})
            start = [", ".join(filter(None, [heading, words])), str(seeds), f"{spent:,.0f}"]
            lines.append([*start, *columns(evaluations, every, metrics, seeds)])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([text, *notes])


def found_groups(
    runs: Sequence[Run], kind: str, budget: float, teachers: bool
) -> tuple[dict[str, list[Found]], list[str]]:
    """The runs that a mean is over, by heading, and sentences on those left out."""
    groups: dict[str, list[Found]] = {}
    unknown: list[str] = []
    behind: list[str] = []
    for name, of_name in groups_of(runs).items():
        last_of = {id(run): at_budget(run, kind, budget, teachers) for g in of_name for run in g}
        varying = varying_ways([e for last in last_of.values() for e in last])
        for words, group in zip(differing_words(of_name), of_name, strict=True):
            heading = ", ".join(filter(None, [f"`{name}`", words]))
            furthest = max((e["step"] for run in group for e in last_of[id(run)]), default=0)
            for run in group:
                label = f"`{name}`, seed {run['seed']}"
                last = [{**e, "setting": setting(e, varying)} for e in last_of[id(run)]]
                if not last:
                    unknown.append(label)
                elif last[0]["step"] == furthest:
                    groups.setdefault(heading, []).append((run, last))
                else:
                    behind.append(f"{label} (step {last[0]['step']:,}, not {furthest:,})")
    notes = {"Nothing known within the budget": unknown, "In no mean, at an earlier step": behind}
    return groups, [f"{text}: {'; '.join(those)}." for text, those in notes.items() if those]


def varying_ways(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of network and guidance scale, those in which evaluations differ."""
    values = {way: {e.get(way) for e in evaluations} - {None} for way in WAYS}
    return [way for way, found in values.items() if len(found) > 1]


def setting(evaluation: Mapping[str, Any], varying: Sequence[str]) -> str:
    """How samples were made, in words: by a solver that is not the run's, and what varies.

    Older versions have kept these words.
    """
    if "setting" in evaluation or "solver" not in evaluation:
        return evaluation.get("setting", "")
    words = {way: form.format(evaluation[way]) for way, form in WAYS.items() if way in varying}
    named = [words.get("network"), evaluation["solver"], words.get("guidance_scale")]
    return ", ".join(filter(None, named))


def rows_of(found: Sequence[Found]) -> dict[str, list[Mapping[str, Any]]]:
    """The evaluations of a group by what their row says; each has the index of its run as `run`.

    Those made in the run's own way come first.
    """
    rows: dict[str, list[Mapping[str, Any]]] = {"": []}
    for index, (_, evaluations) in enumerate(found):
        for e in evaluations:
            own = {**e, "run": index}
            rows.setdefault(e["setting"], []).append(own)
            for row in e.get("rows", {}):
                words = ", ".join(filter(None, [e["setting"], ROWS[row]]))
                rows.setdefault(words, []).append({**own, "metrics": e["rows"][row]})
    return {words: those for words, those in rows.items() if those}


def columns(
    evaluations: Sequence[Mapping[str, Any]],
    every: Sequence[int],
    metrics: Sequence[str],
    seeds: int,
) -> list[str]:
    """A cell for each number of sampling steps, which says if it is of fewer than the seeds."""
    cells = []
    for n in every:
        found = [e for e in evaluations if e["sampling_steps"] == n]
        own, text = len({e["run"] for e in found}), cell([e["metrics"] for e in found], metrics)
        cells.append(f"{text} ({count_text(own, 'seed')})" if text and own < seeds else text)
    return cells


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
