"""Decodes the shards that are missing, in one process or in several at once.

Process p of P decodes the shards p, p + P, ... of each split, and lists them in a manifest of its
own:

    manifest.json      of process 0; in the end, of the whole data set
    manifest-2.json    of process 2, until process 0 has joined the manifests

A start joins the manifests that an interruption has left, so shards that are done stay, however
many processes there were.
"""

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

from fewstep.data.arrays.files import UNLOCKED, elsewhere
from fewstep.data.arrays.group import ProcessGroup
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
    SplitFiles,
    check_shard_space,
    is_unchanged_shard,
    join_shards,
    write_shards,
)
from fewstep.data.arrays.undecoded import Undecoded, fresh_split_files, manifest_header
from fewstep.files import remove_leftovers
from fewstep.progress import note

OTHERS = "manifest-*.json"  # of the processes but the first
# Until a shared disk shows a host what another one has written.
VISIBLE_SECONDS, POLL_SECONDS = 60.0, 0.1

T = TypeVar("T")


def decode_missing(
    data: Undecoded,
    folder: Path,
    records: Mapping[str, Record],
    parts: Mapping[str, Shards],
    locked: bool,
    group: ProcessGroup,
) -> dict[str, Record]:
    """Records of all splits; decodes the shards that are missing. For the first process of a group.

    records: of the splits that are complete. parts: sound shards of other splits, in addition to
    those of an interrupted decoding. locked: whether no other job writes there.
    """
    begun = begin(data, folder, records, parts, locked)
    group.meet()
    decode_share(data, folder, begun, group)
    group.meet()
    completed = finish(data, folder, begun, locked, group)
    group.meet()
    return completed


def help_to_decode(data: Undecoded, folder: Path, group: ProcessGroup) -> None:
    """What `decode_missing` does, in the other processes of the group."""
    group.meet()
    path, header = folder / MANIFEST, manifest_header(data, folder)
    decode_share(data, folder, shown(lambda: read_manifest(path, header), folder), group)
    group.meet()
    group.meet()  # the first process has joined the shards
    shown(lambda: (found := read_manifest(path, header)) and not found.unfinished, folder)


def begin(
    data: Undecoded,
    folder: Path,
    records: Mapping[str, Record],
    parts: Mapping[str, Shards],
    locked: bool,
) -> Manifest:
    """Write what exists to the manifest: from now on, files that it does not list are not trusted.

    Raises OSError if nothing can be written, or if the disk is too full for the missing shards.
    """
    if locked:
        remove_leftovers(folder, alone=True)
    missing = [name for name in data.splits if name not in records]
    listed = join([*interrupted(data, folder), parts])
    begun = Manifest(dict(records), usable_shards(data, folder, listed, missing))
    try:
        write_manifest(folder / MANIFEST, manifest_header(data, folder), begun)
    except OSError as error:
        reason = error.strerror or error
        if missing and error.errno in UNLOCKED:
            raise OSError(f"{folder} cannot be written to ({reason}); {elsewhere()}") from error
        if missing:
            raise
        note_hashed_again(folder, error)
    remove(folder.glob(OTHERS) if missing else ())
    for name in missing:
        files, shards = fresh_split_files(data, folder, name), begun.unfinished[name]
        places = zip(files.shards, shards, strict=True)
        lacking = [shard for shard, listed in places if not is_unchanged_shard(shard, listed)]
        check_shard_space(lacking, files.description, files.stored, "choose another data.dir")
    return begun


def note_hashed_again(folder: Path, error: OSError) -> None:
    """Say what follows from a manifest that cannot be written."""
    reason = error.strerror or error
    note(f"{folder} cannot be written to ({reason}), so its arrays are hashed at every start")


def decode_share(data: Undecoded, folder: Path, begun: Manifest, group: ProcessGroup) -> None:
    """Decode this process's part of the shards; lists each in this process's manifest."""
    splits, header = (begun.splits if group.is_first else {}), manifest_header(data, folder)
    unfinished = {
        name: shards if group.is_first else own_places(shards, group)
        for name, shards in begun.unfinished.items()
    }
    for name, shards in unfinished.items():

        def keep(shards: Shards, name: str = name) -> None:
            listed = Manifest(splits, {**unfinished, name: shards})
            write_manifest(own_manifest(folder, group), header, listed)

        files = fresh_split_files(data, folder, name)
        unfinished[name] = write_shards(files, data.splits[name], shards, keep, group)
    if not group.is_first and unfinished:  # also if all of its shards were there
        write_manifest(own_manifest(folder, group), header, Manifest(splits, unfinished))


