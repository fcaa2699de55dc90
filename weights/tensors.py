"""Reads tensors from published weight files without running code from them.

The format is recognized by content, not by file name: PyTorch state dicts and training checkpoints
(the zip format, and the stream of pickles used before 2020), safetensors, also split over files
that an index names, NumPy's .npz, pickles of NumPy arrays, and checkpoints of Flax. Arrays are
views of a memory map (weights/mapped.py), but of .npz and Flax copies.

Traps of the formats:
- Unpickling may call any function. weights/pickles.py and weights/checkpoints.py call none: they
  find where each tensor lies, and the numbers are then read as bytes.
- A small file may claim gigabytes, so each size is checked against the file before reading.
- Tensors may share one storage, and a tensor may be a transposed or shifted slice of it.
- The zip format has the byte order of the machine that wrote it; the stream is little-endian.
- NumPy has no bfloat16. The type comes from ml_dtypes, and numpy.savez does not keep it.
"""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fewstep.weights.archives import check_archive, read_arrays
from fewstep.weights.checkpoints import CheckpointMachine, check_inert, part_names, take_part
from fewstep.weights.flax_checkpoints import flax_parts, is_msgpack, read_flax
from fewstep.weights.mapped import (
    check_description,
    cut,
    map_file,
)
from fewstep.weights.numpy_pickles import array_parts, is_pickle, read_pickled_arrays
from fewstep.weights.pickles import SHOWN, Machine, Slice, read_description
from fewstep.weights.safetensors import is_index, read_safetensors, read_sharded, shards
from fewstep.weights.streams import (
    STREAM_START,
    Description,
    describe_stream,
    stream_storages,
    tensor_array,
)

ZIP_START = b"PK\x03\x04"

REMEDY = (
    "convert it once where PyTorch is installed: "
    "torch.save(torch.load(FILE, weights_only=True), NEW_FILE)"
)

# (file, part) -> tensors by name
Reader = Callable[[BinaryIO, str], dict[str, np.ndarray]]
# The fixed part of the header before each record of a zip file, and where it has two lengths.
LOCAL_HEADER, LENGTHS = 30, slice(26, 30)


def read_tensors(path: str | Path, part: str = "") -> dict[str, np.ndarray]:
    """The tensors of a file by name; arrays may be read-only and may share memory.

    part: the key of a state dict in a training checkpoint, such as "ema" or "state_dict"; in a
    pickle of NumPy arrays, and in a checkpoint of Flax, the keys that lead to it, joined by "/".
    What the checkpoint has beside it is not read. "" is the whole file, which must then be a state
    dict.

    Raises ValueError that names the file if its format is unknown, it is damaged, it holds anything
    besides named tensors, or it is a pickle that asks for functions which tensors do not need.
    """
    with open(path, "rb") as file:
        reader = find_reader(file.read(len(STREAM_START)))
        if reader is None:
            raise ValueError(f"{path} is not a PyTorch state dict, safetensors or .npz; {REMEDY}")
        file.seek(0)
        try:
            return reader(file, part)
        except Exception as error:  # a damaged or hostile file can raise nearly anything
            raise ValueError(
                f"{path} cannot be read: {type(error).__name__}: {error}. "
                f"If it is damaged or cut short, download it again; otherwise {REMEDY}"
            ) from error


def check_tensors(
    tensors: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    path: str | Path,
    expected: str,
) -> None:
    """Raises ValueError unless `tensors` have exactly these names and shapes.

    path: the file that was read. expected: the published file that it should be.
    """
    both = shapes.keys() & tensors.keys()
    faults = {
        "missing": shapes.keys() - tensors.keys(),
        "unknown": tensors.keys() - shapes.keys(),
        "of another shape": {key for key in both if tensors[key].shape != shapes[key]},
    }
    found = [
        f"{len(keys)} {fault}, such as {', '.join(sorted(keys)[:3])}"
        for fault, keys in faults.items()
        if keys
    ]
    if found:
        raise ValueError(f"{path} does not hold the tensors of {expected}: {'; '.join(found)}")


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parts_of(path: str | Path) -> list[str]:
    """The parts of a training checkpoint that have tensors; [] for any other file."""
    with open(path, "rb") as file:
        start = file.read(len(STREAM_START))
        file.seek(0)
        try:
            if start.startswith(ZIP_START):
                with zipfile.ZipFile(file) as archive:
                    return part_names(describe_archive(archive, CheckpointMachine()).content)
            if start == STREAM_START:
                return part_names(describe_stream(file, CheckpointMachine()).content)
            if is_pickle(start):
                return array_parts(file)
            if is_msgpack(start):
                return flax_parts(file)
        except Exception:  # as in `read_tensors`
            return []
    return []


