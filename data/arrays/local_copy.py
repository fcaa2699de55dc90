"""Copies decoded arrays to a disk of the host, once for all its processes.

    LOCAL/arrays/NAME-KEY/   as in data/arrays/array_cache.py, with a manifest of its own

Each shard is copied and checked against the source's manifest, so an interrupted copy continues.
An unchanged copy is not copied again.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fewstep.data.arrays.array_cache import REMEDY, decode, open_dataset
from fewstep.data.arrays.dataset import Dataset
from fewstep.data.arrays.files import UNLOCKED, claimed, elsewhere, stored_file
from fewstep.data.arrays.manifest import (
    MANIFEST,
    DamagedError,
    Manifest,
    Record,
    ShardRecord,
    Shards,
    read_manifest,
    write_manifest,
)
from fewstep.data.arrays.shards import (
    GIB,
    Shard,
    SplitFiles,
    check_shard_space,
    image_bytes,
    is_unchanged_shard,
    verify_shard,
    verify_split,
)
from fewstep.data.arrays.undecoded import (
    Undecoded,
    array_folder,
    manifest_header,
    recorded_splits,
    split_files,
)
from fewstep.files import remove_leftovers
from fewstep.progress import note, progress_bar

FIELD = "data.local_dir"
COPIES = 4  # shards copied at once; several streams read a network disk faster than one


def copy_arrays(data: Undecoded, root: Path, local: Path) -> Dataset:
    """The data set, read from a copy under `local` of its arrays under `root`.

    Raises ValueError if arrays changed since they were decoded, OSError if the disk is too full.
    """
    source, target = array_folder(data, root), array_folder(data, local)
    dataset = decode(data, root)
    if source == target:
        return dataset
    records = {
        name: record or verify_split(split_files(data, source, name), None)
        for name, record in recorded_splits(data, source).items()
    }
    with claimed(target, FIELD) as locked:
        if locked:
            remove_leftovers(target, alone=True)
        here = copied_shards(data, target, records)
        missing = [
            shard
            for name, shards in here.items()
            for shard, copy in zip(
                recorded_shards(data, target, records, name), shards, strict=True
            )
            if copy is None
        ]
        if missing:
            size = image_bytes(missing, data.stored)
            check_shard_space(missing, f"{data.name} there", data.stored, f"choose another {FIELD}")
            note(f"copying {size / GIB:.2f} GiB of {data.name} to {target}")
        try:
            copied = dict(copy_missing_shards(data, source, target, records, here))
        except OSError as error:
            there = error.filename and not Path(error.filename).is_relative_to(target)
            if there or error.errno not in UNLOCKED:
                raise
            reason = f"{target} cannot be written to ({error.strerror}); {elsewhere(FIELD)}"
            raise OSError(reason) from error
    return open_dataset(data, target, copied)


def recorded_shards(
    data: Undecoded, folder: Path, records: Mapping[str, Record], name: str
) -> tuple[Shard, ...]:
    """The shards of a split in `folder`, divided as in its record."""
    return split_files(data, folder, name, records[name]).shards


def copied_shards(
    data: Undecoded, target: Path, records: Mapping[str, Record]
) -> dict[str, list[ShardRecord | None]]:
    """Records of the shards that are copied already, by split; None for missing ones."""
    try:
        manifest = read_manifest(target / MANIFEST, manifest_header(data, target))
    except DamagedError:
        manifest = None
    splits, unfinished = manifest or Manifest({}, {})
    found = {}
    for name, record in records.items():
        own: Shards = splits[name].shards if name in splits else unfinished.get(name, ())
        own = own if len(own) == len(record.shards) else [None] * len(record.shards)
        shards = recorded_shards(data, target, records, name)
        found[name] = [
            copy
            if copy and copy.identity == source.identity and is_unchanged_shard(shard, copy)
            else None
            for shard, copy, source in zip(shards, own, record.shards, strict=True)
        ]
    return found


def copy_missing_shards(
    data: Undecoded,
    source: Path,
    target: Path,
    records: Mapping[str, Record],
    here: dict[str, list[ShardRecord | None]],
) -> Iterator[tuple[str, Record]]:
    """Copy missing shards. Yields the record of each split once the target's manifest has it.

    here: records of the shards in the target, which this function completes.
    """

    def write_copied() -> None:
        whole = {n: Record(records[n].identity, tuple(s)) for n, s in here.items() if all(s)}
        parts = {n: s for n, s in here.items() if n not in whole and any(s)}
        write_manifest(
            target / MANIFEST, manifest_header(data, target), Manifest(whole, parts), FIELD
        )

    for name, shards in here.items():
        places = [place for place, copy in enumerate(shards) if copy is None]
        for place, copied in copy_shards(data, source, target, records, name, places):
            shards[place] = copied
            write_copied()
        yield name, Record(records[name].identity, tuple(shards))


def copy_shards(
    data: Undecoded,
    source: Path,
    target: Path,
    records: Mapping[str, Record],
    name: str,
    places: Sequence[int],
) -> Iterator[tuple[int, ShardRecord]]:
    """Copy the shards at these places, check them, and yield their places and records."""
    files = split_files(data, target, name, records[name])
    there = recorded_shards(data, source, records, name)

    def copy(place: int) -> tuple[int, ShardRecord]:
        return place, copy_shard(files, there[place], place, records[name].shards[place])

    with ThreadPoolExecutor(COPIES) as threads:
        done = threads.map(copy, places)
        yield from progress_bar(done, total=len(places), desc=f"copying {files.description}")


def copy_shard(files: SplitFiles, there: Shard, place: int, record: ShardRecord) -> ShardRecord:
    """Copy both files of a shard. Raises ValueError if they do not match its record."""
    shard = files.shards[place]
    for old, new in ((there.images, shard.images), (there.labels, shard.labels)):
        with old.open("rb") as read, stored_file(new, FIELD) as written:
            shutil.copyfileobj(read, written, 2**24)
    try:
        return verify_shard(files, shard, record)
    except DamagedError as error:
        raise ValueError(f"{error}, as in {there.images.parent}; {REMEDY}") from error
