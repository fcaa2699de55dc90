"""Tensors from published weight files, read without running code from them.

Files are told apart by their content, not by their name: a state dict that PyTorch saved (the zip
format, and the older stream of pickles in which weights published before 2020 still come),
safetensors, and NumPy's .npz.

Traps of the formats:
- A pickle may name any function and have it called while it is read. weights/pickles.py runs none:
  it reads where each tensor lies, and the numbers are read afterwards, as bytes.
- A small file may stand for gigabytes. Each size is compared with the file's before it is read.
- Several tensors may share one storage, and a tensor may be a transposed or shifted slice of it.
- The zip format has the byte order of the machine that wrote it; the older one is little-endian.
- NumPy has no bfloat16: it is ml_dtypes' type, which numpy.savez does not keep.
"""

import hashlib
import io
import json
import math
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from fewstep.weights.archives import check_archive, read_arrays
from fewstep.weights.pickles import SHOWN, Slice, describe, is_shape, is_size

SAFETENSORS_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
# Bytes of the pickles or the JSON that say where tensors lie: some hundred a tensor, and each byte
# may become a Python object.
DESCRIPTION_LIMIT = 2**20
ZIP_START = b"PK\x03\x04"
# The older PyTorch format opens with this number, pickled by itself.
STREAM_START = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)

REMEDY = (
    "convert it once where PyTorch is installed: "
    "torch.save(torch.load(FILE, weights_only=True), NEW_FILE)"
)

Reader = Callable[[BinaryIO], dict[str, np.ndarray]]


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors in a file by their names; arrays may be read-only, and may share memory.

    Raises ValueError, naming the file, if it is of another format, is damaged, holds anything
    besides named tensors, or is a pickle that asks for a function which tensors do not need.
    """
    with open(path, "rb") as file:
        reader = reader_of(file.read(len(STREAM_START)))
        if reader is None:
            raise ValueError(
                f"{path} is not a PyTorch state dict, nor safetensors, nor .npz; {REMEDY}"
            )
        file.seek(0)
        try:
            return reader(file)
        except Exception as error:  # a damaged or hostile file can raise nearly anything
            raise ValueError(
                f"{path} cannot be read: {type(error).__name__}: {error}. "
                f"If it is damaged or cut short, fetch it again; otherwise {REMEDY}"
            ) from error


def check_tensors(
    tensors: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    path: str | Path,
    expected: str,
) -> None:
    """Raises ValueError unless `tensors` have these names and shapes and no others.

    path: the file that they come from. expected: the published file that it should be.
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


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reader_of(start: bytes) -> Reader | None:
    """The reader for a file with this start, or None."""
    if start.startswith(ZIP_START):
        return read_zip
    if start == STREAM_START:
        return read_stream
    if start[8:9] == b"{":
        return read_safetensors
    return None


def read_zip(file: BinaryIO) -> dict[str, np.ndarray]:
    """A PyTorch archive, of which every name starts with one folder, or an .npz file."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
        if len(roots) == 1:
            return read_archive(archive, roots[0])
    if not all(name.endswith(".npy") for name in names):
        raise ValueError("this zip file is neither a PyTorch archive nor an .npz file")
    return read_arrays(file)


def read_archive(archive: zipfile.ZipFile, root: str) -> dict[str, np.ndarray]:
    """PyTorch's zip format: a pickle, and one record of raw bytes per storage, all uncompressed."""
    check_archive(archive)
    if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
        raise ValueError("a record of a PyTorch archive is compressed")
    check_description(archive.getinfo(f"{root}data.pkl").file_size)
    slices = state_dict(describe(io.BytesIO(archive.read(f"{root}data.pkl"))))
    order = f"{root}byteorder"
    swapped = order in archive.namelist() and archive.read(order) == b"big"
    keys = {piece.storage.key for piece in slices.values()}
    storages = {key: archive.read(f"{root}data/{key}") for key in keys}
    return {
        name: tensor(piece, storages[piece.storage.key], swapped) for name, piece in slices.items()
    }


def check_description(length: int) -> None:
    """Raises ValueError if what says where the tensors lie is too long."""
    if length > DESCRIPTION_LIMIT:
        raise ValueError(f"a header of {length} bytes, and {DESCRIPTION_LIMIT} are the most")


