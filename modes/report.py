"""--mode=report: one HTML page of the newest evaluations of some runs."""

from collections.abc import Sequence
from pathlib import Path

from eval.page import results_page
from eval.runs import Run, load_runs
from modes.request import Request

PAGE = "report.html"


def report(request: Request) -> None:
    """Write --out (report.html by default) from --workdirs=A,B,... or --workdir."""
    folders = request.workdirs or ((request.workdir,) if request.workdir else ())
    if not folders:
        raise ValueError("--workdirs=DIR,DIR,... is needed: the runs to show")
    out = request.out or Path(PAGE)
    runs = write_page(folders, out)
    print(f"{out} shows {len(runs)} run(s); open it in a browser")


def write_page(folders: Sequence[Path], out: Path) -> list[Run]:
    """Write the page of the runs in these folders; returns the runs. Raises ValueError."""
    runs = [with_network_evaluations(run) for run in load_runs(folders)]
    data = dict.fromkeys(result["data"] for run in runs for result in run.results.values())
    results_page(out, title=f"Fewstep: {', '.join(data)}", runs=runs)
    return runs


def with_network_evaluations(run: Run) -> Run:
    """The run with the network evaluations of its training, as far as they can be counted."""
    return run._replace(budget={**run.budget, "network_evaluations": None})
