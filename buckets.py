"""Objects in buckets, such as gs://bucket/pets.zip, by fsspec, and copies of them on the disk."""

import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from uuid import uuid4

# By how addresses begin: the package that fsspec needs.
PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs", "memory": "fsspec"}
PATTERN = "*?[{"
TAGS = ("ETag", "etag", "md5Hash", "created")  # of an object; the first says whether it was changed
COPIES = 8  # objects that are fetched at once; each thread may use the same file system of fsspec
BATCH = 1000  # objects that wait for a thread, which bounds the memory
RECORD_SECONDS = 30.0  # after which a copy keeps what it has, since a kill leaves no time for that

Stamps = Mapping[str, list[str]]  # `stamp` by the name of an object in its place, "" for the place


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
    stamps = object_stamps(place, found, name)
    if not stamps:
        raise FileNotFoundError(f"{name}: {base} has no objects; check the address")
    with alone(local):
        copy_objects(place, local, stamps)
    return str(local) + address.removeprefix(base)


def object_stamps(place: Place, found: Mapping[str, dict[str, Any]], name: str) -> Stamps:
    """The stamps of the objects that fsspec has found at a place. name: of the field, for messages.

    Leaves out names that end in `/`: such an object, without content, stands for a folder. Raises
    ValueError for a name that leads out of the folder of the copies.
    """
    stamps = {}
    for path, about in found.items():
        inside = path.removeprefix(place.path).removeprefix("/")
        if inside.startswith("/") or ".." in inside.split("/"):
            raise ValueError(
                f"{name}: the object {inside!r} of {place.address} leads out of the folder of the "
                "copies; rename it"
            )
        if not path.endswith("/"):
            stamps[inside] = stamp(about)
    return stamps


@contextmanager
def alone(local: Path) -> Iterator[None]:
    """Waits until no other process copies to this place, where the file system has locks."""
    local.parent.mkdir(parents=True, exist_ok=True)
    with local.with_name(f"{local.name}.objects.lock").open("ab") as lock:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def copy_objects(place: Place, local: Path, stamps: Stamps) -> None:
    """Copy the objects whose stamps have changed, remove those that are gone, and keep the stamps.

    A copy that is broken off keeps those of the objects that it has copied. Raises OSError that
    names the place.
    """
    record = local.with_name(f"{local.name}.objects.json")
    known = read_stamps(record)
    remove_copies(local, {*known} - {*stamps})
    kept = {each: known[each] for each in stamps if each in known}
    changed = [e for e, now in stamps.items() if known.get(e) != now or not (local / e).is_file()]

    def copy(each: str) -> None:
        fetch(place, each, local / each)
        kept[each] = stamps[each]

    try:
        with reaching(place), ThreadPoolExecutor(COPIES) as threads:
            written = time.monotonic()
            for start in range(0, len(changed), BATCH):
                for _ in threads.map(copy, changed[start : start + BATCH]):
                    if time.monotonic() - written >= RECORD_SECONDS:
                        write_stamps(record, dict(kept))  # a copy, since threads go on
                        written = time.monotonic()
    finally:
        write_stamps(record, kept)


def read_stamps(record: Path) -> Stamps:
    """The stamps that a copy has kept; {} without any."""
    try:
        return json.loads(record.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}


def write_stamps(record: Path, stamps: Stamps) -> None:
    """Keep the stamps of the objects that are copied."""
    temporary = record.with_suffix(".tmp")
    temporary.write_text(json.dumps(stamps))
    temporary.replace(record)


def remove_copies(local: Path, names: Iterable[str]) -> None:
    """Remove the copies of objects that are gone, and folders without files."""
    for each in names:
        (local / each).unlink(missing_ok=True)
        with suppress(OSError):  # a folder that still has files
            os.removedirs((local / each).parent)


def stamp(about: dict[str, Any]) -> list[str]:
    """What changes with the content of an object: its size and the tag of its version."""
    tag = next((about[each] for each in TAGS if each in about), "")
    return [str(about["size"]), str(tag)]
