"""Compiled programs kept on disk, so that the next start of a run, or of its like, finds them.

They are native code, which JAX runs as it finds it. So a folder is used only if nobody but this
user and root can have put anything there, or can put another folder in its place.
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

from fewstep.modes.request import Request

FOLDER = ".compiled"
OFF = "off"
PRIVATE = 0o700  # mode of the folder when it is made
WRITABLE, ENTERABLE = stat.S_IWGRP | stat.S_IWOTH, stat.S_IXGRP | stat.S_IXOTH
MOST_LINKS = 40  # on the way to a folder, as for Linux


def enable_compilation_cache(request: Request) -> None:
    """Let JAX keep what it compiles, by default in a folder beside the run's.

    A folder that others could write to is not used, with a warning. A folder that the user has told
    JAX ($JAX_COMPILATION_CACHE_DIR) stays, and so do JAX's other settings.
    """
    folder = cache_folder(request)
    if folder is None or jax.config.jax_compilation_cache_dir is not None:
        return
    folder = folder.absolute()
    if request.config is None and not folder.parent.exists():
        return  # there is no run
    try:
        fault = path_fault(folder) or make_folder(folder)
    except OSError as error:
        fault = f"{error.filename or folder}: {error.strerror}"
    if fault:
        print(
            f"warning: compiled programs are not kept: {fault}. They are native code: mend that, "
            "or name a folder of your own by --config.compilation_cache=FOLDER",
            file=sys.stderr,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def cache_folder(request: Request) -> Path | None:
    """Where compiled programs are kept: None without a run, if turned off, or if not writable."""
    asked = "" if request.config is None else request.config.compilation_cache
    if asked == OFF or not (asked or request.workdir):
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
    """Why somebody else could put another folder in the place of this one; "" if nobody can."""
    for entry in path_entries(folder):
        found = entry.lstat()
        if found.st_uid not in (0, os.geteuid()):
            return f"{entry} belongs to {user_name(found.st_uid)}; choose another place"
        if stat.S_ISLNK(found.st_mode) or found.st_mode & stat.S_ISVTX or entry == folder:
            continue
        if found.st_mode & stat.S_IWOTH:
            return f"{entry} can be written to by everybody; chmod o-w {quote(str(entry))}"
        if found.st_mode & stat.S_IWGRP and not is_own_group(found.st_gid):
            return f"{entry} can be written to by its group; chmod g-w {quote(str(entry))}"
    return ""


def path_entries(path: Path) -> Iterator[Path]:
    """Every folder and link that leads to a path, which is absolute, as far as they exist."""
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
    """Why what is in the folder may be somebody else's; "" if it is this user's."""
    found = folder.stat()
    if not stat.S_ISDIR(found.st_mode):
        return f"{folder} is no folder; move it away"
    if found.st_uid != os.geteuid():
        return f"{folder} belongs to {user_name(found.st_uid)}; delete it"
    if found.st_mode & WRITABLE:
        return f"{folder} can be written to by others; delete it (chmod keeps what they put there)"
    for parent, folders, files in os.walk(folder):
        for entry in (Path(parent, name) for name in (*folders, *files)):
            with suppress(FileNotFoundError):  # another process may have deleted it
                inside = entry.lstat()
                loose = inside.st_mode & WRITABLE and found.st_mode & ENTERABLE
                if inside.st_uid != found.st_uid or loose:
                    return f"{entry} may be somebody else's; delete {folder}"
    return ""


def is_own_group(gid: int) -> bool:
    """Whether a group is that of this user alone, as many systems give one to each user."""
    try:
        own, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    alone = set(group.gr_mem) <= {own.pw_name}
    return gid == own.pw_gid and group.gr_name == own.pw_name and alone


def user_name(uid: int) -> str:
    """The name of a user, or the number of one without a name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
