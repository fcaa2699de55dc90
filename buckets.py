"""Objects in buckets, such as gs://bucket/pets.zip, by fsspec, and copies of them on the disk."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from uuid import uuid4

# By how addresses begin: the package that fsspec needs.
PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs", "memory": "fsspec"}
PATTERN = "*?[{"
TAGS = ("ETag", "etag", "md5Hash", "created")  # of an object; the first says whether it was changed


class Place(NamedTuple):
    """A folder of a bucket. fs: of fsspec. path: its name there. address: as a user writes it."""

    fs: Any
    path: str
    address: str


def is_address(path: str | Path) -> bool:
    """Whether a path is the address of a bucket, also after pathlib made gs:/ of gs://."""
    kind, colon, rest = str(path).partition(":")
    return bool(colon) and rest.startswith("/") and len(kind) > 1 and kind.isalnum()


def address_of(path: str | Path) -> str:
    """An address as a user writes it, with two slashes."""
    kind, _, rest = str(path).partition(":")
    return f"{kind}://{rest.lstrip('/').rstrip('/')}"


def open_place(path: str | Path, name: str) -> Place:
    """The folder at an address. name: of the flag or field, for messages.

    Raises ValueError for a kind of address that is not known, or whose package is missing.
    """
    import fsspec

    address = address_of(path)
    kind = address.partition(":")[0]
    if kind not in PACKAGES:
        raise ValueError(f"{name}={address}: addresses begin with {', '.join(PACKAGES)}")
    try:
        fs, inside = fsspec.core.url_to_fs(address)
    except ImportError as error:
        package = PACKAGES[kind]
        raise ValueError(
            f"{name}={address} needs {package}; install it by: pip install {package}"
        ) from error
    return Place(fs, inside.rstrip("/"), address)


def mirror_of(address: str, root: Path) -> Path:
    """The folder below root that mirrors an address."""
    parts = urlsplit(address)
    return root.joinpath("buckets", parts.scheme, parts.netloc, *parts.path.strip("/").split("/"))


@contextmanager
def reaching(place: Place, rest: str = "") -> Iterator[None]:
    """Raises OSError that names the address, for any error of a bucket."""
    try:
        yield
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise OSError(
            f"{place.address} cannot be read or written ({reason}){rest}; check the name, the "
            "network and your credentials, and start the same command again"
        ) from error


def fetch(place: Place, name: str, file: Path, modified: int | None = None) -> None:
    """Copy an object to a file, whole or not at all. modified: time of the file, in ns."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{uuid4().hex[:8]}.tmp")
    try:
        place.fs.get_file(f"{place.path}/{name}" if name else place.path, str(temporary))
        if modified is not None:
            os.utime(temporary, ns=(modified, modified))
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def fetched(path: str, root: Path, name: str) -> str:
    """A copy below root of the object or folder at an address; other paths as they are.

    A pattern copies the folder in which it looks. Objects that have not changed are not copied
    again. name: of the field, for messages. Raises FileNotFoundError, ValueError and OSError.
    """
    if not is_address(path):
        return path
    address = address_of(path)
    cut = min((i for i in map(address.find, PATTERN) if i >= 0), default=len(address))
    base = address if cut == len(address) else address[: address.rindex("/", 0, cut)]
    place, local = open_place(base, name), mirror_of(base, root)
    with reaching(place):
        found = place.fs.find(place.path, detail=True)
    if not found:
        raise FileNotFoundError(f"{name}: {base} has no objects; check the address")
    stamps = {each.removeprefix(place.path).strip("/"): stamp(found[each]) for each in found}
    with alone(local):
        copy_objects(place, local, stamps)
    return str(local) + address.removeprefix(base)


@contextmanager
def alone(local: Path) -> Iterator[None]:
    """Waits until no other process copies to this place, where the file system has locks."""
    local.parent.mkdir(parents=True, exist_ok=True)
    with local.with_name(f"{local.name}.objects.lock").open("ab") as lock:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def copy_objects(place: Place, local: Path, stamps: Mapping[str, list[str]]) -> None:
    """Copy the objects whose stamps have changed, remove those that are gone, and keep the stamps.

    stamps: name of an object -> `stamp`. Raises OSError that names the place.
    """
    record, known = local.with_name(f"{local.name}.objects.json"), {}
    with suppress(FileNotFoundError, ValueError):
        known = json.loads(record.read_bytes())
    with reaching(place):
        for each, now in stamps.items():
            file = local / each if each else local
            if known.get(each) != now or not file.is_file():
                fetch(place, each, file)
    for each in {*known} - {*stamps}:
        (local / each).unlink(missing_ok=True)
        with suppress(OSError):  # a folder that still has files
            os.removedirs((local / each).parent)
    temporary = record.with_suffix(".tmp")
    temporary.write_text(json.dumps(stamps))
    temporary.replace(record)


def stamp(about: dict[str, Any]) -> list[str]:
    """What changes with the content of an object: its size and the tag of its version."""
    tag = next((about[each] for each in TAGS if each in about), "")
    return [str(about["size"]), str(tag)]
