"""Zip files of arrays (.npz), read only if what they hold is no larger than they say and may be.

A few kilobytes of deflated zeros are gigabytes of memory, and records that overlap are as many
copies of one. So sizes are compared before anything is inflated: those of the directory with the
file's, and those of arrays with their own headers.
"""

import math
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np

METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# Arrays may be as many times larger than their file, and those of this size in all whatever it is.
# Noise deflates hardly at all, sparse images ten times, equal labels hundreds of times.
LARGEST_RATIO, ALWAYS_ALLOWED = 100, 2**28
HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
SUFFIX = ".npy"


def read_arrays(file: Path | BinaryIO) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, none of which may hold objects.

    Raises nearly anything for a damaged file, ValueError for one that inflates too far.
    """
    with zipfile.ZipFile(file) as archive:
        check_archive(archive)
        sizes = [array_bytes(archive, record) for record in archive.infolist()]
        check_inflated(sum(sizes), file_bytes(archive))
        return {
            record.filename.removesuffix(SUFFIX): read_array(archive, record)
            for record in archive.infolist()
        }


def check_archive(archive: zipfile.ZipFile) -> None:
    """Raises ValueError for records of one name, that overlap, or that no such file has."""
    records = archive.infolist()
    if len({record.filename for record in records}) < len(records):
        raise ValueError("two of its records have the same name")
    if sum(record.compress_size for record in records) > file_bytes(archive):
        raise ValueError("its records are larger than the file")
    for record in records:
        stored = record.compress_type == zipfile.ZIP_STORED
        if record.compress_type not in METHODS:
            raise ValueError(f"a record has compression {record.compress_type}, not deflate")
        if stored and record.file_size != record.compress_size:
            raise ValueError(f"a record of {record.compress_size} bytes says {record.file_size}")


def check_inflated(size: int, of_file: int) -> None:
    """Raises ValueError if arrays of `size` bytes are too many for a file of `of_file` bytes."""
    if size > max(ALWAYS_ALLOWED, LARGEST_RATIO * of_file):
        raise ValueError(
            f"its {of_file} bytes would be {size} in memory, more than {LARGEST_RATIO} times as "
            "many; if they must be, save it uncompressed"
        )


def file_bytes(archive: zipfile.ZipFile) -> int:
    """The size of the file that an archive is read from."""
    archive.fp.seek(0, 2)
    return archive.fp.tell()


def array_bytes(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> int:
    """The size of an array by its header. Raises ValueError unless the record is as large."""
    with archive.open(record) as file:
        version = np.lib.format.read_magic(file)
        if not record.filename.endswith(SUFFIX) or version not in HEADERS:
            raise ValueError(f"{record.filename[:80]} is no array of numbers or text")
        shape, _, dtype = HEADERS[version](file)
        header = file.tell()
    size = dtype.itemsize * math.prod(shape)  # Python integers, which do not overflow
    counted = dtype.itemsize > 0 or size == math.prod(shape)  # else any number of empty elements
    bounded = min(shape, default=0) >= 0 and header + size == record.file_size
    if dtype.hasobject or not counted or not bounded:
        raise ValueError(
            f"{record.filename[:80]} has {record.file_size} bytes for {dtype} {list(shape)}"
        )
    return size


def read_array(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> np.ndarray:
    """The array of a record."""
    with archive.open(record) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
