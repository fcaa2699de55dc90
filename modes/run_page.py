"""Writes WORKDIR/report.html once a run has been trained, for the mode train and for Python."""

from pathlib import Path

from fewstep.eval.report.documents import read_runs, write_document
from fewstep.eval.report.evaluation import FOLDER
from fewstep.training.cluster.processes import is_first, say, warn

PAGE = "report.html"


def write_run_page(folder: Path) -> None:
    """Write the page of a run that has been evaluated, in process 0.

    A page that cannot be made is no reason to fail a run that has been trained: warns.
    """
    if not (is_first() and any((folder / FOLDER).glob("*.json"))):
        return
    try:
        write_document(folder / PAGE, read_runs([folder]))
    except (ValueError, OSError) as error:
        warn(f"{folder / PAGE} is not written: {error}")
    else:
        say(f"{folder / PAGE} shows its evaluations; open it in a browser")
