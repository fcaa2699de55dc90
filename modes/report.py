"""--mode=report: one HTML page of the newest evaluations of some runs."""

from pathlib import Path

from fewstep.eval.report.run_page import write_page
from fewstep.files import check_writable
from fewstep.modes.mode import WORKDIR, Flag, Mode, parse_path, parse_paths
from fewstep.modes.request import Request

PAGE = "report.html"


def report(request: Request) -> None:
    """Write --out (report.html by default) from --workdirs=A,B,... or --workdir."""
    folders = request.workdirs or ((request.workdir,) if request.workdir else ())
    if not folders:
        raise ValueError("--workdirs=DIR,DIR,... is needed: the runs to show")
    out = request.out or Path(PAGE)
    check_writable(out.parent, "choose another place by --out=FILE.html")
    runs = write_page(folders, out, request.metric)
    print(f"{out} shows {len(runs)} run(s); open it in a browser")


REPORT = Mode(
    report,
    "Write one HTML page of the evaluations of some runs.",
    {
        **WORKDIR,
        "workdirs": Flag("Folders of the runs to show together.", parse_paths),
        "metric": Flag("Which measurement, such as fd-pixels-1k, if the runs have several."),
        "out": Flag("An .html file.", parse_path),
    },
)