def finish(
    data: Undecoded, folder: Path, begun: Manifest, locked: bool, group: ProcessGroup
) -> dict[str, Record]:
    """Join the shards of all processes, and write the manifest of the whole data set."""
    completed = dict(begun.splits)
    missing = [name for name in data.splits if name not in completed]
    if not missing:
        return completed

    def whole() -> Mapping[str, Shards] | None:
        if len(list(folder.glob(OTHERS))) < group.count - 1:
            return None
        found = join(interrupted(data, folder))
        return found if all(all(found[name]) for name in missing) else None

    listed = shown(whole, folder)
    for name in missing:
        files = fresh_split_files(data, folder, name)
        completed[name] = join_shards(files, listed[name])
    write_manifest(folder / MANIFEST, manifest_header(data, folder), Manifest(completed, {}))
    remove(folder.glob(OTHERS))
    for name in missing if locked else ():
        remove_others(fresh_split_files(data, folder, name), folder, name)
    return completed


def own_manifest(folder: Path, group: ProcessGroup) -> Path:
    """Where this process lists its shards."""
    return folder / (MANIFEST if group.is_first else OTHERS.replace("*", str(group.index)))


def own_places(shards: Shards, group: ProcessGroup) -> Shards:
    """The shards of this process; None in the places of others."""
    return [
        shard if place % group.count == group.index else None for place, shard in enumerate(shards)
    ]


def interrupted(data: Undecoded, folder: Path) -> list[Mapping[str, Shards]]:
    """The shards that each manifest lists of splits that are not complete; newer ones first."""
    found, header = [], manifest_header(data, folder)
    for path in (*sorted(folder.glob(OTHERS)), folder / MANIFEST):
        try:
            manifest = read_manifest(path, header)
        except DamagedError:
            continue
        found.append(manifest.unfinished if manifest else {})
    return found


def join(several: Iterable[Mapping[str, Shards]]) -> dict[str, Shards]:
    """By split, in each place the first shard that is listed there."""
    found: dict[str, Shards] = {}
    for listed in several:
        for name, shards in listed.items():
            before: Sequence[ShardRecord | None] = found.get(name, ())
            if len(before) in (0, len(shards)):
                found[name] = [one or other for one, other in zip_longest(before, shards)]
    return found


def usable_shards(
    data: Undecoded, folder: Path, parts: Mapping[str, Shards], missing: Sequence[str]
) -> dict[str, Shards]:
    """The shards of missing splits, where they divide the split as shards do now."""
    found = {}
    for name in missing:
        counts = [shard.count for shard in fresh_split_files(data, folder, name).shards]
        shards = parts.get(name, ())
        fits = len(shards) == len(counts) and all(
            shard is None or shard.identity["count"] == count
            for shard, count in zip(shards, counts, strict=True)
        )
        found[name] = list(shards) if fits else [None] * len(counts)
    return found


def shown(read: Callable[[], T | None], folder: Path) -> T:
    """What `read` returns, once it is there: another host may see a file later than its writer.

    Raises OSError if it does not come.
    """
    deadline = time.monotonic() + VISIBLE_SECONDS
    while not (found := read()):
        if time.monotonic() > deadline:
            raise OSError(
                f"{folder} does not show what the other processes have written; prepare on a "
                "data.dir that all hosts share, or on each host alone"
            )
        time.sleep(POLL_SECONDS)
    return found


def remove(files: Iterable[Path]) -> None:
    """Remove files that may be gone already."""
    for file in files:
        file.unlink(missing_ok=True)


def remove_others(files: SplitFiles, folder: Path, name: str) -> None:
    """Remove files of a split that was written as another number of shards."""
    own = {file for shard in files.shards for file in (shard.images, shard.labels)}
    pattern = re.compile(rf"{name}_(images|labels)(-\d+-of-\d+)?\.npy")
    remove(file for file in set(folder.iterdir()) - own if pattern.fullmatch(file.name))
