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

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from fewstep.data.arrays.dataset import Dataset
from fewstep.data.arrays.files import UNLOCKED, claimed, elsewhere
from fewstep.data.arrays.identity import dataset_identity, identity_changes, images_sha256
from fewstep.data.arrays.manifest import (
    MANIFEST,
    DamagedError,
    Manifest,
    Record,
    Shards,
    read_manifest,
    write_manifest,
)
from fewstep.data.arrays.rows import Rows
from fewstep.data.arrays.shards import (
    Source,
    SplitFiles,
    Stored,
    is_unchanged_shard,
    open_split,
    shard_counts,
    split_shards,
    verify_shard,
    verify_split,
    write_split,
)
from fewstep.files import remove_leftovers
from fewstep.progress import note

FORMAT = 1  # part of the key; with another number all data are decoded again
FOLDER = "arrays"
REMEDY = "run main.py --mode=prepare with the same --config, which decodes it again"
ADDRESS = re.compile(r"[a-z0-9]{2,}:/")  # gs://..., which pathlib treats as a folder

# Records by split; None for a split older than manifests.
Records = Mapping[str, Record | None]


class Undecoded(NamedTuple):
    """A data set to decode. `origin` is everything that its arrays depend on, as JSON values.

    dtype, shard_bytes: how images are stored (`Stored`). classes: class names, () if unknown.
    files: `file_stamps` of the image files, () for other sources. understood: one line about how
    the files are read, or "". account: returns one line about what was read.
    """

    name: str
    origin: object
    image_shape: tuple[int, ...]
    num_classes: int
    splits: dict[str, Source]
    classes: tuple[str, ...] = ()
    files: Sequence[tuple[str, int, int]] = ()
    understood: str = ""
    account: Callable[[], str] = str
    dtype: np.dtype = np.dtype(np.uint8)
    shard_bytes: int | None = None

    @property
    def stored(self) -> Stored:
        """How its images are stored."""
        return Stored(self.image_shape, self.dtype, self.shard_bytes)


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
    if ADDRESS.match(path):
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


def array_folder(data: Undecoded, root: Path) -> Path:
    """The folder of the arrays of a data set, decoded or not."""
    content = [FORMAT, data.name, data.image_shape, data.origin, *other_dtype(data).values()]
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    readable = re.sub(r"[^A-Za-z0-9]+", "_", data.name).strip("_")[-60:]
    return root / FOLDER / f"{readable}-{key}"


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
                    records = _complete(data, folder, _verified_records(data, folder), locked)
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
    return Dataset(
        name=data.name,
        train=splits["train"],
        test=splits.get("test"),
        num_classes=data.num_classes,
        classes=data.classes,
        recorded=dataset_identity(data.image_shape, data.classes, identities),
        files=data.files,
    )


def repair(data: Undecoded, root: Path) -> Path:
    """Hash a data set's arrays, decode missing or damaged ones, and report on standard error.

    Returns their folder.
    """
    folder = array_folder(data, root)
    with claimed(folder) as locked:
        before = _trusted_splits(data, folder)
        sound, parts = _find_sound(data, folder, before)
        records = _complete(data, folder, sound, locked, parts)
    for name, record in records.items():
        earlier = before.get(name)
        done = "decoded" if name not in sound else "verified" if earlier else "recorded"
        shards = f" in {len(record.shards)} shards" if len(record.shards) > 1 else ""
        note(f"{data.name} {name}: {record.identity['count']} images{shards} {done}")
        if earlier and identity_changes(earlier.identity, record.identity):
            note(f"{data.name} {name} decodes to other data than before, which older runs used")
    return folder


def verify(dataset: Dataset) -> None:
    """Hash all images. Raises ValueError with the remedy if they changed since decoding."""
    for name, split in dataset.splits.items():
        recorded = dataset.identity["splits"][name]["images_sha256"]
        _verify_array(split.images, recorded, f"{dataset.name} {name}")
    if dataset.moments is not None:
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


def manifest_header(data: Undecoded, folder: Path) -> dict[str, Any]:
    """The fields of a manifest other than its splits; `folder` contains the key."""
    return {
        "format": FORMAT,
        "folder": folder.name,
        "image_shape": list(data.image_shape),
        "classes": list(data.classes),
        **other_dtype(data),
    }


