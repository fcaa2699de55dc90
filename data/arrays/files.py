"""Folders of data sets, to which one process at a time writes, and what to do without room."""

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fewstep.files import whole_file
from fewstep.progress import note

LOCK = ".lock"
FIELD = "data.dir"  # that names the disk
FULL = (errno.ENOSPC, errno.EDQUOT)
UNLOCKED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


def elsewhere(field: str = FIELD) -> str:
    """What a user does where nothing can be written: choose another folder by that field."""
    environment = ", or name a folder by $FEWSTEP_DATA" if field == FIELD else ""
    return f"choose another {field}{environment}"


@contextmanager
def stored_file(path: Path, field: str = FIELD) -> Iterator[BinaryIO]:
    """A file of a data set, written whole or not at all (files.whole_file).

    field: which names another disk. A kill leaves its temporary file to `remove_leftovers`. Raises
    OSError that names the folder if the disk is full.
    """
    try:
        with whole_file(path) as file:
            yield file
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise OSError(
            f"{path.parent} has no room for {path.name} ({error.strerror}); free disk space or "
            f"choose another {field}. What is there already is whole"
        ) from error


@contextmanager
def claimed(folder: Path, field: str = FIELD) -> Iterator[bool]:
    """The folder, made, for this process alone; waits for another one that has it.

    Yields whether it is locked. The lock is the kernel's, so a kill gives it back. Where nothing
    can be written, or the file system has no locks, the block runs all the same: it reads, or its
    files replace equal ones.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{folder} cannot be made ({error.strerror}); {elsewhere(field)}"
        raise OSError(reason) from error
    try:
        file = (folder / LOCK).open("ab")
    except OSError as error:
        if error.errno not in UNLOCKED:
            raise
        yield False
        return
    with file:
        yield _lock(file, folder)


def _lock(file: BinaryIO, folder: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        note(f"{folder} is being written by another process; waiting for it")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in UNLOCKED:
            raise
        return False
    return True