def read_stream(file: BinaryIO) -> dict[str, np.ndarray]:
    """PyTorch's older format: five pickles, then each storage as its size and raw bytes.

    The pickles are the opening number, the version, facts about the machine, the state dict, and
    the keys of the storages in their order.
    """
    head = io.BytesIO(file.read(DESCRIPTION_LIMIT))
    *_, described, keys = (describe(head) for _ in range(5))
    file.seek(head.tell())
    slices = state_dict(described)
    known = {piece.storage.key: piece.storage for piece in slices.values()}
    storages = {}
    for key in keys:
        if not isinstance(key, str) or key not in known or key in storages:
            raise ValueError("its storages are not those of its tensors")
        size = int.from_bytes(file.read(8), "little")
        if size != known[key].size:
            raise ValueError(f"a storage of {known[key].size} numbers is written as {size}")
        storages[key] = read_exactly(file, size * element(known[key].dtype).itemsize)
    return {name: tensor(piece, storages[piece.storage.key]) for name, piece in slices.items()}


def read_exactly(file: BinaryIO, length: int) -> bytes:
    """The next bytes of a file. Raises ValueError, before reading, if there are fewer."""
    place = file.tell()
    left = file.seek(0, os.SEEK_END) - place
    file.seek(place)
    if length > left:
        raise ValueError(f"{length} bytes are missing, or some of them: {left} are left")
    return file.read(length)


def read_safetensors(file: BinaryIO) -> dict[str, np.ndarray]:
    """An 8-byte length, that many bytes of JSON, and the data that the JSON points into."""
    length = int.from_bytes(file.read(8), "little")
    check_description(length)
    header = json.loads(read_exactly(file, length), object_pairs_hook=unique)
    data = file.read()
    header.pop("__metadata__", None)
    check_apart([entry["data_offsets"] for entry in header.values()])
    return {name: safetensor(entry, data) for name, entry in header.items()}


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError if it has a name twice."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("two of its tensors or fields have the same name")
    return content


def check_apart(spans: list[tuple[int, int]]) -> None:
    """Raises ValueError for tensors that share bytes, of which a small file can have many."""
    spans = sorted(spans)
    if any(stop > start for (_, stop), (start, _) in zip(spans, spans[1:], strict=False)):
        raise ValueError("two of its tensors share bytes")


def safetensor(entry: Mapping[str, Any], data: bytes) -> np.ndarray:
    """The array of an entry of the header. Raises ValueError unless it lies within the data."""
    dtype, shape = element(SAFETENSORS_TYPES[entry["dtype"]]), entry["shape"]
    start, stop = entry["data_offsets"]
    if not is_shape(shape) or not is_size(start) or not is_size(stop):
        raise ValueError("a tensor is described by something else than sizes")
    if not start <= stop <= len(data) or stop - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"bytes {start} to {stop} of {len(data)} for a tensor of {dtype}")
    return np.ndarray(shape, dtype, data, start)


def state_dict(described: Any) -> Mapping[str, Slice]:
    """Raises ValueError unless the pickle described a mapping of names to tensors."""
    if not isinstance(described, Mapping):
        raise ValueError(f"it holds a {type(described).__name__}, not a state dict")
    named = {k: v for k, v in described.items() if isinstance(k, str) and isinstance(v, Slice)}
    other = [key for key in described if key not in named]
    if other:
        raise ValueError(
            f"it holds more than named tensors, {str(other[:3])[:SHOWN]}; save the state dict alone"
        )
    return named


def tensor(piece: Slice, raw: bytes, swapped: bool = False) -> np.ndarray:
    """The array of a slice; NumPy refuses one that reaches outside `raw`, unless `raw` is empty."""
    dtype = element(piece.storage.dtype)
    filled = raw or not math.prod(piece.shape)
    if not filled or len(raw) != piece.storage.size * dtype.itemsize:
        raise ValueError(f"a storage of {piece.storage.size} numbers has {len(raw)} bytes")
    if swapped:
        raw = np.frombuffer(raw, np.uint8).reshape(-1, dtype.itemsize)[:, ::-1].tobytes()
    strides = [step * dtype.itemsize for step in piece.strides]
    return np.ndarray(piece.shape, dtype, raw, piece.offset * dtype.itemsize, strides)


def element(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
