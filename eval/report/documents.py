"""Writes evaluated runs as a page, as Markdown or as CSV, by the name of the file."""

from collections.abc import Callable, Container, Sequence
from pathlib import Path

from fewstep.eval.report.costs import add_costs
from fewstep.eval.report.markdown import write_markdown
from fewstep.eval.report.page import results_page
from fewstep.eval.report.runs import EvaluatedRun, group_by_method, load_runs
from fewstep.eval.report.spreadsheet import write_csv


def write_table(path: Path, *, title: str, runs: Sequence[EvaluatedRun]) -> None:
    """Writes the means and each seed as a CSV file. title: not used."""
    write_csv(path, group_by_method(runs))


# end of a file's name -> what writes it
WRITERS: dict[str, Callable[..., None]] = {
    ".html": results_page,
    ".md": write_markdown,
    ".csv": write_table,
}


def check_document(path: Path) -> None:
    """Raises ValueError unless the end of the name says what to write."""
    if path.suffix not in WRITERS:
        raise ValueError(f"--out={path} must end in {', '.join(WRITERS)}: a page or its tables")


def read_runs(
    folders: Sequence[Path], metric: str = "", ids: Container[str] | None = None
) -> list[EvaluatedRun]:
    """The runs in these folders (eval.report.runs), with what they cost."""
    return add_costs(load_runs(folders, metric, ids))


def write_document(path: Path, runs: Sequence[EvaluatedRun]) -> None:
    """Writes the runs in the form that the name of the file says."""
    data = dict.fromkeys(result["data"] for run in runs for result in run.results.values())
    WRITERS[path.suffix](path, title=f"Fewstep: {', '.join(data)}", runs=runs)
