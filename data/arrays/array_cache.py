"""Caches decoded images as memory-mapped arrays, uint8 for pixels.

    DATA_DIR/arrays/NAME-KEY/train_images.npy   uint8 [N, S, S, C]; large splits have several shards
                             train_labels.npy   int32 [N]
                             manifest.json      hashes and stamps (data/arrays/manifest.py)

KEY is a hash of everything that the arrays depend on. A file gets its name only when it is
complete, and the manifest lists a split or shard only when its files are complete. Whatever the
manifest does not list is decoded, so decoding continues after an interruption.

`decode` checks sizes, types, labels and stamps, and hashes images whose stamp has changed. `verify`
hashes all images. Both raise an error for damaged data; `repair` decodes damaged shards again.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from fewstep.buckets import is_address
from fewstep.data.arrays.dataset import Dataset
from fewstep.data.arrays.files import claimed
from fewstep.data.arrays.group import ALONE, ProcessGroup
from fewstep.data.arrays.identity import dataset_identity, identity_changes, images_sha256
from fewstep.data.arrays.manifest import MANIFEST, DamagedError, Record, Shards
from fewstep.data.arrays.missing_shards import decode_missing, help_to_decode
from fewstep.data.arrays.rows import Rows
from fewstep.data.arrays.shards import is_unchanged_shard, open_split, verify_shard, verify_split
from fewstep.data.arrays.undecoded import (
    Records,
    Undecoded,
    array_folder,
    recorded_splits,
    split_files,
)
from fewstep.progress import note

REMEDY = "run main.py --mode=prepare with the same --config, which decodes it again"


def data_root(data_dir: str = "") -> Path:
    """The folder of prepared data: data_dir, else $FEWSTEP_DATA, else ~/.cache/fewstep.

    Raises ValueError for the address of a bucket.
    """
    chosen = data_dir or os.environ.get("FEWSTEP_DATA") or "~/.cache/fewstep"
    return local_folder(chosen, "data.dir" if data_dir else "$FEWSTEP_DATA")


def local_folder(path: str, field: str) -> Path:
    """The absolute path of the folder in a config field.

    Raises ValueError for the address of a bucket, or the home of an unknown user.
    """
    if is_address(path):
        raise ValueError(
            f"{field}={path} is an address, not a folder; mount the bucket and give the mounted "
            "folder (docs/clusters.md)"
        )
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise ValueError(f"{field}={path}: there is no such user") from error


def file_stamps(files: Iterable[Path], folder: Path) -> list[tuple[str, int, int]]:
    """(path within the folder, bytes, modification time in ns) of each file."""
    stats = ((file, file.stat()) for file in files)
    return [(file.relative_to(folder).as_posix(), s.st_size, s.st_mtime_ns) for file, s in stats]


def is_decoded(data: Undecoded, root: Path) -> bool:
    """Whether the arrays of all splits exist, sound or damaged."""
    try:
        records = recorded_splits(data, array_folder(data, root))
    except DamagedError:
        return True
    return data.splits.keys() <= records.keys()


def decode(data: Undecoded, root: Path, writable: bool = True) -> Dataset:
    """The data set as memory-mapped arrays; decodes it first, with a progress bar, if needed.

    writable: whether files may be written; if not, all arrays must exist (`is_decoded`).

    Raises ValueError that names the file and the remedy if arrays changed since they were decoded.
    """
    folder = array_folder(data, root)
    try:
        records = recorded_splits(data, folder)
        if not all(
            is_unchanged_split(data, folder, name, records.get(name)) for name in data.splits
        ):
            if writable:
                with claimed(folder) as locked:
                    verified = _verified_records(data, folder)
                    records = decode_missing(data, folder, verified, {}, locked, ALONE)
            else:
                records = _verified_records(data, folder)
        return open_dataset(data, folder, records)
    except DamagedError as error:
        raise ValueError(f"{error}; {REMEDY}") from error


def open_dataset(data: Undecoded, folder: Path, records: Mapping[str, Record]) -> Dataset:
    """The data set whose arrays lie in `folder`. Raises DamagedError."""
    splits = {
        name: open_split(split_files(data, folder, name, records[name]), records[name])
        for name in data.splits
    }
    identities = {name: records[name].identity for name in splits}
    dataset = Dataset(
        name=data.name,
        train=splits["train"],
        test=splits.get("test"),
        num_classes=data.num_classes,
        classes=data.classes,
        recorded=dataset_identity(data.image_shape, data.classes, identities),
        files=data.files,
    )
    return data.opened(dataset)


def repair(data: Undecoded, root: Path, group: ProcessGroup = ALONE) -> Path:
    """Hash a data set's arrays, decode missing or damaged ones, and report on standard error.

    group: processes that decode together. Returns the folder of the arrays.
    """
    folder = array_folder(data, root)
    if not group.is_first:
        help_to_decode(data, folder, group)
        return folder
    with claimed(folder) as locked:
        before = _trusted_splits(data, folder)
        sound, parts = _find_sound(data, folder, before)
        records = decode_missing(data, folder, sound, parts, locked, group)
    for name, record in records.items():
        earlier = before.get(name)
        done = data.made if name not in sound else "verified" if earlier else "recorded"
        shards = f" in {len(record.shards)} shards" if len(record.shards) > 1 else ""
        note(f"{data.name} {name}: {record.identity['count']} images{shards} {done}")
        if earlier and identity_changes(earlier.identity, record.identity):
            note(f"{data.name} {name}: other data than before, which older runs used")
    return folder


def verify(dataset: Dataset) -> None:
    """Hash all images. Raises ValueError with the remedy if they changed since decoding."""
    for name, split in dataset.splits.items():
        recorded = dataset.identity["splits"][name]["images_sha256"]
        _verify_array(split.images, recorded, f"{dataset.name} {name}")
    if dataset.moments is not None and dataset.has_pictures:
        recorded = dataset.identity["latents"]["images_sha256"]
        _verify_array(dataset.moments.array, recorded, f"{dataset.name} latents")


def _verify_array(array: np.ndarray | Rows, sha256: str, description: str) -> None:
    parts = [(array, sha256)]
    if isinstance(array, Rows):
        parts = zip(array.arrays, array.sha256, strict=True)
    for images, recorded in parts:
        if images_sha256(images, f"hashing {description}") != recorded:
            file = getattr(images, "filename", description)
            raise ValueError(f"{file} holds other images than were decoded; {REMEDY}")


def is_unchanged_split(data: Undecoded, folder: Path, name: str, record: Record | None) -> bool:
    """Whether a split's files are unchanged since they were hashed."""
    if record is None:
        return False
    shards = split_files(data, folder, name, record).shards
    return all(map(is_unchanged_shard, shards, record.shards))


