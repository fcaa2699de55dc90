"""Reads tensors from published weight files without running code from them.

The format is recognized by content, not by file name: PyTorch state dicts (the zip format, and the
stream of pickles used before 2020), safetensors, and NumPy's .npz.

Traps of the formats:
- Unpickling may call any function. weights/pickles.py calls none: it finds where each tensor lies,
  and the numbers are then read as bytes.
- A small file may claim gigabytes, so each size is checked against the file before reading.
- Tensors may share one storage, and a tensor may be a transposed or shifted slice of it.
- The zip format has the byte order of the machine that wrote it; the stream is little-endian.
- NumPy has no bfloat16. The type comes from ml_dtypes, and numpy.savez does not keep it.
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
from fewstep.weights.pickles import SHOWN, Slice, is_shape, is_size, read_description

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
# Most bytes of the pickles or JSON that say where tensors lie. A tensor takes some hundred bytes,
# and each byte may become a Python object.
DESCRIPTION_LIMIT = 2**20
ZIP_START = b"PK\x03\x04"
# The older PyTorch format starts with this number, pickled on its own.
STREAM_START = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)

REMEDY = (
    "convert it once where PyTorch is installed: "
    "torch.save(torch.load(FILE, weights_only=True), NEW_FILE)"
)

Reader = Callable[[BinaryIO], dict[str, np.ndarray]]


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a file by name; arrays may be read-only and may share memory.

    Raises ValueError that names the file if its format is unknown, it is damaged, it holds anything
    besides named tensors, or it is a pickle that asks for functions which tensors do not need.
    """
    with open(path, "rb") as file:
        reader = find_reader(file.read(len(STREAM_START)))
        if reader is None:
            raise ValueError(f"{path} is not a PyTorch state dict, safetensors or .npz; {REMEDY}")
        file.seek(0)
        try:
            return reader(file)
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


def find_reader(start: bytes) -> Reader | None:
    """The reader for a file that starts with these bytes; None for an unknown format."""
    if start.startswith(ZIP_START):
        return read_zip
    if start == STREAM_START:
        return read_stream
    if start[8:9] == b"{":
        return read_safetensors
    return None


def read_zip(file: BinaryIO) -> dict[str, np.ndarray]:
    """Read a PyTorch archive, whose records lie in one folder, or an .npz file."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
        if len(roots) == 1:
            return read_archive(archive, roots[0])
    if not all(name.endswith(".npy") for name in names):
        raise ValueError("this zip file is neither a PyTorch archive nor an .npz file")
    return read_arrays(file)


def read_archive(archive: zipfile.ZipFile, root: str) -> dict[str, np.ndarray]:
    """Read PyTorch's zip format: a pickle and a record of raw bytes per storage, uncompressed."""
    check_archive(archive)
    if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
        raise ValueError("a record of a PyTorch archive is compressed")
    check_description(archive.getinfo(f"{root}data.pkl").file_size)
    slices = named_slices(read_description(io.BytesIO(archive.read(f"{root}data.pkl"))))
    order = f"{root}byteorder"
    swapped = order in archive.namelist() and archive.read(order) == b"big"
    keys = {piece.storage.key for piece in slices.values()}
    storages = {key: archive.read(f"{root}data/{key}") for key in keys}
    return {
        name: tensor_array(piece, storages[piece.storage.key], swapped)
        for name, piece in slices.items()
    }


def check_description(length: int) -> None:
    """Raises ValueError if the description of the tensors has too many bytes."""
    if length > DESCRIPTION_LIMIT:
        raise ValueError(f"its header has {length} bytes, more than {DESCRIPTION_LIMIT}")


