"""Rows of a results page: samples of runs, and what corrections make of them.

A result on a density may have further rows (eval/corrections.py). Those that correct samples stand
below the row of their samples, as runs whose metrics are those of the row.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fewstep.eval.report.results import ROWS, Result
from fewstep.eval.report.runs import EvaluatedRun, Groups

CORRECTED = ("weighted", "hmc")
EVALUATIONS = "evaluations"  # entry of a row, which has a column of its own


class Entry(NamedTuple):
    """A row: its title, the group that it belongs to, and its runs at a number of steps."""

    title: str
    group: str
    runs: Sequence[EvaluatedRun]
    steps: int


def all_entries(groups: Groups) -> list[Entry]:
    """The rows of all groups."""
    return [entry for name, runs in groups.items() for entry in table_entries(name, runs)]


def table_entries(name: str, runs: Sequence[EvaluatedRun]) -> Iterator[Entry]:
    """The rows of a group, by number of sampling steps."""
    for steps in sorted(runs[0].results):
        yield Entry(name, name, runs, steps)
        for row in CORRECTED:
            having = [run for run in runs if row in run.results[steps].get("rows", {})]
            if having:
                own = [corrected_run(run, row, steps) for run in having]
                yield Entry(f"{name}, {ROWS[row]}", name, own, steps)


def corrected_run(run: EvaluatedRun, row: str, steps: int) -> EvaluatedRun:
    """The run with the metrics and the evaluations of a row in place of its samples' own."""
    numbers = {**run.results[steps]["rows"][row]}
    count = numbers.pop(EVALUATIONS, None)
    results = {steps: {**run.results[steps], "metrics": numbers}}
    return run._replace(results=results, evaluations={} if count is None else {steps: round(count)})


def corrected_names(result: Result) -> list[str]:
    """Names of all numbers in the further rows of a result, but the evaluations."""
    rows = result.get("rows", {}).values()
    return [name for row in rows for name in row if name != EVALUATIONS]
