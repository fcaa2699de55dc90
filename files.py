"""Files that are written whole or not at all, and arrays read from them."""

import errno
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import numpy as np
from PIL import Image

from fewstep.weights.archives import read_arrays

# The disk, or a user's share of it, is full; it can be read only; a file would be too large.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
CODE = 8  # hexadecimal digits of a host, or of a writer, in the name of a temporary file
TEMPORARY = re.compile(rf"\..+@([0-9a-f]{{{CODE}}})\.tmp")  # .NAME@HOST.tmp
# NAME.HEX@HOST.tmp, as earlier versions called those of data sets; the first ones named no host.
EARLIER = re.compile(r".+\.[0-9a-f]{32}(?:@(.*))?\.tmp")
# A writer on another host, whose file system may not share locks, is dead after so long a silence.
SILENCE_SECONDS = 24 * 3600
NO_FOLDER, NOT_OURS = (
    "Move away the file or the link that lies where a folder should be",
    "Change its permissions, or choose another place",
)
REMEDIES = {
    errno.EISDIR: "Move away the folder that lies where a file should be",
    errno.ENOTDIR: NO_FOLDER,
    errno.EEXIST: NO_FOLDER,
    errno.EACCES: NOT_OURS,
    errno.EPERM: NOT_OURS,
    errno.ELOOP: "Remove the symbolic links that lead in a circle",
    errno.ENAMETOOLONG: "Choose a shorter name",
}


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part.

    Folders on the way are made. Raises OSError that names the file.
    """
    with replaced(path) as file:
        file.write(content)


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends, and goes if the block fails.

    Folders on the way are made; what a killed writer has left beside it goes. Raises OSError that
    names `path`.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_once(path.parent.absolute())
        with whole_file(path) as file:
            yield file
        remove_if_dead(path.with_name(f".{path.name}.tmp"))  # as earlier versions called it


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends, and goes if the block fails.

    Its temporary name is the same for all writers of a host, so that the next one takes over what a
    killed one has left; a lock, which the system takes from a process that ends, keeps living ones
    apart. Another host, which may not see the lock, has another name; so has each writer where the
    file system has no locks. Raises OSError as the system does.
    """
    with locked(path.with_name(f".{path.name}@{host_code()}.tmp")) as (file, temporary):
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder that gets the name `path` when the block ends, and goes if the block fails.

    What a killed writer has left goes too; a living one of this host is waited for. Raises OSError
    that names `path`, also if it is there already.
    """
    temporary = path.with_name(f".{path.name}@{host_code()}.part")
    with writing(path), locked_folder(temporary):
        try:
            for leftover in temporary.iterdir():
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            yield temporary
            if os.path.lexists(path):
                raise OSError(f"{path} is there already; choose another place")
            temporary.rename(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """A folder, made, with a lock where the file system has them; waits for one that is held."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if has_name(descriptor, folder):  # else the other writer has moved or removed it
                yield
                return
        finally:
            os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """An empty file of this writer alone, and its name; one that another writes is waited for."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError:  # a leftover of another user
            break
        with open(descriptor, "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:  # a file system without locks
                path.unlink(missing_ok=True)
                break
            if has_name(file.fileno(), path):  # else the other writer has moved or removed it
                file.truncate(0)
                yield file, path
                return
    own = path.with_name(path.name.replace("@", f".{uuid4().hex[:CODE]}@"))
    with own.open("xb") as file:
        yield file, own


def host_code() -> str:
    """What stands for this host in names of temporary files."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:CODE]


def remove_leftovers(folder: Path, alone: bool = False) -> None:
    """Remove temporary files of writers that were killed.

    alone: whether no other process of this host writes there. Else a file of this host is dead if
    nobody has its lock. One of another host, which locks may not reach, stays until nothing was
    written to it for a day.
    """
    for file in folder.iterdir():
        found = TEMPORARY.fullmatch(file.name) or EARLIER.fullmatch(file.name)
        if not found:
            continue
        with suppress(FileNotFoundError):
            silent = time.time() - file.stat().st_mtime > SILENCE_SECONDS
            here = found[1] in (None, socket.gethostname(), host_code())
            if silent or (here and alone):
                file.unlink()
            elif here and TEMPORARY.fullmatch(file.name):
                remove_if_dead(file)


@cache
def remove_once(folder: Path) -> None:
    """`remove_leftovers` of a folder, when this process first writes there."""
    with suppress(OSError):  # one that can be written but not listed
        remove_leftovers(folder)


def remove_if_dead(path: Path) -> None:
    """Remove a temporary file of this host unless its writer has the lock on it."""
    with suppress(OSError), path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if has_name(file.fileno(), path):
            path.unlink()


def has_name(descriptor: int, path: Path | str, folder: int | None = None) -> bool:
    """Whether an open file or folder has this name now, in an open folder if given."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path, dir_fd=folder))
    return False


def append(file: BinaryIO, content: bytes) -> None:
    """Append to an unbuffered file all of the content or nothing. Raises OSError."""
    end = file.seek(0, os.SEEK_END)
    try:
        while content:
            content = content[file.write(content) :]
    except OSError:
        with suppress(OSError):
            file.truncate(end)
        raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises OSError that names `path` and the remedy, for any of the system in this block."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # one with a message of its own
            raise
        raise OSError(unwritten(path, error)) from error


def check_writable(folder: Path, remedy: str) -> None:
    """Raises OSError that names the folder and the remedy unless files can be written there.

    The folder, and those on the way, need not be there yet.
    """
    nearest = next(f for f in (folder, *folder.absolute().parents) if os.path.lexists(f))
    try:
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(b"0")
            file.flush()
    except OSError as error:
        raise OSError(f"{folder} cannot be written to ({error.strerror}); {remedy}") from error


def in_words(error: OSError) -> str:
    """What to say of an error of the system that nobody has explained: the file and the remedy."""
    name = error.filename or "a file"
    if error.errno in UNWRITABLE:
        return unwritten(name, error)
    remedy = REMEDIES.get(error.errno, "Mend that, and start the same command again")
    return f"{name}: {error.strerror}. {remedy}"


def unwritten(path: Path | str, error: OSError) -> str:
    """What to say of a file that the system does not let us write."""
    mend = "Free disk space or mend the folder, and start the same command again"
    return (
        f"{path} could not be written ({error.strerror}); nothing that was there before is lost. "
        f"{REMEDIES.get(error.errno, mend)}"
    )


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    # Bytes of a command line that are no UTF-8 are half pairs of UTF-16, which JSON can escape.
    replace_file(path, text.encode(errors="backslashreplace"))


def write_png(path: Path, image: Image.Image) -> None:
    """Write a picture, whole or not at all."""
    image.save(content := io.BytesIO(), format="PNG")
    replace_file(path, content.getvalue())


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write a compressed .npz file whole or not at all."""
    np.savez_compressed(content := io.BytesIO(), **arrays)
    replace_file(path, content.getvalue())


def read_npz(path: Path, remedy: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, none of which may hold objects.

    Raises ValueError that names the file and the remedy.
    """
    try:
        return read_arrays(path)
    except Exception as error:  # a damaged file can raise nearly anything
        raise ValueError(f"{path} cannot be read ({error}); {remedy}") from error
