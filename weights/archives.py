"""Reads zip files of arrays (.npz), and refuses those that would fill the memory.

A few kilobytes of deflated zeros inflate to gigabytes, and overlapping records repeat the same
bytes. So sizes are checked before anything is inflated: the records against the file, and each
array's header against its record.
"""

import math
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np

METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# Arrays may inflate to 100 times their file, or to 256 MiB in all if that is more. Noise hardly
# deflates; sparse images deflate about ten times, equal labels hundreds of times.
LARGEST_RATIO, ALWAYS_ALLOWED = 100, 2**28
HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
SUFFIX = ".npy"


def read_arrays(file: Path | BinaryIO) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name; arrays of objects are refused.

    Raises ValueError for a file that inflates too far, and any exception for a damaged one.
    """
    with zipfile.ZipFile(file) as archive:
        check_archive(archive)
        sizes = [array_bytes(archive, record) for record in archive.infolist()]
        check_inflated(sum(sizes), archive_bytes(archive))
        return {
            record.filename.removesuffix(SUFFIX): read_array(archive, record)
            for record in archive.infolist()
        }


def check_archive(archive: zipfile.ZipFile) -> None:
    """Raises ValueError for duplicate names, overlapping records and unknown compression."""
    records = archive.infolist()
    if len({record.filename for record in records}) < len(records):
        raise ValueError("two of its records have the same name")
    if sum(record.compress_size for record in records) > archive_bytes(archive):
        raise ValueError("its records are larger than the file")
    for record in records:
        stored = record.compress_type == zipfile.ZIP_STORED
        if record.compress_type not in METHODS:
            raise ValueError(f"a record has compression {record.compress_type}, not deflate")
        if stored and record.file_size != record.compress_size:
            raise ValueError(f"a record of {record.compress_size} bytes claims {record.file_size}")


def check_inflated(size: int, stored: int) -> None:
    """Raises ValueError if a file of `stored` bytes would inflate to `size` bytes, too many."""
    if size > max(ALWAYS_ALLOWED, LARGEST_RATIO * stored):
        raise ValueError(
            f"its {stored} bytes inflate to {size}, more than {LARGEST_RATIO} times as many; if "
            "the file is sound, save it uncompressed"
        )


def archive_bytes(archive: zipfile.ZipFile) -> int:
    """The size in bytes of the file behind an archive."""
    archive.fp.seek(0, 2)
    return archive.fp.tell()


def array_bytes(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> int:
    """The bytes of an array by its header. Raises ValueError unless its record is as large."""
    with archive.open(record) as file:
        version = np.lib.format.read_magic(file)
        if not record.filename.endswith(SUFFIX) or version not in HEADERS:
            raise ValueError(f"{record.filename[:80]} is not an array of numbers or text")
        shape, _, dtype = HEADERS[version](file)
        header = file.tell()
    size = dtype.itemsize * math.prod(shape)  # Python integers do not overflow
    counted = dtype.itemsize > 0 or size == math.prod(shape)  # no endless empty elements
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
