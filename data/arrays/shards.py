"""The files of one decoded split: images [N, ...], uint8 for pixels, and labels int32 [N].

A small split is one pair of files; a large one is several, its shards, of consecutive images:

    train_images.npy, train_labels.npy
    train_images-00000-of-00235.npy, train_labels-00000-of-00235.npy, ...
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fewstep.data.arrays.dataset import NULL_LABEL, Split
from fewstep.data.arrays.files import stored_file
from fewstep.data.arrays.group import ALONE, ProcessGroup
from fewstep.data.arrays.identity import images_sha256, labels_sha256
from fewstep.data.arrays.manifest import (
    DamagedError,
    Record,
    ShardRecord,
    Shards,
    Stamp,
    file_stamp,
    one_shard_record,
)
from fewstep.data.arrays.rows import Rows
from fewstep.progress import progress_bar

CHUNK = 256  # images decoded before they are written, which bounds the memory
GIB = 2**30
SHARD_BYTES = GIB  # most bytes of images in a file, and so what an interruption loses


class Source(NamedTuple):
    """A split to decode.

    rows(start, stop) yields the images start, ..., stop - 1 and their labels, in order. It is asked
    for CHUNK images at most.
    """

    count: int
    rows: Callable[[int, int], Iterable[tuple[np.ndarray, int]]]


def each_image(count: int, read: Callable[[int], tuple[np.ndarray, int]]) -> Source:
    """A split of `count` images that are decoded one by one. Several threads call read(i)."""

    def rows(start: int, stop: int) -> Iterator[tuple[np.ndarray, int]]:
        with ThreadPoolExecutor() as threads:
            yield from threads.map(read, range(start, stop))

    return Source(count, rows)


class Stored(NamedTuple):
    """How images are stored.

    shape, dtype: of one image. shard_bytes: most bytes of images in a file; None is SHARD_BYTES.
    """

    shape: tuple[int, ...]
    dtype: np.dtype = np.dtype(np.uint8)
    shard_bytes: int | None = None

    @property
    def nbytes(self) -> int:
        """The bytes of one image."""
        return int(np.prod(self.shape)) * self.dtype.itemsize


class Shard(NamedTuple):
    """The files of `count` consecutive images of a split, from image number `start`."""

    images: Path
    labels: Path
    start: int
    count: int

    @property
    def stamps(self) -> list[Stamp]:
        """The current stamps of both files."""
        return [file_stamp(self.images), file_stamp(self.labels)]


class SplitFiles(NamedTuple):
    """The files of a split, and what they must hold.

    description: data set and split, for progress bars. num_classes: 0 without labels.
    """

    shards: tuple[Shard, ...]
    description: str
    stored: Stored
    num_classes: int

    @property
    def count(self) -> int:
        """The number of images of all shards."""
        return sum(shard.count for shard in self.shards)


def shard_counts(count: int, stored: Stored) -> tuple[int, ...]:
    """The number of images of each shard; all but the last fill their bytes."""
    most = max((stored.shard_bytes or SHARD_BYTES) // stored.nbytes, 1)
    return tuple(min(most, count - start) for start in range(0, count, most)) or (0,)


def split_shards(folder: Path, split: str, counts: Sequence[int]) -> tuple[Shard, ...]:
    """The shards of a split, with these numbers of images."""
    starts = np.cumsum([0, *counts]).tolist()
    ends = [f"-{i:05}-of-{len(counts):05}" for i in range(len(counts))] if len(counts) > 1 else [""]
    return tuple(
        Shard(folder / f"{split}_images{end}.npy", folder / f"{split}_labels{end}.npy", start, own)
        for end, start, own in zip(ends, starts, counts, strict=False)
    )


def open_split(files: SplitFiles, record: Record | None = None) -> Split:
    """The split, with memory-mapped images.

    Raises DamagedError that names the file if it is missing, has another size, type or shape, or
    has labels that are out of range or not those of the record.
    """
    records = record.shards if record else [None] * len(files.shards)
    opened = [open_shard(files, *pair) for pair in zip(files.shards, records, strict=True)]
    if len(opened) == 1:
        return opened[0]
    images, labels = zip(*opened, strict=True)
    hashes = [shard.identity["images_sha256"] for shard in records if shard]
    return Split(Rows(images, hashes), np.concatenate(labels))


def open_shard(files: SplitFiles, shard: Shard, record: ShardRecord | None) -> Split:
    """One shard as a split. Raises DamagedError as `open_split` does."""
    images = _open_array(shard.images, files.stored.dtype, (shard.count, *files.stored.shape))
    labels = np.array(_open_array(shard.labels, np.dtype(np.int32), (shard.count,)))
    strange = _out_of_range(labels, files.num_classes)
    if len(strange):
        raise DamagedError(
            f"{shard.labels} has label {strange[0]}, which is none of {files.num_classes} classes"
        )
    if record is not None and labels_sha256(labels) != record.identity["labels_sha256"]:
        raise DamagedError(f"{shard.labels} holds other labels than were decoded")
    return Split(images, labels)


def is_unchanged_shard(shard: Shard, record: ShardRecord | None) -> bool:
    """Whether a shard's files are unchanged since they were hashed."""
    return record is not None and record.stamps == shard.stamps


def verify_split(files: SplitFiles, record: Record | None) -> Record:
    """The record of a split, with fresh hashes of the shards whose stamps have changed.

    Raises DamagedError as `open_split` does, and for images that are not those of the record.
    """
    if record is None:  # older than manifests and shards
        return one_shard_record(verify_shard(files, files.shards[0], None))
    return Record(
        record.identity,
        tuple(
            old if is_unchanged_shard(shard, old) else verify_shard(files, shard, old)
            for shard, old in zip(files.shards, record.shards, strict=True)
        ),
    )


