"""The image files that a run began with, to say which of them changed: WORKDIR/files.json.

It lists paths within the folder of images, sizes in bytes and modification times in ns. The data's
identity says whether images changed; this list says where.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from fewstep.files import write_json
from fewstep.training.storage.seal import seal_record, unseal_record

LISTING = "files.json"
MOST_FILES = 200_000  # a run with more files records no list
NAMED = 3  # files of each kind in a message

File = Sequence[str | int]  # path, size, time


def write_listing(workdir: Path, files: Iterable[File]) -> None:
    """Write the list of a run's image files, unless there is one or it would be too long."""
    files = [list(file) for file in files]
    if 0 < len(files) <= MOST_FILES and not (workdir / LISTING).exists():
        write_json(workdir / LISTING, seal_record({"files": files}))


def changed_files(workdir: Path, files: Iterable[File]) -> str:
    """Which files were added, removed or written to since the run began; "" if unknown."""
    try:
        recorded = unseal_record(json.loads((workdir / LISTING).read_bytes()))["files"]
        before = {path: stamp for path, *stamp in recorded}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return ""
    now = {path: stamp for path, *stamp in files}
    kept = before.keys() & now.keys()
    resized = [path for path in kept if before[path][:1] != now[path][:1]]
    rewritten = [path for path in kept if before[path] != now[path]]
    # In a copy of the folder all times may be new; then only sizes tell.
    written = rewritten if len(rewritten) < max(len(kept), 2) else resized
    kinds = {
        "added": now.keys() - before.keys(),
        "removed": before.keys() - now.keys(),
        "written to": written,
    }
    return "; ".join(f"{kind}: {summarize_paths(paths)}" for kind, paths in kinds.items() if paths)


def summarize_paths(paths: Iterable[str]) -> str:
    """The first paths, and how many more there are."""
    paths = sorted(paths)
    more = len(paths) - NAMED
    return ", ".join(paths[:NAMED]) + (f" and {more} more" if more > 0 else "")
