"""Files written whole or not at all, in folders that one process at a time writes to."""

import errno
import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from fewstep.progress import note

LOCK = ".lock"
FIELD = "data.dir"  # that names the disk
# NAME.HEX@HOST.tmp; earlier versions named no host.
TEMPORARY = re.compile(r".+\.[0-9a-f]{32}(?:@(.*))?\.tmp")
# A writer on another host, whose file system may not share locks, is dead after so long a silence.
SILENCE_SECONDS = 24 * 3600
FULL = (errno.ENOSPC, errno.EDQUOT)
UNLOCKED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


def elsewhere(field: str = FIELD) -> str:
    """What a user does where nothing can be written: choose another folder by that field."""
    environment = ", or name a folder by $FEWSTEP_DATA" if field == FIELD else ""
    return f"choose another {field}{environment}"


@contextmanager
def whole_file(path: Path, field: str = FIELD) -> Iterator[BinaryIO]:
    """A file that takes its name when the block ends, and is removed if the block fails.

    field: which names another disk. A kill leaves its temporary file to `remove_leftovers`. Raises
    OSError that names the folder if the disk is full.
    """
    writer = f"{uuid4().hex}@{socket.gethostname()}"  # of this process alone
    temporary = path.with_name(f"{path.name}.{writer}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in FULL:
            raise OSError(
                f"{path.parent} has no room for {path.name} ({error.strerror}); free disk space or "
                f"choose another {field}. What is there already is whole"
            ) from error
        raise


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


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of writers that were killed; the caller has locked the folder.

    With the lock no writer of this host is at work. One of another host may be, if locks do not
    reach it, and its file stays until nothing was written to it for a day.
    """
    for file in folder.iterdir():
        temporary = TEMPORARY.fullmatch(file.name)
        if not temporary:
            continue
        with suppress(FileNotFoundError):
            silent = time.time() - file.stat().st_mtime > SILENCE_SECONDS
            if silent or temporary[1] in (None, socket.gethostname()):
                file.unlink()


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
