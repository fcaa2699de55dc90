"""Images decoded once into memory-mapped uint8 arrays, whatever they came from.

    DATA_DIR/arrays/NAME-KEY/train_images.npy   uint8 [N, S, S, C]
                             train_labels.npy   int32 [N]
                             manifest.json      hashes and stamps of both (data/manifest.py)

KEY is a hash of everything that the arrays depend on. A file appears under its name only when it is
complete, and the manifest names a split only when its files are; one that it does not name is
decoded.

`decode` checks sizes, types, labels and stamps, and hashes images whose stamp has changed; `verify`
hashes all. What does not agree is an error, and `mend` decodes it again.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.arrays import Source, SplitFiles, examine, open_split, write_split
from data.dataset import Dataset
from data.files import ELSEWHERE, UNLOCKED, claimed, note, remove_leftovers
from data.identity import changes, identity_of, images_sha256
from data.manifest import MANIFEST, DamagedError, Record, read_manifest, write_manifest

FORMAT = 1  # part of the key; another number makes every array anew
FOLDER = "arrays"
REMEDY = "run main.py --mode=prepare with the same --config, which decodes it again"

# Splits by name; None for one that is older than manifests.
Records = Mapping[str, Record | None]


class Undecoded(NamedTuple):
    """A data set that is not decoded yet; `origin` is all that its arrays depend on (JSON).

    classes: names of the classes, () if they are not known. files: those that images are read
    from, as `file_stamps` has them, () for other sources.
    """

    name: str
    origin: object
    image_shape: tuple[int, int, int]
    num_classes: int
    splits: dict[str, Source]
    classes: tuple[str, ...] = ()
    files: Sequence[tuple[str, int, int]] = ()


def data_root(data_dir: str = "") -> Path:
    """Where prepared data lie: data_dir, else $FEWSTEP_DATA, else ~/.cache/fewstep."""
    chosen = data_dir or os.environ.get("FEWSTEP_DATA") or "~/.cache/fewstep"
    return Path(chosen).expanduser().absolute()


def file_stamps(files: Iterable[Path], folder: Path) -> list[tuple[str, int, int]]:
    """Path within the folder, bytes and modification time (ns) of each file, in order."""
    stats = ((file, file.stat()) for file in files)
    return [(file.relative_to(folder).as_posix(), s.st_size, s.st_mtime_ns) for file, s in stats]


def array_folder(data: Undecoded, root: Path) -> Path:
    """The folder that holds, or will hold, the arrays of a data set."""
    content = json.dumps([FORMAT, data.name, data.image_shape, data.origin])
    key = hashlib.sha256(content.encode()).hexdigest()[:16]
    readable = re.sub(r"[^A-Za-z0-9]+", "_", data.name).strip("_")[-60:]
    return root / FOLDER / f"{readable}-{key}"


def is_decoded(data: Undecoded, root: Path) -> bool:
    """Whether the arrays of all splits are there, whole or damaged."""
    try:
        records = _known(data, array_folder(data, root))
    except DamagedError:
        return True
    return data.splits.keys() <= records.keys()


def decode(data: Undecoded, root: Path, writable: bool = True) -> Dataset:
    """The data set as memory-mapped arrays, decoded with a progress bar if that is not done yet.

    writable: whether files may be written; if not, all arrays must be there (`is_decoded`).

    Raises ValueError, with the file and the remedy, for arrays that are not what was decoded.
    """
    folder = array_folder(data, root)
    files = _files(data, folder)
    try:
        records = _known(data, folder)
        if not all(_unchanged(files[name], records.get(name)) for name in files):
            if writable:
                with claimed(folder) as locked:
                    records = _completed(data, folder, _hashed(data, folder), locked)
            else:
                records = _hashed(data, folder)
        opened = {name: open_split(files[name], records[name]) for name in files}
    except DamagedError as error:
        raise ValueError(f"{error}; {REMEDY}") from error
    identities = {name: records[name].identity for name in files}
    return Dataset(
        name=data.name,
        train=opened["train"],
        test=opened.get("test"),
        num_classes=data.num_classes,
        classes=data.classes,
        recorded=identity_of(data.image_shape, data.classes, identities),
        files=data.files,
    )


def mend(data: Undecoded, root: Path) -> Path:
    """Hash a data set's arrays, decode those that are missing or damaged, and say what was done.

    Returns their folder.
    """
    folder = array_folder(data, root)
    with claimed(folder) as locked:
        known = _believed(data, folder)
        sound = _sound(data, folder, known)
        records = _completed(data, folder, sound, locked)
    for name, record in records.items():
        before = known.get(name)
        done = "decoded" if name not in sound else "verified" if before else "recorded"
        note(f"{data.name} {name}: {record.identity['count']} images {done}")
        if before and changes(before.identity, record.identity):
            note(f"{data.name} {name} decodes to other data than before, on which runs may rest")
    return folder


def verify(dataset: Dataset) -> None:
    """Hash all images. Raises ValueError, with the remedy, if they are not what was decoded."""
    for name, split in dataset.splits.items():
        recorded = dataset.identity["splits"][name]["images_sha256"]
        if images_sha256(split.images, f"hashing {dataset.name} {name}") != recorded:
            file = getattr(split.images, "filename", f"{dataset.name} {name}")
            raise ValueError(f"{file} holds other images than were decoded; {REMEDY}")


def _header(data: Undecoded, folder: Path) -> dict[str, Any]:
    """What a manifest says beside its splits; the folder's name has the key."""
    return {
        "format": FORMAT,
        "folder": folder.name,
        "image_shape": list(data.image_shape),
        "classes": list(data.classes),
    }


