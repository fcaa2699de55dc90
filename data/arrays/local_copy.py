"""Decoded arrays copied to a disk of the host, once for all of its processes.

    LOCAL/arrays/NAME-KEY/   as in data/arrays/array_cache.py, with a manifest of its own

Shards are copied one by one and compared with the manifest that they come from, so an interrupted
copy goes on. A copy is not copied again while nothing is written to it.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fewstep.data.arrays.array_cache import (
    REMEDY,
    Undecoded,
    array_folder,
    decode,
    manifest_header,
    open_dataset,
    recorded_splits,
    split_files,
)
from fewstep.data.arrays.dataset import Dataset
from fewstep.data.arrays.files import UNLOCKED, claimed, elsewhere, remove_leftovers, whole_file
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
from fewstep.progress import note, progress_bar

FIELD = "data.local_dir"
COPIES = 4  # shards copied at once: a network disk gives several streams more than one


def copy_arrays(data: Undecoded, root: Path, local: Path) -> Dataset:
    """The data set, read from a copy under `local` of its arrays under `root`.

    Raises ValueError for arrays that are not what was decoded, OSError if the disk has no room.
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
            remove_leftovers(target)
        here = copied_shards(data, target, records)
        missing = [
            shard
            for name, shards in here.items()
            for shard, of in zip(recorded_shards(data, target, records, name), shards, strict=True)
            if of is None
        ]
        if missing:
            size = image_bytes(missing, data.image_shape)
            check_shard_space(
                missing, f"{data.name} there", data.image_shape, f"choose another {FIELD}"
            )
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
    """The shards of a split in a folder that has it as the records have."""
    return split_files(data, folder, name, records[name]).shards


def copied_shards(
    data: Undecoded, target: Path, records: Mapping[str, Record]
) -> dict[str, list[ShardRecord | None]]:
    """The shards that are copied already, by split; None for those that are not."""
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
            of if of and of.identity == there.identity and is_unchanged_shard(shard, of) else None
            for shard, of, there in zip(shards, own, record.shards, strict=True)
        ]
    return found


def copy_missing_shards(
    data: Undecoded,
    source: Path,
    target: Path,
    records: Mapping[str, Record],
    here: dict[str, list[ShardRecord | None]],
) -> Iterator[tuple[str, Record]]:
    """Copy what is not there; the record of each split, in the target's manifest before the next.

    here: what is there; it is filled.
    """

    def record_what_is_there() -> None:
        whole = {n: Record(records[n].identity, tuple(s)) for n, s in here.items() if all(s)}
        parts = {n: s for n, s in here.items() if n not in whole and any(s)}
        write_manifest(
            target / MANIFEST, manifest_header(data, target), Manifest(whole, parts), FIELD
        )

    for name, shards in here.items():
        places = [place for place, of in enumerate(shards) if of is None]
        for place, copied in copy_shards(data, source, target, records, name, places):
            shards[place] = copied
            record_what_is_there()
        yield name, Record(records[name].identity, tuple(shards))


def copy_shards(
    data: Undecoded,
    source: Path,
    target: Path,
    records: Mapping[str, Record],
    name: str,
    places: Sequence[int],
) -> Iterator[tuple[int, ShardRecord]]:
    """The shards at these places, copied and compared with their records."""
    files = split_files(data, target, name, records[name])
    there = recorded_shards(data, source, records, name)

    def copy(place: int) -> tuple[int, ShardRecord]:
        return place, copy_shard(files, there[place], place, records[name].shards[place])

    with ThreadPoolExecutor(COPIES) as threads:
        done = threads.map(copy, places)
        yield from progress_bar(done, total=len(places), desc=f"copying {files.description}")


def copy_shard(files: SplitFiles, there: Shard, place: int, record: ShardRecord) -> ShardRecord:
    """Copy both files of a shard. Raises ValueError if they are not those of its record."""
    shard = files.shards[place]
    for old, new in ((there.images, shard.images), (there.labels, shard.labels)):
        with old.open("rb") as read, whole_file(new, FIELD) as written:
            shutil.copyfileobj(read, written, 2**24)
    try:
        return verify_shard(files, shard, record)
    except DamagedError as error:
        raise ValueError(f"{error}, as {there.images.parent} has it: {REMEDY}") from error