def file_hashes(path: str | Path) -> dict[str, str]:
    """The SHA-256 of a file, and of the shards that it names if it is an index, by file name."""
    path = Path(path)
    with path.open("rb") as file:
        index = is_index(file.read(len(STREAM_START)))
        file.seek(0)
        paths = [path, *(sorted(shards(file)) if index else [])]
    return {one.name: file_sha256(one) for one in paths}


def find_reader(start: bytes) -> Reader | None:
    """The reader for a file that starts with these bytes; None for an unknown format."""
    if start.startswith(ZIP_START):
        return read_zip
    if start == STREAM_START:
        return read_stream
    if is_pickle(start):
        return read_pickled_arrays
    if is_index(start):
        return lambda file, part: check_no_part(read_sharded(file), part)
    if start[8:9] == b"{":
        return lambda file, part: check_no_part(read_safetensors(file), part)
    if is_msgpack(start):  # which a length of safetensors may look like
        return read_flax
    return None


def check_no_part(tensors: dict[str, np.ndarray], part: str) -> dict[str, np.ndarray]:
    """Returns the tensors of a file without parts. Raises ValueError if one is asked for."""
    if part:
        raise ValueError(f"it has tensors and no parts, so none is called {part[:SHOWN]!r}")
    return tensors


def read_zip(file: BinaryIO, part: str) -> dict[str, np.ndarray]:
    """Read a PyTorch archive, whose records lie in one folder, or an .npz file."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        if len(archive_roots(archive)) == 1:
            return read_archive(archive, map_file(file), part)
    if not all(name.endswith(".npy") for name in names):
        raise ValueError("this zip file is neither a PyTorch archive nor an .npz file")
    return check_no_part(read_arrays(file), part)


def machine_for(part: str) -> Machine:
    """The machine that reads a state dict, or a training checkpoint to take a part of it."""
    return CheckpointMachine() if part else Machine()


def archive_roots(archive: zipfile.ZipFile) -> list[str]:
    """The folders of an archive that have a pickle."""
    names = archive.namelist()
    return [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]


def describe_archive(archive: zipfile.ZipFile, machine: Machine) -> Description:
    """What the pickle of PyTorch's zip format describes. Raises ValueError for a compressed one."""
    check_archive(archive)
    if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
        raise ValueError("a record of a PyTorch archive is compressed")
    (root,) = archive_roots(archive)
    check_description(archive.getinfo(f"{root}data.pkl").file_size)
    content = read_description(io.BytesIO(archive.read(f"{root}data.pkl")), machine)
    return Description(content, machine.storages)


def read_archive(archive: zipfile.ZipFile, data: np.ndarray, part: str) -> dict[str, np.ndarray]:
    """Read PyTorch's zip format: a pickle and a record of raw bytes per storage, uncompressed."""
    slices = named_slices(describe_archive(archive, machine_for(part)).content, part)
    (root,) = archive_roots(archive)
    order = f"{root}byteorder"
    swapped = order in archive.namelist() and archive.read(order) == b"big"
    keys = {piece.storage.key for piece in slices.values()}
    storages = {key: record_bytes(archive, f"{root}data/{key}", data) for key in keys}
    return {
        name: tensor_array(piece, storages[piece.storage.key], swapped)
        for name, piece in slices.items()
    }


def record_bytes(archive: zipfile.ZipFile, name: str, data: np.ndarray) -> np.ndarray:
    """The bytes of an uncompressed record, as a view of the archive's.

    Raises ValueError or BadZipFile if the record is damaged.
    """
    record = archive.getinfo(name)
    archive.open(record).close()  # compares the record's two headers
    lengths = cut(data, record.header_offset, LOCAL_HEADER)[LENGTHS].view("<u2")
    start = record.header_offset + LOCAL_HEADER + int(lengths.sum())
    raw = cut(data, start, record.file_size)
    if zlib.crc32(raw) != record.CRC:
        raise zipfile.BadZipFile(f"the CRC-32 of {name} is not that of its bytes")
    return raw


def read_stream(file: BinaryIO, part: str) -> dict[str, np.ndarray]:
    """Read PyTorch's older format: five pickles, then each storage as its size and raw bytes."""
    described = describe_stream(file, machine_for(part))
    slices = named_slices(described.content, part)
    storages = stream_storages(described, map_file(file))
    return {
        name: tensor_array(piece, storages[piece.storage.key]) for name, piece in slices.items()
    }


def named_slices(described: Any, part: str) -> Mapping[str, Slice]:
    """The slices of a state dict by name. Raises ValueError if it holds anything else."""
    if part:
        described = take_part(described, part)
        check_inert(described, part)
    if not isinstance(described, Mapping):
        raise ValueError(f"it holds a {type(described).__name__}, not a state dict")
    named = {k: v for k, v in described.items() if isinstance(k, str) and isinstance(v, Slice)}
    other = [key for key in described if key not in named]
    if other:
        raise ValueError(
            f"it holds more than named tensors: {str(other[:3])[:SHOWN]}; save only the state dict"
        )
    return named
