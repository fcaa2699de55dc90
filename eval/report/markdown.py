"""Evaluated runs as Markdown: how they were measured, a table of means, and one of each seed."""

from collections.abc import Sequence
from pathlib import Path

from fewstep.eval.metrics.protocol import Protocol
from fewstep.eval.report.corrected import all_entries
from fewstep.eval.report.figures import has_several_seeds, sampling_text
from fewstep.eval.report.page import (
    plain_notes,
    protocol_line,
    shared_measurement,
    warning_texts,
)
from fewstep.eval.report.runs import EvaluatedRun, Groups, group_by_method, split_seeds
from fewstep.eval.report.table import (
    ADDED,
    REFERENCES,
    TableCell,
    all_columns,
    nonempty_columns,
    reference_texts,
)
from fewstep.files import replace_file


def write_markdown(path: Path, *, title: str, runs: Sequence[EvaluatedRun]) -> None:
    """Writes the tables of a page as Markdown, whole or not at all."""
    groups = group_by_method(runs)
    measurement = shared_measurement(groups)
    metric = Protocol(measurement, {}).metric
    parts = [f"# {title}", f"{protocol_line(measurement, metric)}; {sampling_text(runs)}."]
    parts += [f"Warning: {text}." for text in warning_texts(groups)]
    parts.append(table(groups, metric))
    if has_several_seeds(groups):
        parts += ["## Each seed", table(split_seeds(groups), metric)]
    if measurement:
        parts += ["## How to read the numbers", *plain_notes(groups)]
    replace_file(path, ("\n\n".join(parts) + "\n").encode())


def table(groups: Groups, metric: str) -> str:
    """The table of a page as Markdown: one row for each method and number of steps."""
    entries = all_entries(groups)
    columns = nonempty_columns(all_columns(groups, metric), entries)
    heads = ["method", *(cell_text(TableCell(c.heading, c.below)) for c in columns)]
    rows = [heads, ["---", *["---:"] * len(columns)]]
    for entry in entries:
        cells = [TableCell(entry.title, ADDED if entry.runs[0].added else "")]
        cells += [column.cell(entry.runs, entry.steps) for column in columns]
        rows.append([*map(cell_text, cells)])
    for name, title in REFERENCES.items():
        if texts := reference_texts(groups, metric, name):
            rows.append([title, *(texts.get(column.heading, "") for column in columns)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cell_text(cell: TableCell) -> str:
    """A cell as Markdown, with its smaller text in parentheses."""
    text = f"{cell.text} ({cell.below})" if cell.below else cell.text
    return text.replace("|", "\\|").replace("\n", " ")