def _trusted_splits(data: Undecoded, folder: Path) -> Records:
    """Records of the decoded splits; none if the manifest is damaged, which is reported."""
    try:
        found = recorded_splits(data, folder)
    except DamagedError as error:
        note(f"{error}; decoding again")
        return {}
    _warn_without_manifest(found, folder)
    return found


def _warn_without_manifest(found: Records, folder: Path) -> None:
    if None in found.values():
        note(f"{folder} has no {MANIFEST}, so its arrays are trusted as they are")


def _find_sound(
    data: Undecoded, folder: Path, found: Records
) -> tuple[dict[str, Record], dict[str, Shards]]:
    """The splits whose files are all sound, and the sound shards of the others.

    Reports what is damaged on standard error.
    """
    sound, parts = {}, {}
    for name, record in found.items():
        files = split_files(data, folder, name, record)
        shards: list = []
        for shard, old in zip(files.shards, record.shards if record else [None], strict=True):
            try:
                shards.append(verify_shard(files, shard, old))
            except DamagedError as error:
                note(f"{error}; decoding again")
                shards.append(None)
        if None in shards:
            parts[name] = shards
        else:
            identity = record.identity if record else shards[0].identity
            sound[name] = Record(identity, tuple(shards))
    return sound, parts


def _verified_records(data: Undecoded, folder: Path) -> dict[str, Record]:
    """Records of the decoded splits; hashes files whose stamps have changed.

    Raises DamagedError.
    """
    found = recorded_splits(data, folder)  # again: another process may have written meanwhile
    _warn_without_manifest(found, folder)
    return {
        name: verify_split(split_files(data, folder, name, record), record)
        for name, record in found.items()
    }
