"""Measure random reads of decoded images, from one array and from shards.

    python -m bench.read --folder=/tmp/read --gib=4 --shard_gib=0.25

writes random images of 256 x 256 pixels into the folder. It reads batches of them as training does,
once from disk, after dropping them from the page cache, and once from memory. It prints rows per
second and removes the images.
"""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from absl import app, flags

from fewstep.data.arrays.rows import Rows

FOLDER = flags.DEFINE_string("folder", None, "Folder on the disk to measure.")
GIB = flags.DEFINE_float("gib", 4.0, "Size of all images, GiB.")
SHARD_GIB = flags.DEFINE_float("shard_gib", 1.0, "Size of a shard, GiB.")
BATCH = flags.DEFINE_integer("batch", 256, "Rows per batch.")
SECONDS = flags.DEFINE_float("seconds", 10.0, "Longest duration of each measurement.")

SHAPE = (256, 256, 3)
THREADS = 2  # as data.pipeline.READ_OPTIONS


def write_images(path: Path, count: int) -> None:
    """Write `count` images and flush them to the disk."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, SHAPE, np.uint8)
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, *SHAPE)}
        np.lib.format.write_array_header_1_0(file, header)
        for _ in range(count):
            file.write(image.tobytes())
        os.fsync(file.fileno())


def forget(path: Path) -> None:
    """Drop a file from the page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def rows_per_second(images: np.ndarray | Rows, order: np.ndarray, seconds: float) -> float:
    """Rows per second, read in batches by THREADS threads in this order until time is up."""
    since = time.perf_counter()

    def read(rows: np.ndarray) -> int:
        return 0 if time.perf_counter() - since > seconds else len(images[rows])

    with ThreadPoolExecutor(THREADS) as threads:
        batches = np.split(order, range(BATCH.value, len(order), BATCH.value))
        done = sum(threads.map(read, batches))
    return done / (time.perf_counter() - since)


def layouts(folder: Path, count: int, own: int) -> Iterator[tuple[str, list[Path], Callable]]:
    """(name, files, function that joins their arrays) of each layout; removes files after use."""
    for name, size in (("one array", count), (f"shards of {own} rows", own)):
        counts = [min(size, count - start) for start in range(0, count, size)]
        files = [folder / f"{i}.npy" for i in range(len(counts))]
        for file, rows in zip(files, counts, strict=True):
            write_images(file, rows)
        yield name, files, lambda opened: opened[0] if len(opened) == 1 else Rows(opened)
        for file in files:
            file.unlink()


def main(_: list[str]) -> None:
    """Print rows per second of both layouts, from disk and from memory."""
    folder, row = Path(FOLDER.value), int(np.prod(SHAPE))
    folder.mkdir(parents=True, exist_ok=True)
    count = int(GIB.value * 2**30) // row
    order = np.random.default_rng(1).permutation(count)
    for name, files, joined in layouts(folder, count, int(SHARD_GIB.value * 2**30) // row):
        speeds = []
        for cold in (True, False):
            opened = [np.load(file, mmap_mode="r") for file in files]
            for file, array in zip(files, opened, strict=True):
                if cold:
                    forget(file)
                else:
                    array.sum()
            speeds.append(rows_per_second(joined(opened), order, SECONDS.value))
        cold, warm = speeds
        print(
            f"{name:24} {cold:7,.0f} rows/s from disk ({cold * row / 1e9:.2f} GB/s), "
            f"{warm:7,.0f} from memory ({warm * row / 1e9:.2f} GB/s)"
        )


if __name__ == "__main__":
    flags.mark_flag_as_required("folder")
    app.run(main)
