"""The table of a results page: one row for each method and number of steps. A click sorts it.

It has a column for each entry of METRICS, then for other metrics of the results, by their own
names.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from fewstep.eval.metrics import MAIN, METRICS
from fewstep.eval.metrics.bootstrap import INTERVAL, RANGE, interval, spread_name
from fewstep.eval.metrics.metric import ARROWS, MORE, NEITHER, Metric, error_name
from fewstep.eval.metrics.transport import collapsed
from fewstep.eval.report.corrected import EVALUATIONS, Entry, all_entries, corrected_names
from fewstep.eval.report.curves import Look
from fewstep.eval.report.quantities import duration_text, short_number
from fewstep.eval.report.results import ROWS
from fewstep.eval.report.runs import (
    EvaluatedRun,
    Groups,
    all_results,
    split_seeds,
    swept_values,
    value_text,
)

# Format of a metric that METRICS lacks; results of other versions may have one.
OTHER_FORMAT = "{:.4g}"
# what the seeds of a page have -> what stands below the heading of the main metric
SPREADS = {
    (): "",
    (RANGE,): "mean, range of two seeds",
    (INTERVAL,): "mean, [95 % interval], least",
    (INTERVAL, RANGE): "mean, [95 % interval] or range of two seeds, least",
}
# Parts of results that measure no samples, and the titles of their rows.
REFERENCES = {"real": "real images", "prior": "untrained prior", "smc": ROWS["smc"]}
COLLAPSED = "below the floor: collapsed"
ADDED = "added as a teacher"
WITH_TEACHER = ", and with teacher"
UNKNOWN = "–"


class TableCell(NamedTuple):
    """A cell: text, smaller text below, and the value to sort by, "" if there is none."""

    text: str = UNKNOWN
    below: str = ""
    value: str = ""


class Column(NamedTuple):
    """A column: heading, smaller text below, and the function that makes a cell.

    cell: (runs of a group, number of sampling steps) -> cell.
    """

    heading: str
    cell: Callable[[Sequence[EvaluatedRun], int], TableCell]
    below: str = ""
    largest_is_best: bool = False
    sorts: str = "number"  # or text


def results_table(groups: Groups, looks: Mapping[str, Look], metric: str) -> str:
    """The table as HTML: rows of methods by number of steps, then a row of real images.

    metric: name of the main metric. table.js turns headings into buttons, whose first click puts
    the best row on top. Without scripts, headings are text.
    """
    script = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
    entries = all_entries(groups)
    columns = nonempty_columns(all_columns(groups, metric), entries)
    rows = [
        table_row(entry.title, looks[entry.group], entry.runs, entry.steps, columns)
        for entry in entries
    ]
    heads = "".join(
        f'<th scope="col" data-sort="{c.sorts}"{" data-best=largest" * c.largest_is_best}'
        f"{' class=metric' * c.heading.startswith(metric)}>"
        f"{escape(c.heading)}{small_text(c.below)}</th>"
        for c in columns
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Results">\n'
        '<table class="sortable grouped">\n<thead><tr>'
        f'<th scope="col" data-sort="text">method</th>{heads}</tr></thead>\n'
        f"<tbody>\n{''.join(rows)}</tbody>\n{reference_rows(groups, columns, metric)}"
        f"</table>\n</div>\n<script>\n{script}</script>\n"
    )


def all_columns(groups: Groups, metric: str) -> list[Column]:
    """All columns that a page can have."""
    spreads = {spread_name(len(runs)) for runs in groups.values()} - {""}
    below = SPREADS[tuple(sorted(spreads))]
    taught = WITH_TEACHER if any(run.total for runs in groups.values() for run in runs) else ""
    swept = dict.fromkeys(field for runs in groups.values() for field in swept_values(runs))
    return [
        *(swept_column(field, groups) for field in swept),
        Column("steps", lambda runs, steps: TableCell(str(steps), value=str(steps))),
        Column("evaluations", evaluations_cell, "of a sample"),
        Column(metric_heading(MAIN, metric), main_cell, below),
        *(metric_column(name) for name in metric_names(groups)),
        Column("seeds", lambda runs, _: TableCell(str(len(runs)), value=str(len(runs)))),
        Column(
            "images seen", budget_cell("images_seen", "{:,.0f}".format), taught.removeprefix(", ")
        ),
        Column(
            "network evaluations",
            budget_cell("network_evaluations", short_number),
            f"in training{taught}",
        ),
        Column("wall-clock", budget_cell("seconds", duration_text), f"of training{taught}"),
    ]


def swept_column(field: str, groups: Groups) -> Column:
    """The column of a swept field: the value of a run's config, also of a teacher's."""
    values = [swept_values(runs).get(field) for runs in groups.values()]
    numbers = all(type(value) in (int, float, type(None)) for value in values)

    def cell(runs: Sequence[EvaluatedRun], steps: int) -> TableCell:
        value = swept_values(runs).get(field)
        if value is None:
            return TableCell()
        return TableCell(value_text(value), value=escape(value_text(value)))

    return Column(field, cell, sorts="number" if numbers else "text")


def nonempty_columns(columns: Sequence[Column], entries: Sequence[Entry]) -> list[Column]:
    """The columns in which at least one row has a value."""
    return [c for c in columns if any(c.cell(entry.runs, entry.steps).value for entry in entries)]


def metric_names(groups: Groups) -> list[str]:
    """All metrics but the main one: those of METRICS in its order, then others by first use."""
    results = list(all_results(groups))
    found = dict.fromkeys(name for result in results for name in result["metrics"])
    found |= dict.fromkeys(name for result in results for name in corrected_names(result))
    errors = {error_name(name) for name, metric in METRICS.items() if metric.error}
    others = [name for name in found if name not in METRICS and name not in errors]
    return [name for name in METRICS if name in found and name != MAIN] + others


def metric_heading(name: str, metric: str) -> str:
    """The heading of a metric. metric: name of the main metric."""
    found = find_metric(name)
    return (metric if name == MAIN else found.heading) + ARROWS[found.better]


def find_metric(name: str) -> Metric:
    """The entry of METRICS for a name, or a plain one for a name that METRICS lacks."""
    return METRICS.get(name) or Metric(float, {}, name, OTHER_FORMAT, NEITHER)


def metric_column(name: str) -> Column:
    """The column of a metric: means over seeds."""
    metric = find_metric(name)

    def cell(runs: Sequence[EvaluatedRun], steps: int) -> TableCell:
        values = metric_values(runs, steps, name)
        if not values:
            return TableCell()
        errors = metric_values(runs, steps, error_name(name)) if metric.error else []
        below = f"± {metric.format.format(mean(errors))}" if errors else ""
        narrow = [
            name in collapsed(run.results[steps]["metrics"], run.results[steps].get("real", {}))
            for run in runs
        ]
        below = COLLAPSED if any(narrow) else below
        if len(values) < len(runs):
            below = ", ".join(filter(None, [below, f"of {len(values)} seeds"]))
        return TableCell(metric.format.format(mean(values)), below, repr(mean(values)))

    return Column(metric_heading(name, ""), cell, largest_is_best=metric.better == MORE)


def metric_values(runs: Sequence[EvaluatedRun], steps: int, name: str) -> list[float]:
    """The values of a metric, one for each seed that has it."""
    metrics = [run.results[steps]["metrics"] for run in runs]
    return [of_run[name] for of_run in metrics if name in of_run]


def evaluations_cell(runs: Sequence[EvaluatedRun], steps: int) -> TableCell:
    """The cell of the network evaluations that a sample takes."""
    count = runs[0].evaluations.get(steps)
    return TableCell() if count is None else TableCell(f"{count:,}", value=str(count))


def main_cell(runs: Sequence[EvaluatedRun], steps: int) -> TableCell:
    """The cell of the main metric: mean over seeds, its spread, and the least value."""
    values = metric_values(runs, steps, MAIN)
    if not values:
        return TableCell()
    found = interval(values)
    text, low, high, least = map(METRICS[MAIN].format.format, found)
    spread = spread_name(len(values))
    below = f"{low} to {high}" if spread == RANGE else f"[{low}, {high}], {least}" * bool(spread)
    return TableCell(text, below, repr(found.mean))


def budget_cell(
    name: str, form: Callable[[float], str]
) -> Callable[[Sequence[EvaluatedRun], int], TableCell]:
    """The function that makes the cell of a cost of training: mean over seeds that know it.

    Below is the cost with that of the teacher, for runs that have one.
    """

    def cell(runs: Sequence[EvaluatedRun], steps: int) -> TableCell:
        own = mean_cost([run.budget for run in runs], name)
        total = mean_cost([run.total for run in runs if run.total], name)
        below = (UNKNOWN if total is None else form(total)) if any(r.total for r in runs) else ""
        return TableCell() if own is None else TableCell(form(own), below, repr(own))

    return cell


def mean_cost(costs: Iterable[Mapping[str, float | None]], name: str) -> float | None:
    """The mean of a cost over the runs that know it; None if none does."""
    values = [cost[name] for cost in costs if cost.get(name) is not None]
    return mean(values) if values else None


def table_row(
    name: str, look: Look, runs: Sequence[EvaluatedRun], steps: int, columns: Sequence[Column]
) -> str:
    """The row of a group of runs at a number of sampling steps, as HTML."""
    breakable = re.sub(r"([._])(?=[a-z])", r"\1<wbr>", escape(name))
    first = ' class="first"' if steps == min(runs[0].results) else ""
    mark = small_text(ADDED if first and runs[0].added else "")
    cells = "".join(data_cell(column.cell(runs, steps)) for column in columns)
    return (
        f'<tr{first}><th scope="row" data-value="{escape(name)}">'
        f'<i style="background:{look.colour}"></i>{breakable}{mark}</th>{cells}</tr>\n'
    )


def data_cell(cell: TableCell) -> str:
    """A cell as HTML. Without a value it has no data-value, and is sorted last."""
    value = f' data-value="{cell.value}"' if cell.value else ""
    return f"<td{value}>{escape(cell.text)}{small_text(cell.below)}</td>"


def small_text(text: str) -> str:
    """Smaller text below a heading or cell, as HTML."""
    return f"<small>{escape(text)}</small>" if text else ""


def seeds_table(groups: Groups, metric: str) -> str:
    """The rows of each seed as HTML, in a part of the page that opens by a click."""
    each = split_seeds(groups)
    entries = all_entries(each)
    columns = nonempty_columns(all_columns(each, metric), entries)
    heads = "".join(f'<th scope="col">{escape(c.heading)}</th>' for c in columns)
    rows = "".join(
        f'<tr><th scope="row">{escape(entry.title)}</th>'
        f"{''.join(data_cell(column.cell(entry.runs, entry.steps)) for column in columns)}</tr>\n"
        for entry in entries
    )
    return (
        f'<details>\n<summary>Each seed</summary>\n<div class="scroll"><table>\n<thead><tr><th '
        f'scope="col">method</th>{heads}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n'
        "</details>\n"
    )


def reference_rows(groups: Groups, columns: Sequence[Column], metric: str) -> str:
    """The rows at the bottom, which sorting does not move: metrics of no samples."""
    rows = ""
    for name, title in REFERENCES.items():
        if texts := reference_texts(groups, metric, name):
            cells = "".join(f"<td>{texts.get(column.heading, '')}</td>" for column in columns)
            rows += f'<tr><th scope="row">{title}</th>{cells}</tr>'
    return f"<tfoot>{rows}</tfoot>\n" if rows else ""


def reference_texts(groups: Groups, metric: str, name: str) -> dict[str, str]:
    """Metrics of a row of REFERENCES as text, by the heading of their column."""
    found = reference_numbers(groups, name)
    evaluations = found.pop(EVALUATIONS, None)
    texts = {metric_heading(m, metric): find_metric(m).format.format(v) for m, v in found.items()}
    return texts | ({} if evaluations is None else {"evaluations": f"{evaluations:,.0f}"})


def reference_numbers(groups: Groups, name: str) -> dict[str, float]:
    """Metrics of a row of REFERENCES, and its evaluations; {} without it."""
    found: dict[str, float] = {}
    for result in all_results(groups):
        found = {**(result.get(name) or result.get("rows", {}).get(name, {})), **found}
    return found
