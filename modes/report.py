"""--mode=report: write one HTML page with the newest evaluations of several runs."""

from pathlib import Path

from fewstep.eval.report.run_page import write_page
from fewstep.files import check_writable
from fewstep.modes.mode import WORKDIR, Flag, Mode, parse_path, parse_paths
from fewstep.modes.request import Request

PAGE = "report.html"


def report(request: Request) -> None:
    """Write --out, by default report.html, for the runs of --workdirs or --workdir."""
    folders = request.workdirs or ((request.workdir,) if request.workdir else ())
    if not folders:
        raise ValueError(
            "--workdirs is missing; name the folders of the runs, as in --workdirs=runs/a,runs/b"
        )
    out = request.out or Path(PAGE)
    check_writable(out.parent, "choose another file by --out=FILE.html")
    runs = write_page(folders, out, request.metric)
    print(f"{out} shows {len(runs)} run(s); open it in a browser")


REPORT = Mode(
    report,
    "Write one HTML page with the evaluations of several runs.",
    {
        **WORKDIR,
        "workdirs": Flag("Folders of the runs, such as runs/a,runs/b.", parse_paths),
        "metric": Flag("Measurement to show if the runs have several, such as fd-pixels-1k."),
        "out": Flag("The .html file; default: report.html.", parse_path),
    },
)
