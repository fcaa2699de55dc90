"""--mode=report: write the newest evaluations of several runs as a page, Markdown or CSV."""

from pathlib import Path

from fewstep.eval.report.documents import check_document, read_runs, write_document
from fewstep.eval.report.folders import find_runs
from fewstep.files import check_writable
from fewstep.modes.mode import WORKDIR, Flag, Mode, parse_path, parse_paths
from fewstep.modes.request import Request

PAGE = "report.html"


def report(request: Request) -> None:
    """Write --out, by default report.html, for the runs of --workdirs and --workdir."""
    folders = (*((request.workdir,) if request.workdir else ()), *(request.workdirs or ()))
    if not folders:
        raise ValueError(
            "--workdirs is missing; name the folders of the runs, as in --workdirs=runs/a,runs/b, "
            "or of a comparison"
        )
    out = request.out or Path(PAGE)
    check_document(out)
    check_writable(out.parent, "choose another file by --out=FILE.html")
    runs = read_runs(find_runs(folders), request.metric)
    write_document(out, runs)
    print(f"{out} shows {len(runs)} run(s)" + "; open it in a browser" * (out.suffix == ".html"))


REPORT = Mode(
    report,
    "Write the evaluations of several runs as a page, Markdown or CSV.",
    {
        **WORKDIR,
        "workdirs": Flag(
            "Folders of runs and of comparisons, such as runs/a,runs/compare.", parse_paths
        ),
        "metric": Flag("Measurement to show if the runs have several, such as fd-pixels-1k."),
        "out": Flag("A .html, .md or .csv file; default: report.html.", parse_path),
    },
    replaces=("data.name",),  # names a density that is code, which may then run
)
