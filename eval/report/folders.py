"""Folders of runs: those that --mode=compare writes, and others.

A comparison keeps its runs in ROOT/METHOD/seed_SEED, and its methods in ROOT/comparison.json.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from fewstep.eval.report.evaluation import FOLDER
from fewstep.files import write_json
from fewstep.messages import shell_flags
from fewstep.training.cluster.processes import warn
from fewstep.training.storage.workdir import is_run

RECORD, METHODS = "comparison.json", "methods"
DEPTH = 3  # folders between a folder of comparisons and its runs


def comparison_run(root: Path, method: str, seed: int) -> Path:
    """The absolute folder of a run of a comparison."""
    return root.absolute() / method / f"seed_{seed}"


def record_methods(root: Path, methods: Iterable[str]) -> None:
    """Records the methods that the user compares, beside those of earlier calls."""
    root.mkdir(parents=True, exist_ok=True)
    write_json(root / RECORD, {METHODS: sorted({*recorded_methods(root), *methods})})


def recorded_methods(root: Path) -> Sequence[str]:
    """The methods that the user has compared in a folder; () if it has no readable record."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        return tuple(map(str, json.loads((root / RECORD).read_bytes())[METHODS]))
    return ()


def is_added(folder: Path) -> bool:
    """Whether the run is in a comparison only because it teaches others."""
    method, root = folder.absolute().parent.name, folder.absolute().parent.parent
    methods = recorded_methods(root)
    return bool(methods) and method not in methods


def find_runs(folders: Iterable[Path]) -> list[Path]:
    """The runs among the folders, and the evaluated runs in the others.

    Raises ValueError for a folder without evaluated runs.
    """
    found: dict[Path, None] = {}
    for folder in folders:
        found |= dict.fromkeys([folder] if is_run(folder) else evaluated_runs(folder))
    return [*found]


def evaluated_runs(folder: Path) -> list[Path]:
    """The evaluated runs in a folder, in alphabetic order; warns of the others.

    Raises ValueError if there are none.
    """
    inside = sorted(runs_in(folder))
    evaluated = [run for run in inside if any((run / FOLDER).glob("*.json"))]
    if not evaluated:
        what = "no run in it has been evaluated" if inside else "it is no run and has none in it"
        raise ValueError(
            f"{folder}: {what}; name evaluated runs, or a folder that --mode=compare wrote"
        )
    for run in inside:
        if run not in evaluated:
            command = shell_flags("evaluate", workdir=run)
            warn(f"{run} is left out, since it has not been evaluated; {command} does that")
    return evaluated


def runs_in(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """The runs in a folder and its folders, up to a depth; not those in the folders of runs."""
    for path in folder.iterdir() if folder.is_dir() and depth else ():
        if path.is_dir() and not path.name.startswith("."):
            yield from [path] if is_run(path) else runs_in(path, depth - 1)