def read_stream(file: BinaryIO) -> dict[str, np.ndarray]:
    """Read PyTorch's older format: five pickles, then each storage as its size and raw bytes.

    The pickles are the opening number, the version, the machine, the state dict, and the storage
    keys in file order.
    """
    head = io.BytesIO(file.read(DESCRIPTION_LIMIT))
    *_, described, keys = (read_description(head) for _ in range(5))
    file.seek(head.tell())
    slices = named_slices(described)
    known = {piece.storage.key: piece.storage for piece in slices.values()}
    storages = {}
    for key in keys:
        if not isinstance(key, str) or key not in known or key in storages:
            raise ValueError("its storages are not those of its tensors")
        size = int.from_bytes(file.read(8), "little")
        if size != known[key].size:
            raise ValueError(f"a storage of {known[key].size} numbers has {size} in the file")
        storages[key] = read_exactly(file, size * element_type(known[key].dtype).itemsize)
    return {
        name: tensor_array(piece, storages[piece.storage.key]) for name, piece in slices.items()
    }


def read_exactly(file: BinaryIO, length: int) -> bytes:
    """The next `length` bytes. Raises ValueError, before reading, if fewer are left."""
    place = file.tell()
    left = file.seek(0, os.SEEK_END) - place
    file.seek(place)
    if length > left:
        raise ValueError(f"it is cut short: {length} bytes are needed and {left} are left")
    return file.read(length)


def read_safetensors(file: BinaryIO) -> dict[str, np.ndarray]:
    """Read safetensors: an 8-byte length, a JSON header of that length, and the data."""
    length = int.from_bytes(file.read(8), "little")
    check_description(length)
    header = json.loads(read_exactly(file, length), object_pairs_hook=json_object)
    data = file.read()
    header.pop("__metadata__", None)
    check_apart([entry["data_offsets"] for entry in header.values()])
    return {name: safetensor_array(entry, data) for name, entry in header.items()}


def json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict. Raises ValueError for a duplicate name."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("two of its tensors or fields have the same name")
    return content


def check_apart(spans: list[tuple[int, int]]) -> None:
    """Raises ValueError if tensors share bytes; a small file could then claim many of them."""
    spans = sorted(spans)
    if any(stop > start for (_, stop), (start, _) in zip(spans, spans[1:], strict=False)):
        raise ValueError("two of its tensors share bytes")


def safetensor_array(entry: Mapping[str, Any], data: bytes) -> np.ndarray:
    """The array of a header entry. Raises ValueError unless it lies within the data."""
    dtype, shape = element_type(SAFETENSORS_TYPES[entry["dtype"]]), entry["shape"]
    start, stop = entry["data_offsets"]
    if not is_shape(shape) or not is_size(start) or not is_size(stop):
        raise ValueError("a tensor has a shape or offsets that are not sizes")
    if not start <= stop <= len(data) or stop - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(
            f"a tensor of {dtype} {shape} cannot be bytes {start} to {stop} of {len(data)}"
        )
    return np.ndarray(shape, dtype, data, start)


def named_slices(described: Any) -> Mapping[str, Slice]:
    """The slices of a state dict by name. Raises ValueError if it holds anything else."""
    if not isinstance(described, Mapping):
        raise ValueError(f"it holds a {type(described).__name__}, not a state dict")
    named = {k: v for k, v in described.items() if isinstance(k, str) and isinstance(v, Slice)}
    other = [key for key in described if key not in named]
    if other:
        raise ValueError(
            f"it holds more than named tensors: {str(other[:3])[:SHOWN]}; save only the state dict"
        )
    return named


def tensor_array(piece: Slice, raw: bytes, swapped: bool = False) -> np.ndarray:
    """The array of a slice; NumPy refuses one that reaches outside a non-empty `raw`."""
    dtype = element_type(piece.storage.dtype)
    filled = raw or not math.prod(piece.shape)
    if not filled or len(raw) != piece.storage.size * dtype.itemsize:
        raise ValueError(f"a storage of {piece.storage.size} numbers has {len(raw)} bytes")
    if swapped:
        raw = np.frombuffer(raw, np.uint8).reshape(-1, dtype.itemsize)[:, ::-1].tobytes()
    strides = [step * dtype.itemsize for step in piece.strides]
    return np.ndarray(piece.shape, dtype, raw, piece.offset * dtype.itemsize, strides)


def element_type(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
