"""What a folder of decoded arrays should hold, kept beside them as manifest.json.

    {"seal": "...", "format": 1, "folder": "NAME-KEY", "image_shape": [32, 32, 3],
     "classes": ["cat", ...],
     "splits": {"train": {"identity": {"count": 50000, "images_sha256": "...", ...},
                          "stamps": [[153600128, 1700000000000000000], ...]}}}

A split is in it once its files are complete. Stamps are the size and the modification time of the
files of images and of labels: a file whose stamp has changed is hashed again. `folder` has the key
of the data and so binds the manifest to them; `seal` is a hash of all the rest.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from data.files import whole_file

MANIFEST = "manifest.json"
HASHES = ("images_sha256", "labels_sha256")  # in the identity of a split


Stamp = list[int]


class DamagedError(ValueError):
    """A file of decoded arrays is not what it should be; decoding again mends it."""


class Record(NamedTuple):
    """What a manifest says of a split: `split_identity` and the stamps of its files."""

    identity: Mapping[str, Any]
    stamps: list[Stamp]


def stamp(file: Path) -> Stamp:
    """Size in bytes and modification time (ns) of a file; [-1, -1] if it is missing."""
    try:
        stat = file.stat()
    except FileNotFoundError:
        return [-1, -1]
    return [stat.st_size, stat.st_mtime_ns]


def read_manifest(path: Path, header: Mapping[str, Any]) -> dict[str, Record] | None:
    """The splits of a manifest; None if there is no file.

    header: the fields that it must have. Raises DamagedError if it is no whole manifest, or one of
    other data.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} cannot be read ({error})") from error
    if not isinstance(content, dict) or content.pop("seal", None) != seal_of(content):
        raise DamagedError(f"{path} is damaged, or was edited")
    differing = [field for field in header if content.get(field) != header[field]]
    if differing:
        raise DamagedError(f"{path} belongs to other data: {', '.join(differing)} differ")
    try:
        return {name: record_of(split) for name, split in content["splits"].items()}
    except (TypeError, KeyError, AttributeError) as error:
        raise DamagedError(f"{path} does not have the fields of a manifest ({error})") from error


def record_of(split: Mapping[str, Any]) -> Record:
    """The record in a split of a manifest. Raises TypeError or KeyError for other fields."""
    record = Record(**split)
    count, hashes = record.identity["count"], [record.identity[name] for name in HASHES]
    if type(count) is not int or not all(isinstance(value, str) for value in hashes):
        raise TypeError("an identity of another type")
    return record


def write_manifest(path: Path, header: Mapping[str, Any], records: Mapping[str, Record]) -> None:
    """Write the manifest of these splits whole or not at all."""
    splits = {name: record._asdict() for name, record in records.items()}
    content = {**header, "splits": splits}
    with whole_file(path) as file:
        file.write(json.dumps({"seal": seal_of(content), **content}, indent=2).encode() + b"\n")


def seal_of(content: Any) -> str:
    """sha256 of JSON values, the same whatever the order of the fields."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
