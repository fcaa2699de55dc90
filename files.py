"""Files that are written whole or not at all, and arrays read from them."""

import errno
import fcntl
import io
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from fewstep.weights.archives import read_arrays

# The disk, or a user's share of it, is full; it can be read only; a file would be too large.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
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

    Its temporary name is always the same, so that the next writer takes over what a killed one has
    left; a lock, which the system takes from a process that ends, keeps living ones apart. Folders
    on the way are made. Raises OSError that names `path`.
    """
    fresh = path.with_name(f".{path.name}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(fresh) as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.replace(fresh, path)
            except BaseException:
                fresh.unlink(missing_ok=True)
                raise


@contextmanager
def locked(path: Path) -> Iterator[BinaryIO]:
    """An empty file of this writer alone; one that another still writes is waited for."""
    while True:
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            if has_name(file, path):  # else the other writer has moved or removed it
                file.truncate(0)
                yield file
                return


def has_name(file: BinaryIO, path: Path | str, folder: int | None = None) -> bool:
    """Whether an open file is the one that has this name now, in an open folder if given."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path, dir_fd=folder))
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