def other_dtype(data: Undecoded) -> dict[str, str]:
    """The type of images that are not pixels; older folders, of pixels, do not say their type."""
    return {} if data.dtype == np.uint8 else {"dtype": data.dtype.name}


def split_files(
    data: Undecoded, folder: Path, name: str, record: Record | None = None
) -> SplitFiles:
    """The files of a split by its record; without a record, those of one shard."""
    counts = record.counts if record else (data.splits[name].count,)
    return _split_files(data, folder, name, counts)


def fresh_split_files(data: Undecoded, folder: Path, name: str) -> SplitFiles:
    """The files that decoding a split writes."""
    counts = shard_counts(data.splits[name].count, data.stored)
    return _split_files(data, folder, name, counts)


def _split_files(data: Undecoded, folder: Path, name: str, counts: Sequence[int]) -> SplitFiles:
    return SplitFiles(
        shards=split_shards(folder, name, counts),
        description=f"{data.name} {name}",
        stored=data.stored,
        num_classes=data.num_classes,
    )


def recorded_splits(data: Undecoded, folder: Path) -> Records:
    """Records of the decoded splits. Raises DamagedError if the manifest is damaged or foreign."""
    recorded = read_manifest(folder / MANIFEST, manifest_header(data, folder))
    counts = {name: source.count for name, source in data.splits.items()}
    for name, record in (recorded.splits if recorded else {}).items():
        if record.identity["count"] != counts.get(name):
            raise DamagedError(f"{folder / MANIFEST} has another number of {name} images")
    if recorded is not None:
        return recorded.splits
    # Without a manifest, as in old versions, a split is complete once its images have their name.
    first = {name: split_files(data, folder, name).shards[0] for name in data.splits}
    return {name: None for name, shard in first.items() if shard.images.exists()}


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


def _complete(
    data: Undecoded,
    folder: Path,
    records: Mapping[str, Record],
    locked: bool,
    parts: Mapping[str, Shards] = MappingProxyType({}),
) -> dict[str, Record]:
    """Records of all splits; decodes the shards that are missing.

    records: of the splits that are complete. parts: sound shards of other splits, in addition to
    those of an interrupted decoding.
    """
    if locked:
        remove_leftovers(folder, alone=True)
    completed, path, header = dict(records), folder / MANIFEST, manifest_header(data, folder)
    missing = [name for name in data.splits if name not in completed]
    unfinished = _usable_shards(
        data, folder, {**_interrupted_shards(path, header), **parts}, missing
    )
    # The manifest first: from here on, files that it does not list are not trusted.
    try:
        write_manifest(path, header, Manifest(completed, unfinished))
    except OSError as error:
        reason = error.strerror or error
        if missing and error.errno in UNLOCKED:
            raise OSError(f"{folder} cannot be written to ({reason}); {elsewhere()}") from error
        if missing:
            raise
        note(f"{folder} cannot be written to ({reason}), so its arrays are hashed at every start")
    for name in missing:

        def keep(shards: Shards, name: str = name) -> None:
            write_manifest(path, header, Manifest(completed, {**unfinished, name: shards}))

        files = fresh_split_files(data, folder, name)
        done = unfinished.pop(name, [None] * len(files.shards))
        completed[name] = write_split(files, data.splits[name], done, keep)
        write_manifest(path, header, Manifest(completed, unfinished))
        if locked:
            _remove_others(files, folder, name)
    return completed


def _interrupted_shards(path: Path, header: Mapping[str, Any]) -> Mapping[str, Shards]:
    """The shards of splits whose decoding was interrupted."""
    try:
        manifest = read_manifest(path, header)
    except DamagedError:
        return {}
    return manifest.unfinished if manifest else {}


def _usable_shards(
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
        if fits and any(shards):
            found[name] = shards
    return found


def _remove_others(files: SplitFiles, folder: Path, name: str) -> None:
    """Remove files of a split that was written as another number of shards."""
    own = {file for shard in files.shards for file in (shard.images, shard.labels)}
    pattern = re.compile(rf"{name}_(images|labels)(-\d+-of-\d+)?\.npy")
    for file in set(folder.iterdir()) - own:
        if pattern.fullmatch(file.name):
            file.unlink(missing_ok=True)