def _files(data: Undecoded, folder: Path) -> dict[str, SplitFiles]:
    return {
        name: SplitFiles(
            images=folder / f"{name}_images.npy",
            labels=folder / f"{name}_labels.npy",
            description=f"{data.name} {name}",
            count=source.count,
            image_shape=data.image_shape,
            num_classes=data.num_classes,
        )
        for name, source in data.splits.items()
    }


def _known(data: Undecoded, folder: Path) -> Records:
    """The splits that are there. Raises DamagedError for a manifest that cannot be believed."""
    recorded = read_manifest(folder / MANIFEST, _header(data, folder))
    counts = {name: source.count for name, source in data.splits.items()}
    for name, record in (recorded or {}).items():
        if record.identity["count"] != counts.get(name):
            raise DamagedError(f"{folder / MANIFEST} has another split {name} than the data")
    if recorded is not None:
        return recorded
    # Before there were manifests a split was complete when its images had their name.
    return {name: None for name, files in _files(data, folder).items() if files.images.exists()}


def _believed(data: Undecoded, folder: Path) -> Records:
    """The splits that are there; none if the manifest cannot be believed."""
    try:
        known = _known(data, folder)
    except DamagedError as error:
        note(f"{error}; decoding again")
        return {}
    _warn_of_older(known, folder)
    return known


def _warn_of_older(known: Records, folder: Path) -> None:
    if None in known.values():
        note(f"{folder} has no {MANIFEST}: its arrays are taken as they are")


def _sound(data: Undecoded, folder: Path, known: Records) -> dict[str, Record]:
    """The known splits whose files are what they should be; of the others it says why not."""
    files, sound = _files(data, folder), {}
    for name, record in known.items():
        try:
            sound[name] = examine(files[name], record)
        except DamagedError as error:
            note(f"{error}; decoding again")
    return sound


def _hashed(data: Undecoded, folder: Path) -> dict[str, Record]:
    """Records of the splits that are there, hashed again where a stamp has changed.

    Raises DamagedError.
    """
    files = _files(data, folder)
    known = _known(data, folder)  # read again: another process may have been at work until now
    _warn_of_older(known, folder)
    return {
        name: record if _unchanged(files[name], record) else examine(files[name], record)
        for name, record in known.items()
    }


def _unchanged(files: SplitFiles, record: Record | None) -> bool:
    """Whether nothing was written to the files since they were hashed."""
    return record is not None and record.stamps == files.stamps


def _completed(
    data: Undecoded, folder: Path, records: Mapping[str, Record], locked: bool
) -> dict[str, Record]:
    """Records of all splits, those without one decoded."""
    if locked:
        remove_leftovers(folder)
    completed, files = dict(records), _files(data, folder)
    missing = [name for name in files if name not in completed]
    # First of all the manifest: files that it does not name are from here on not believed.
    try:
        write_manifest(folder / MANIFEST, _header(data, folder), completed)
    except OSError as error:
        reason = error.strerror or error
        if missing and error.errno in UNLOCKED:
            raise OSError(f"{folder} cannot be written to ({reason}); {ELSEWHERE}") from error
        if missing:
            raise
        note(f"{folder} cannot be written ({reason}): its arrays are hashed at every start")
    for name in missing:
        completed[name] = write_split(files[name], data.splits[name])
        write_manifest(folder / MANIFEST, _header(data, folder), completed)
    return completed
