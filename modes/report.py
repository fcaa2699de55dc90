"""--mode=report: one HTML page of the newest evaluations of some runs."""

from pathlib import Path

from eval.page import results_page
from eval.results import load_results
from modes.request import Request
from training.metrics import read_rows
from training.workdir import load_config

PAGE = "report.html"


def report(request: Request) -> None:
    """Write --out (report.html by default) from --workdirs=A,B,... or --workdir."""
    folders = request.workdirs or ((request.workdir,) if request.workdir else ())
    if not folders:
        raise ValueError("--workdirs=DIR,DIR,... is needed: the runs to show")
    results, pictures, curves = [], {}, {}
    for folder in folders:
        newest = newest_evaluation(folder)
        result = load_results(newest)
        name = f"{result['name']} ({folder})"
        results.append({**result, "name": name})
        pictures[f"{name}: the same noise and labels in each row"] = newest.with_name(
            f"{newest.stem}_comparison.png"
        )
        curves[name] = read_rows(folder / "metrics.jsonl")
    out = request.out or Path(PAGE)
    title = f"Fewstep: {', '.join(dict.fromkeys(r['data'] for r in results))}"
    results_page(out, title=title, results=results, pictures=pictures, curves=curves)
    print(f"{out} shows {len(folders)} run(s); open it in a browser")


def newest_evaluation(folder: Path) -> Path:
    """The JSON file of a run's newest evaluation. Raises ValueError if there is none."""
    load_config(folder)
    found = sorted((folder / "eval").glob("step_*.json"))
    if not found:
        raise ValueError(f"{folder} has not been evaluated; run --mode=evaluate --workdir={folder}")
    return found[-1]
