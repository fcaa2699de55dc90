"""The two files of one decoded split: images uint8 [N, S, S, C] and labels int32 [N]."""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from data.dataset import NULL_LABEL, Split
from data.files import whole_file
from data.identity import images_sha256, labels_sha256
from data.manifest import DamagedError, Record, Stamp, stamp

CHUNK = 256  # images decoded ahead of the disk; bounds the memory in use
GIB = 2**30


class Source(NamedTuple):
    """A split that is not decoded yet.

    read(i) is image i as uint8 [S, S, C] and its label; it is called from several threads.
    """

    count: int
    read: Callable[[int], tuple[np.ndarray, int]]


class SplitFiles(NamedTuple):
    """Where a split lies, and what its files must hold by what they were decoded from.

    description: of the data set and the split, for progress bars. num_classes: 0 for no labels.
    """

    images: Path
    labels: Path
    description: str
    count: int
    image_shape: tuple[int, int, int]
    num_classes: int

    @property
    def stamps(self) -> list[Stamp]:
        """Stamps of both files as they are now."""
        return [stamp(self.images), stamp(self.labels)]


def open_split(files: SplitFiles, record: Record | None = None) -> Split:
    """The split, its images memory-mapped.

    Raises DamagedError, naming the file, for a missing one, another size, type or shape, a label
    out of range, and for labels that are not those of the record.
    """
    images = _open_array(files.images, np.dtype(np.uint8), (files.count, *files.image_shape))
    labels = np.array(_open_array(files.labels, np.dtype(np.int32), (files.count,)))
    strange = _out_of_range(labels, files.num_classes)
    if len(strange):
        raise DamagedError(
            f"{files.labels} has label {strange[0]}, which is none of {files.num_classes} classes"
        )
    if record is not None and labels_sha256(labels) != record.identity["labels_sha256"]:
        raise DamagedError(f"{files.labels} holds other labels than were decoded")
    return Split(images, labels)


def examine(files: SplitFiles, record: Record | None) -> Record:
    """The record of files as they are, by hashing them.

    Raises DamagedError as `open_split` does, and for images that are not those of the record.
    """
    stamps = files.stamps
    images, labels = open_split(files, record)
    found = images_sha256(images, f"hashing {files.description}")
    if record is not None and found != record.identity["images_sha256"]:
        raise DamagedError(f"{files.images} holds other images than were decoded")
    return _record(files, found, labels, stamps)


def write_split(files: SplitFiles, source: Source) -> Record:
    """Decode a split into its files, with a progress bar. Raises OSError if they have no room."""
    _check_space(files)
    labels, total = np.empty(files.count, np.int32), hashlib.sha256()
    with whole_file(files.images) as file:
        # Written in sequence, not through a memory map, so that a full disk is an OSError.
        shape = (files.count, *files.image_shape)
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        bar = tqdm(_read_all(source), desc=files.description, total=source.count, unit="image")
        for i, (image, label) in enumerate(bar):
            content = np.ascontiguousarray(image).tobytes()
            file.write(content)
            total.update(content)
            labels[i] = label
        strange = _out_of_range(labels, files.num_classes)
        if len(strange):
            raise ValueError(
                f"{files.description} has label {strange[0]}, which is none of its "
                f"{files.num_classes} classes; correct the data"
            )
        with whole_file(files.labels) as label_file:
            np.save(label_file, labels, allow_pickle=False)
    return _record(files, total.hexdigest(), labels, files.stamps)


def _record(files: SplitFiles, images: str, labels: np.ndarray, stamps: list[Stamp]) -> Record:
    hashes = {"images_sha256": images, "labels_sha256": labels_sha256(labels)}
    return Record({"count": files.count, **hashes}, stamps)


def _open_array(file: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
        size, expected = file.stat().st_size, array.offset + array.nbytes
    except FileNotFoundError as error:
        raise DamagedError(f"{file} is missing") from error
    except OSError:
        raise  # such as one that may not be read; it names the file
    except Exception as error:  # a damaged file can raise nearly anything
        raise DamagedError(f"{file} is empty, cut short or no .npy file ({error})") from error
    if (array.dtype, array.shape) != (dtype, shape) or not array.flags.c_contiguous:
        raise DamagedError(
            f"{file} holds {array.dtype} {list(array.shape)} and not {dtype} {list(shape)}"
        )
    if size != expected:
        raise DamagedError(f"{file} has {size} bytes, and should have {expected}")
    return array


def _out_of_range(labels: np.ndarray, num_classes: int) -> np.ndarray:
    return labels[(labels < NULL_LABEL) | (labels >= num_classes)]


def _check_space(files: SplitFiles) -> None:
    """Raises OSError unless the disk has room for the images."""
    folder = files.images.parent
    needed, free = files.count * int(np.prod(files.image_shape)), shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"{folder} has {free / GIB:.2f} GiB free, and {files.description} takes "
            f"{needed / GIB:.2f} GiB; free disk space or choose another data.dir"
        )


def _read_all(source: Source) -> Iterator[tuple[np.ndarray, int]]:
    with ThreadPoolExecutor() as threads:
        for start in range(0, source.count, CHUNK):
            yield from threads.map(source.read, range(start, min(start + CHUNK, source.count)))
