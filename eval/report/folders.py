"""Folders of runs: those that --mode=compare writes, and others.

A comparison keeps its runs in ROOT/METHOD/seed_SEED, or with swept fields in
ROOT/METHOD/FIELD_VALUE/seed_SEED, and its methods and swept fields in ROOT/comparison.json.
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

RECORD, METHODS, SWEPT = "comparison.json", "methods", "swept"
DEPTH = 4  # folders between a folder of comparisons and its runs


def comparison_run(root: Path, method: str, seed: int, cell: str = "") -> Path:
    """The absolute folder of a run of a comparison. cell: its swept fields and values, or ""."""
    return root.absolute() / method / cell / f"seed_{seed}"


def record_methods(root: Path, methods: Iterable[str], swept: Iterable[str] = ()) -> None:
    """Records the methods that the user compares and the swept fields, beside those of before."""
    root.mkdir(parents=True, exist_ok=True)
    found = {METHODS: sorted({*recorded(root, METHODS), *methods})}
    fields = [*dict.fromkeys((*recorded(root, SWEPT), *swept))]
    write_json(root / RECORD, found | ({SWEPT: fields} if fields else {}))


def recorded(root: Path, name: str) -> Sequence[str]:
    """The methods or the swept fields of a comparison; () if a folder has no readable record."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        return tuple(map(str, json.loads((root / RECORD).read_bytes())[name]))
    return ()


def root_of(folder: Path) -> Path:
    """The folder of the comparison that a run is in; that above its method if there is none."""
    parent = folder.absolute().parent.parent
    return next((root for root in (parent, parent.parent) if (root / RECORD).is_file()), parent)


def swept_fields(folder: Path) -> Sequence[str]:
    """The fields that the comparison of a run sweeps, by dotted name."""
    return recorded(root_of(folder), SWEPT)


def is_added(folder: Path) -> bool:
    """Whether the run is in a comparison only because it teaches others."""
    root = root_of(folder)
    methods = recorded(root, METHODS)
    return bool(methods) and folder.absolute().relative_to(root).parts[0] not in methods


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
