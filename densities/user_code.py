"""Python files of a user: run only if the user has named their path in this process.

A record of a run is no permission, since the file may have come with it from somewhere else.
"""

import hashlib
import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

_permitted: set[Path] = set()


class Code(NamedTuple):
    """A file that has run. digest: SHA-256 of its text."""

    module: ModuleType
    digest: str


def permit(path: str | Path) -> None:
    """Allow this process to run a file, because its user has named it."""
    _permitted.add(Path(path).resolve())


def run_file(path: Path, field: str, what: str, needed: Sequence[str]) -> Code:
    """The module of a file, which runs once for each text that it has.

    field: how the user names it, such as "data.name=density:FILE.py". what: what it is, in words.
    needed: names that it must define. Raises ValueError for a file that nobody has named or that
    cannot be imported, and FileNotFoundError.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{field}: there is no file {path}")
    if path.resolve() not in _permitted:
        raise ValueError(
            f"{what} of this run is code in {path}, which runs only if you name it: add "
            f"--config.{field}"
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    module = _run(path.resolve(), digest)
    missing = [name for name in needed if not hasattr(module, name)]
    if missing:
        raise ValueError(f"{path} does not define {' and '.join(missing)}")
    return Code(module, digest)


@cache
def _run(path: Path, digest: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"user_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def check_dimension(path: Path, dim: object) -> int:
    """The `dim` of a file. Raises ValueError unless it is a whole number of 1 or more."""
    if not isinstance(dim, int) or dim < 1:
        raise ValueError(f"{path}: dim={dim!r} must be a whole number of 1 or more")
    return dim
