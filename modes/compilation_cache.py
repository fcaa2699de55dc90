"""Keeps compiled programs on disk, so that the next start of the same or a similar run is faster.

JAX runs this native code without checking it. So Fewstep uses a folder only if this user and root
alone could write to it, and if nobody else can replace it by another folder.
"""

import grp
import os
import pwd
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from shlex import quote

import jax

from fewstep.buckets import is_address
from fewstep.modes.request import Request

FOLDER = ".compiled"
FIELD = "--config.compilation_cache=FOLDER"
OFF = "off"
PRIVATE = 0o700  # permissions of a new folder
WRITABLE, ENTERABLE = stat.S_IWGRP | stat.S_IWOTH, stat.S_IXGRP | stat.S_IXOTH
MOST_LINKS = 40  # most symbolic links in a path, as in Linux


def enable_compilation_cache(request: Request, trains: bool) -> None:
    """Make JAX keep compiled programs, by default in a folder beside that of the run.

    Makes the default folder only for a run that exists or that the mode trains. Warns and keeps
    none if others could write to the folder. $JAX_COMPILATION_CACHE_DIR and the other settings of
    JAX take precedence.
    """
    folder = cache_folder(request)
    if folder is None or jax.config.jax_compilation_cache_dir is not None:
        return
    folder = folder.absolute()
    named = request.config is not None and request.config.compilation_cache
    has_run = trains or (request.workdir is not None and request.workdir.exists())
    if not (named or has_run or os.path.lexists(folder)):
        return
    try:
        fault = path_fault(folder) or make_folder(folder)
    except OSError as error:
        fault = f"{error.filename or folder}: {error.strerror}"
    if fault:
        setting = "$JAX_COMPILATION_CACHE_DIR" if request.config is None else FIELD
        print(
            f"warning: compiled programs are not kept: {fault}; or choose a private folder by "
            f"{setting}, where others cannot write native code",
            file=sys.stderr,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def cache_folder(request: Request) -> Path | None:
    """Return the folder for compiled programs; None without a run, if off, or if not writable."""
    asked = "" if request.config is None else request.config.compilation_cache
    has_folder = request.workdir and not is_address(request.workdir)
    if asked == OFF or not (asked or has_folder):
        return None
    folder = Path(asked).expanduser() if asked else request.workdir.absolute().parent / FOLDER
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return folder if os.access(nearest, os.W_OK) else None


def make_folder(folder: Path) -> str:
    """Create the folder, for this user alone, and return its fault; "" if it has none."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=PRIVATE, exist_ok=True)
    return path_fault(folder) or folder_fault(folder)


def path_fault(folder: Path) -> str:
    """Return why another user could replace this folder by another; "" if nobody can."""
    for entry in path_entries(folder):
        found = entry.lstat()
        if found.st_uid not in (0, os.geteuid()):
            return f"{entry} belongs to {user_name(found.st_uid)}; choose another folder"
        if stat.S_ISLNK(found.st_mode) or found.st_mode & stat.S_ISVTX or entry == folder:
            continue
        if found.st_mode & stat.S_IWOTH:
            return f"everybody can write to {entry}; chmod o-w {quote(str(entry))}"
        if found.st_mode & stat.S_IWGRP and not is_own_group(found.st_gid):
            return f"its group can write to {entry}; chmod g-w {quote(str(entry))}"
    return ""


def path_entries(path: Path) -> Iterator[Path]:
    """Yield every existing folder and link that leads to an absolute path."""
    here, rest, links = Path(path.anchor), list(path.parts[1:]), 0
    yield here
    while rest:
        name = rest.pop(0)
        entry = here.parent if name == ".." else here / name
        if not os.path.lexists(entry):
            return
        yield entry
        if not entry.is_symlink():
            here = entry
            continue
        links += 1
        if links > MOST_LINKS:
            raise OSError(0, "too many symbolic links", str(path))
        target = entry.readlink()
        here = Path(target.anchor) if target.is_absolute() else here
        rest = [part for part in target.parts if part != target.anchor] + rest


def folder_fault(folder: Path) -> str:
    """Return why files in the folder may come from another user; "" if they cannot."""
    found = folder.stat()
    if not stat.S_ISDIR(found.st_mode):
        return f"{folder} is not a folder; move it away"
    if found.st_uid != os.geteuid():
        return f"{folder} belongs to {user_name(found.st_uid)}; delete it"
    if found.st_mode & WRITABLE:
        return f"others can write to {folder}; delete it (chmod would keep their files)"
    for parent, folders, files in os.walk(folder):
        for entry in (Path(parent, name) for name in (*folders, *files)):
            with suppress(FileNotFoundError):  # another process may have deleted the file
                inside = entry.lstat()
                loose = inside.st_mode & WRITABLE and found.st_mode & ENTERABLE
                if inside.st_uid != found.st_uid or loose:
                    return f"{entry} may come from another user; delete {folder}"
    return ""


def is_own_group(gid: int) -> bool:
    """Whether this user is the only member of a group; many systems give each user such a group."""
    try:
        own, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    alone = set(group.gr_mem) <= {own.pw_name}
    return gid == own.pw_gid and group.gr_name == own.pw_name and alone


def user_name(uid: int) -> str:
    """Return the name of a user, or "user UID" without a name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
