"""Evaluated runs as rows of numbers: a CSV file, and a table in plain text.

A row is the mean over the seeds of a method at a number of sampling steps, or one of its seeds, or
what corrects its samples. In the file, rows of real data, of the prior and of SMC come last.
"""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from fewstep.eval.metrics import MAIN, METRICS
from fewstep.eval.metrics.bootstrap import interval, spread_name
from fewstep.eval.report.corrected import Entry, all_entries
from fewstep.eval.report.runs import Groups, swept_values, value_text
from fewstep.eval.report.table import REFERENCES, mean_cost, reference_numbers
from fewstep.files import replace_file

# Of the main metric over several seeds: the name and the ends of its spread, and its least value.
SPREAD, LOW, HIGH, LEAST = (f"{MAIN}_{end}" for end in ("spread", "low", "high", "least"))
MEAN = "mean"  # value of the column `seed` in a row of means
WITH_TEACHER = "{}_with_teacher"
# column of a row -> how the text table shows it
SHOWN = {
    "method": "{}",
    "steps": "{}",
    "evaluations": "{}",
    "seeds": "{}",
    MAIN: METRICS[MAIN].format,
    SPREAD: "{}",
    **dict.fromkeys((LOW, HIGH, LEAST), METRICS[MAIN].format),
    **{name: metric.format for name, metric in METRICS.items() if metric.in_text},
    **{
        form.format(cost): "{:,.0f}"
        for cost in ("images_seen", "network_evaluations", "seconds")
        for form in ("{}", WITH_TEACHER)
    },
}


def summary_rows(groups: Groups) -> list[dict[str, Any]]:
    """One row for each method and number of steps, and for what corrects it: means over seeds.

    frechet_low and frechet_high are the ends of frechet_spread, the 95 % bootstrap interval or the
    range of two seeds; a single seed has none. frechet_least is the value of the best seed.
    evaluations are the network evaluations of a sample.
    """
    return [summary_row(entry) for entry in all_entries(groups)]


def summary_row(entry: Entry) -> dict[str, Any]:
    """The row of a group of runs at a number of sampling steps."""
    name, _, runs, steps = entry
    results = [run.results[steps] for run in runs]
    swept = {field: value_text(value) for field, value in swept_values(runs).items()}
    found: dict[str, Any] = {"method": name, **swept, "steps": steps}
    if steps in runs[0].evaluations:
        found["evaluations"] = runs[0].evaluations[steps]
    found["added"] = "teacher" if runs[0].added else ""
    found |= {"seed": MEAN, "seeds": len(runs), "metric": results[0]["metric"]}
    metrics = dict.fromkeys(metric for result in results for metric in result["metrics"])
    for metric in metrics:
        values = [r["metrics"][metric] for r in results if metric in r["metrics"]]
        found[metric] = mean(values)
        if metric == MAIN:
            spread = interval(values)
            found[LEAST] = spread.minimum
            if len(values) > 1:
                found |= {SPREAD: spread_name(len(values)), LOW: spread.low, HIGH: spread.high}
    for cost in runs[0].budget:
        own = mean_cost([run.budget for run in runs], cost)
        total = mean_cost([run.budget if run.total is None else run.total for run in runs], cost)
        found |= {} if own is None else {cost: own}
        if any(run.total for run in runs) and total is not None:
            found[WITH_TEACHER.format(cost)] = total
    return found


def seed_rows(groups: Groups) -> list[dict[str, Any]]:
    """The rows of the means, each before the rows of its seeds."""
    found = []
    for entry in all_entries(groups):
        found.append(summary_row(entry))
        each = (entry._replace(runs=[run]) for run in entry.runs)
        found += [{**summary_row(one), "seed": one.runs[0].seed} for one in each]
    return found


def rows_without_samples(groups: Groups) -> list[dict[str, Any]]:
    """The rows of real data, of the untrained prior and of SMC, where they were measured."""
    rows = ((title, reference_numbers(groups, name)) for name, title in REFERENCES.items())
    return [{"method": title, **numbers} for title, numbers in rows if numbers]


def write_csv(path: Path, groups: Groups) -> None:
    """Writes all rows with all their columns as a CSV file, whole or not at all."""
    found = [*seed_rows(groups), *rows_without_samples(groups)]
    columns = list(dict.fromkeys(column for of_method in found for column in of_method))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    replace_file(path, text.getvalue().encode())


def text_table(groups: Groups) -> str:
    """The columns of swept fields, and those of SHOWN that any row has, as aligned text."""
    found = summary_rows(groups)
    swept = dict.fromkeys(field for runs in groups.values() for field in swept_values(runs))
    method, *others = [c for c in SHOWN if any(c in of_method for of_method in found)]
    columns = [method, *swept, *others]
    lines = [[c if c in swept else c.replace("_", " ") for c in columns]]
    lines += [[cell_text(of_method, column) for column in columns] for of_method in found]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    ]
    return "\n".join([f"Frechet distance: {found[0]['metric']}", *aligned])


def cell_text(of_method: Mapping[str, Any], column: str) -> str:
    """A value as the text table shows it; a dash if the row has none."""
    form = SHOWN.get(column, "{}")
    return form.format(of_method[column]) if column in of_method else "-"
