"""Images decoded once into memory-mapped uint8 arrays, whatever they came from.

    DATA_DIR/arrays/NAME-KEY/train_images.npy   uint8 [N, S, S, C]
                             train_labels.npy   int32 [N]

KEY is a hash of everything that the arrays depend on. A file appears under its name only when it is
complete; labels appear before images, so a split is ready when its images are there.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple
from uuid import uuid4

import numpy as np
from tqdm import tqdm

from data.dataset import Dataset, Split

FORMAT = 1  # part of the key; another number makes every array anew
CHUNK = 256  # images decoded ahead of the disk; bounds the memory in use
FOLDER = "arrays"


class Source(NamedTuple):
    """A split that is not decoded yet.

    read(i) is image i as uint8 [S, S, C] and its label; it is called from several threads.
    """

    count: int
    read: Callable[[int], tuple[np.ndarray, int]]


class Undecoded(NamedTuple):
    """A data set that is not decoded yet; `identity` is all that its arrays depend on (JSON)."""

    name: str
    identity: object
    image_shape: tuple[int, int, int]
    num_classes: int
    splits: dict[str, Source]


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
    content = json.dumps([FORMAT, data.name, data.image_shape, data.identity])
    key = hashlib.sha256(content.encode()).hexdigest()[:16]
    readable = re.sub(r"[^A-Za-z0-9]+", "_", data.name).strip("_")[-60:]
    return root / FOLDER / f"{readable}-{key}"


def is_decoded(data: Undecoded, root: Path) -> bool:
    """Whether the arrays of every split are there."""
    folder = array_folder(data, root)
    return all((folder / f"{name}_images.npy").exists() for name in data.splits)


def decode(data: Undecoded, root: Path) -> Dataset:
    """The data set as memory-mapped arrays, decoded with a progress bar if that is not done yet."""
    folder = array_folder(data, root)
    for name, source in data.splits.items():
        if not (folder / f"{name}_images.npy").exists():
            folder.mkdir(parents=True, exist_ok=True)
            _decode_split(source, data.image_shape, folder, name, f"{data.name} {name}")
    opened = {name: _open_split(folder, name) for name in data.splits}
    return Dataset(data.name, opened["train"], opened.get("test"), data.num_classes)


def _open_split(folder: Path, name: str) -> Split:
    images = np.load(folder / f"{name}_images.npy", mmap_mode="r", allow_pickle=False)
    return Split(images, np.load(folder / f"{name}_labels.npy", allow_pickle=False))


def _decode_split(
    source: Source, image_shape: Sequence[int], folder: Path, name: str, description: str
) -> None:
    labels = np.empty(source.count, np.int32)
    with _complete(folder / f"{name}_images.npy") as file:
        # Written in sequence, not through a memory map, so that a full disk is an OSError.
        header = {"descr": "|u1", "fortran_order": False, "shape": (source.count, *image_shape)}
        np.lib.format.write_array_header_1_0(file, header)
        bar = tqdm(_read_all(source), desc=description, total=source.count, unit="image")
        for i, (image, label) in enumerate(bar):
            file.write(np.ascontiguousarray(image).tobytes())
            labels[i] = label
        with _complete(folder / f"{name}_labels.npy") as label_file:
            np.save(label_file, labels, allow_pickle=False)


def _read_all(source: Source) -> Iterator[tuple[np.ndarray, int]]:
    with ThreadPoolExecutor() as threads:
        for start in range(0, source.count, CHUNK):
            yield from threads.map(source.read, range(start, min(start + CHUNK, source.count)))


@contextmanager
def _complete(path: Path) -> Iterator[BinaryIO]:
    """A file that takes its name when the block ends, and is removed if the block fails."""
    temporary = path.with_name(f"{path.name}.{uuid4().hex}.tmp")  # of this process alone
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
