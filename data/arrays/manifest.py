"""The manifest of a folder of decoded arrays, which says what the folder must hold.

    {"seal": "...", "format": 1, "folder": "NAME-KEY", "image_shape": [32, 32, 3],
     "classes": ["cat", ...],
     "splits": {"train": {"identity": {"count": 50000, "images_sha256": "...", ...},
                          "stamps": [[153600128, 1700000000000000000], ...]}},
     "unfinished": {"test": [{"identity": ..., "stamps": ...}, null, ...]}}

A split is listed once its files are complete. Stamps are the sizes and modification times of its
image and label files; a file whose stamp has changed is hashed again. A split of several shards
(data/arrays/shards.py) has "shards" in place of "stamps": the identity and stamps of each. Shards
of an incomplete split are in "unfinished", where null is a missing shard. `folder` contains the key
of the data, and so binds the manifest to them. `seal` is a hash of the other fields.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.data.arrays.files import FIELD, whole_file
from fewstep.messages import differences

MANIFEST = "manifest.json"
HASHES = ("images_sha256", "labels_sha256")  # fields of a split's identity


Stamp = list[int]


class DamagedError(ValueError):
    """A file of decoded arrays is damaged; decoding again repairs it."""


class ShardRecord(NamedTuple):
    """A shard in a manifest: its `split_identity`, and the stamps of its files."""

    identity: Mapping[str, Any]
    stamps: list[Stamp]


class Record(NamedTuple):
    """A split in a manifest: its identity, and the records of its shards."""

    identity: Mapping[str, Any]
    shards: tuple[ShardRecord, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Images of each shard."""
        return tuple(shard.identity["count"] for shard in self.shards)

    @property
    def plain(self) -> dict[str, Any]:
        """The record as JSON values."""
        if len(self.shards) == 1:
            return self.shards[0]._asdict()
        return {"identity": self.identity, "shards": [shard._asdict() for shard in self.shards]}


# The shards of a split in order; None for a missing one.
Shards = Sequence[ShardRecord | None]


class Manifest(NamedTuple):
    """Records of the complete splits by name, and the shards of incomplete ones."""

    splits: dict[str, Record]
    unfinished: dict[str, Shards]


def file_stamp(file: Path) -> Stamp:
    """Size in bytes and modification time (ns) of a file; [-1, -1] if it is missing."""
    try:
        stat = file.stat()
    except FileNotFoundError:
        return [-1, -1]
    return [stat.st_size, stat.st_mtime_ns]


def read_manifest(path: Path, header: Mapping[str, Any]) -> Manifest | None:
    """The manifest in a file; None if there is no file.

    header: the fields that it must have. Raises DamagedError if it is damaged or belongs to other
    data.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} cannot be read ({error})") from error
    if not isinstance(content, dict) or content.pop("seal", None) != seal_hash(content):
        raise DamagedError(f"{path} is damaged or was edited")
    found = differences(header, {field: content.get(field) for field in header})
    if found:
        fields = ", ".join(difference.field for difference in found)
        raise DamagedError(f"{path} belongs to other data: {fields} differ")
    try:
        return Manifest(
            {name: parse_record(split) for name, split in content["splits"].items()},
            {
                name: [shard and parse_shard(shard) for shard in shards]
                for name, shards in content.get("unfinished", {}).items()
            },
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise DamagedError(f"{path} does not have the fields of a manifest ({error})") from error


def parse_record(split: Mapping[str, Any]) -> Record:
    """The record of a split from JSON values. Raises TypeError or KeyError for other fields."""
    if "shards" not in split:
        return one_shard_record(parse_shard(split))
    record = Record(**{**split, "shards": tuple(map(parse_shard, split["shards"]))})
    check_identity(record.identity)
    if sum(record.counts) != record.identity["count"]:
        raise TypeError("the counts of the shards do not add up to that of the split")
    return record


def one_shard_record(shard: ShardRecord) -> Record:
    """The record of a split that has one shard."""
    return Record(shard.identity, (shard,))


def parse_shard(values: Mapping[str, Any]) -> ShardRecord:
    """The record of a shard from JSON values. Raises TypeError or KeyError for other fields."""
    shard = ShardRecord(**values)
    check_identity(shard.identity)
    return shard


def check_identity(identity: Mapping[str, Any]) -> None:
    """Raises TypeError or KeyError unless `identity` has the fields of `split_identity`."""
    hashes = [identity[name] for name in HASHES]
    if type(identity["count"]) is not int or not all(isinstance(value, str) for value in hashes):
        raise TypeError("an identity has values of other types")


def write_manifest(
    path: Path, header: Mapping[str, Any], manifest: Manifest, field: str = FIELD
) -> None:
    """Write a manifest whole or not at all. field: the config field that sets the folder."""
    content = {**header, "splits": {name: record.plain for name, record in manifest.splits.items()}}
    if manifest.unfinished:
        content["unfinished"] = {
            name: [shard and shard._asdict() for shard in shards]
            for name, shards in manifest.unfinished.items()
        }
    with whole_file(path, field) as file:
        file.write(json.dumps({"seal": seal_hash(content), **content}, indent=2).encode() + b"\n")


def seal_hash(content: Any) -> str:
    """SHA-256 of JSON values, which does not depend on the order of fields."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
