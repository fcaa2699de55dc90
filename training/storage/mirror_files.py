"""Which files of a run's folder, or of a folder of runs, belong into a bucket."""

import os
import shutil
from pathlib import Path

from fewstep.training.storage.bucket_listing import Stamps
from fewstep.training.storage.checkpoint import FOLDER as CHECKPOINTS

LOCAL = ("lock", "heartbeat")  # what only this machine reads, in the folder of a run


def folder_of(name: str) -> str:
    """The checkpoint that a file is of, which counts whole; the file itself if it is of none."""
    return checkpoint_of(name) or name


def checkpoint_of(name: str) -> str:
    """The checkpoint that a file is of, also of a run inside a comparison; "" if it is of none."""
    parts = name.split("/")
    if CHECKPOINTS not in parts[:-2]:
        return ""
    return "/".join(parts[: parts.index(CHECKPOINTS) + 2])


def scan(mirror: Path) -> Stamps:
    """The files of a run's folder that belong into the bucket: no temporary ones."""
    found: Stamps = {}
    for folder, folders, names in os.walk(mirror):
        inside = Path(folder).relative_to(mirror)
        folders[:] = [name for name in folders if belongs((inside / name).parts)]
        for name in names:
            if belongs((inside / name).parts):
                try:
                    stat = (mirror / inside / name).stat()
                except FileNotFoundError:  # replaced or removed since
                    continue
                found[(inside / name).as_posix()] = [stat.st_size, stat.st_mtime_ns]
    return found


def belongs(parts: tuple[str, ...]) -> bool:
    """Whether a path in a run's folder belongs into the bucket."""
    inside = parts[parts.index(CHECKPOINTS) + 1 :] if CHECKPOINTS in parts else ()
    unfinished = bool(inside) and not inside[0].isdigit()
    return not (unfinished or {*parts} & {*LOCAL} or parts[-1].endswith(".tmp"))


def remove_empty_checkpoints(mirror: Path) -> None:
    """Remove the folders of checkpoints that have no files left."""
    for step in mirror.rglob(f"{CHECKPOINTS}/*"):
        if not any(path.is_file() for path in step.rglob("*")):
            shutil.rmtree(step)
