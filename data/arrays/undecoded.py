"""A data set to decode: what it holds, and which files in which folder its arrays become."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fewstep.data.arrays.dataset import Dataset
from fewstep.data.arrays.manifest import MANIFEST, DamagedError, Record, read_manifest
from fewstep.data.arrays.shards import Source, SplitFiles, Stored, shard_counts, split_shards

FORMAT = 1  # part of the key; with another number all data are decoded again
FOLDER = "arrays"

# Records by split; None for a split older than manifests.
Records = Mapping[str, Record | None]


def as_it_is(dataset: Dataset) -> Dataset:
    """A data set to which opening adds nothing."""
    return dataset


class Undecoded(NamedTuple):
    """A data set to decode. `origin` is everything that its arrays depend on, as JSON values.

    dtype, shard_bytes: how images are stored (`Stored`). classes: class names, () if unknown.
    files: `file_stamps` of the image files, () for other sources. understood: one line about how
    the files are read, or "". account: returns one line about what was read. made: how its arrays
    come about, for messages. opened: the data set of the arrays -> as what it is used.
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
    made: str = "decoded"
    opened: Callable[[Dataset], Dataset] = as_it_is

    @property
    def stored(self) -> Stored:
        """How its images are stored."""
        return Stored(self.image_shape, self.dtype, self.shard_bytes)


def array_folder(data: Undecoded, root: Path) -> Path:
    """The folder of the arrays of a data set, decoded or not."""
    content = [FORMAT, data.name, data.image_shape, data.origin, *other_dtype(data).values()]
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    readable = re.sub(r"[^A-Za-z0-9]+", "_", data.name).strip("_")[-60:]
    return root / FOLDER / f"{readable}-{key}"


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