def verify_shard(files: SplitFiles, shard: Shard, record: ShardRecord | None) -> ShardRecord:
    """The record of a shard, with fresh hashes. Raises DamagedError as `verify_split` does."""
    stamps = shard.stamps
    images, labels = open_shard(files, shard, record)
    found = images_sha256(images, f"hashing {files.description}")
    if record is not None and found != record.identity["images_sha256"]:
        raise DamagedError(f"{shard.images} holds other images than were decoded")
    return ShardRecord(_identity(found, labels), stamps)


def write_shards(
    files: SplitFiles,
    source: Source,
    listed: Shards,
    keep: Callable[[Shards], None],
    group: ProcessGroup = ALONE,
) -> Shards:
    """Decode this process's part of a split into its files, with a progress bar.

    listed: records of shards that exist; those that are sound are not decoded again. keep: called
    with the records so far after each new shard. Returns all records.
    """
    listed, places = list(listed), range(group.index, len(files.shards), group.count)
    total, description = sum(files.shards[i].count for i in places), files.description + group.part
    silent = not group.is_first
    with progress_bar(desc=description, total=total, unit="image", silent=silent) as bar:
        for place in places:
            shard = files.shards[place]
            if is_unchanged_shard(shard, listed[place]) and _is_sound(files, shard, listed[place]):
                bar.update(shard.count)
                continue
            listed[place] = _write_shard(files, shard, source, bar.update)
            keep(listed)
    return listed


def join_shards(files: SplitFiles, records: Shards) -> Record:
    """The record of a split whose shards are all there. Reads them once more, to hash them."""
    if len(records) == 1:
        return one_shard_record(records[0])
    labels, total = [], hashlib.sha256()
    with progress_bar(desc=f"hashing {files.description}", total=files.count, leave=False) as bar:
        for shard, record in zip(files.shards, records, strict=True):
            images, own = open_shard(files, shard, record)
            labels.append(own)
            for start in range(0, len(images), CHUNK):
                total.update(np.ascontiguousarray(images[start : start + CHUNK]))
            bar.update(shard.count)
    return Record(_identity(total.hexdigest(), np.concatenate(labels)), tuple(records))


def _is_sound(files: SplitFiles, shard: Shard, record: ShardRecord) -> bool:
    """Whether a shard's files match its record."""
    try:
        return bool(verify_shard(files, shard, record))
    except DamagedError:
        return False


def _write_shard(
    files: SplitFiles, shard: Shard, source: Source, count: Callable[[], Any]
) -> ShardRecord:
    """Decode a shard into its files, and count its images."""
    labels, own = np.empty(shard.count, np.int32), hashlib.sha256()
    with stored_file(shard.images) as file:
        # Sequential writes, not a memory map, so that a full disk raises OSError.
        shape, descr = (
            (shard.count, *files.stored.shape),
            np.lib.format.dtype_to_descr(files.stored.dtype),
        )
        header = {"descr": descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for i, (image, label) in enumerate(_read_all(source, shard)):
            content = np.ascontiguousarray(image).tobytes()
            file.write(content)
            own.update(content)
            labels[i] = label
            count()
        strange = _out_of_range(labels, files.num_classes)
        if len(strange):
            raise ValueError(
                f"{files.description} has label {strange[0]}, which is none of its "
                f"{files.num_classes} classes; correct the data"
            )
        with stored_file(shard.labels) as label_file:
            np.save(label_file, labels, allow_pickle=False)
    return ShardRecord(_identity(own.hexdigest(), labels), shard.stamps)


def _identity(images: str, labels: np.ndarray) -> dict[str, Any]:
    hashes = {"images_sha256": images, "labels_sha256": labels_sha256(labels)}
    return {"count": len(labels), **hashes}


def _open_array(file: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
        size, expected = file.stat().st_size, array.offset + array.nbytes
    except FileNotFoundError as error:
        raise DamagedError(f"{file} is missing") from error
    except OSError:
        raise  # it names the file, such as one without read permission
    except Exception as error:  # a damaged file can raise nearly anything
        raise DamagedError(f"{file} is empty, cut short or not an .npy file ({error})") from error
    if (array.dtype, array.shape) != (dtype, shape) or not array.flags.c_contiguous:
        raise DamagedError(
            f"{file} holds {array.dtype} {list(array.shape)}, not {dtype} {list(shape)}"
        )
    if size != expected:
        raise DamagedError(f"{file} has {size} bytes, not {expected}")
    return array


def _out_of_range(labels: np.ndarray, num_classes: int) -> np.ndarray:
    return labels[(labels < NULL_LABEL) | (labels >= num_classes)]


def image_bytes(shards: Sequence[Shard], stored: Stored) -> int:
    """The bytes of the images of shards."""
    return sum(shard.count for shard in shards) * stored.nbytes


def check_shard_space(
    shards: Sequence[Shard], description: str, stored: Stored, otherwise: str
) -> None:
    """Raises OSError unless the disk has room for the images. otherwise: what else to do."""
    if not shards:
        return
    folder, needed = shards[0].images.parent, image_bytes(shards, stored)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"{folder} has {free / GIB:.2f} GiB free, and {description} takes "
            f"{needed / GIB:.2f} GiB; free disk space or {otherwise}"
        )


def _read_all(source: Source, shard: Shard) -> Iterator[tuple[np.ndarray, int]]:
    stop = shard.start + shard.count
    for start in range(shard.start, stop, CHUNK):
        yield from source.rows(start, min(start + CHUNK, stop))
