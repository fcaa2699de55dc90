"""Evaluated runs as rows of numbers: a CSV file, and a table in plain text."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from fewstep.eval.metrics import MAIN, METRICS
from fewstep.eval.metrics.bootstrap import interval
from fewstep.eval.report.runs import EvaluatedRun, Groups
from fewstep.files import replace_file

# Of the main metric over several seeds: the ends of its interval, and its least value.
LOW, HIGH, LEAST = (f"{MAIN}_{end}" for end in ("low", "high", "least"))
# column of a row -> how the text table shows it
SHOWN = {
    "method": "{}",
    "steps": "{}",
    "seeds": "{}",
    **dict.fromkeys((MAIN, LOW, HIGH, LEAST), METRICS[MAIN].format),
    **{name: metric.format for name, metric in METRICS.items() if metric.in_text},
    "images_seen": "{:,.0f}",
    "network_evaluations": "{:,.0f}",
    "seconds": "{:,.0f}",
}


def summary_rows(groups: Groups) -> list[dict[str, Any]]:
    """One row for each method and number of steps: means over seeds.

    frechet_low and frechet_high are the ends of the 95 % bootstrap interval; a single seed has
    none. frechet_least is the value of the best seed.
    """
    return [
        summary_row(name, steps, runs) for name, runs in groups.items() for steps in runs[0].results
    ]


def summary_row(name: str, steps: int, runs: Sequence[EvaluatedRun]) -> dict[str, Any]:
    """The row of a group of runs at a number of sampling steps. name: its heading."""
    results = [run.results[steps] for run in runs]
    found: dict[str, Any] = {"method": name, "steps": steps, "seeds": len(runs)}
    found["metric"] = results[0]["metric"]
    metrics = dict.fromkeys(metric for result in results for metric in result["metrics"])
    for metric in metrics:
        values = [r["metrics"][metric] for r in results if metric in r["metrics"]]
        found[metric] = mean(values)
        if metric == MAIN:
            spread = interval(values)
            found[LEAST] = spread.minimum
            if not math.isnan(spread.low):
                found |= {LOW: spread.low, HIGH: spread.high}
    for cost in runs[0].budget:
        values = [run.budget[cost] for run in runs if run.budget[cost] is not None]
        if values:
            found[cost] = mean(values)
    return found


def write_csv(path: Path, groups: Groups) -> None:
    """Writes all columns of the rows as a CSV file, whole or not at all."""
    found = summary_rows(groups)
    columns = list(dict.fromkeys(column for of_method in found for column in of_method))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    replace_file(path, text.getvalue().encode())


def text_table(groups: Groups) -> str:
    """The columns of SHOWN that any row has, as aligned text."""
    found = summary_rows(groups)
    columns = [column for column in SHOWN if any(column in of_method for of_method in found)]
    lines = [[column.replace("_", " ") for column in columns]]
    lines += [[cell_text(of_method, column) for column in columns] for of_method in found]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    ]
    return "\n".join([f"Frechet distance: {found[0]['metric']}", *aligned])


def cell_text(of_method: Mapping[str, Any], column: str) -> str:
    """A value as the text table shows it; a dash if the row has none."""
    return SHOWN[column].format(of_method[column]) if column in of_method else "-"
