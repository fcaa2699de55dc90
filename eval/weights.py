"""Tensors from published weight files, read without running code from them.

Files are told apart by their content, not by their name: a state dict that PyTorch saved (the zip
format, and the older stream of pickles in which weights published before 2020 still come),
safetensors, and NumPy's .npz.

Traps of the formats:
- A pickle may name any function and have it called while it is read. The unpickler here knows the
  names that a state dict needs and no other, and gives them to stand-ins that only describe where
  a tensor lies; the numbers are read afterwards, as bytes.
- Several tensors may share one storage, and a tensor may be a transposed or shifted slice of it.
- The zip format has the byte order of the machine that wrote it; the older one is little-endian.
- NumPy has no bfloat16: it is ml_dtypes' type, which numpy.savez does not keep.
"""

import hashlib
import io
import json
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

# PyTorch's classes of storages, which carry the type of their elements.
STORAGES: dict[str, Any] = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
STORAGE_MODULES = ("torch", "torch.cuda")
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
SAFETENSORS_HEADER_LIMIT = 100_000_000  # bytes, of the format's own definition
ZIP_START = b"PK\x03\x04"
# The older PyTorch format opens with this number, pickled by itself.
STREAM_START = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)

REMEDY = (
    "convert it once where PyTorch is installed: "
    "torch.save(torch.load(FILE, weights_only=True), NEW_FILE)"
)

Reader = Callable[[BinaryIO], dict[str, np.ndarray]]


class Storage(NamedTuple):
    """Elements that several tensors may share: their type, their name in the file, their number."""

    dtype: str
    key: str
    size: int


class Slice(NamedTuple):
    """A tensor as a pickle describes it; offset and strides count elements of the storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


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
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


def read_archive(archive: zipfile.ZipFile, root: str) -> dict[str, np.ndarray]:
    """PyTorch's zip format: a pickle, and one record of raw bytes per storage."""
    slices = state_dict(Unpickler(io.BytesIO(archive.read(f"{root}data.pkl"))).load())
    order = f"{root}byteorder"
    swapped = order in archive.namelist() and archive.read(order) == b"big"
    keys = {piece.storage.key for piece in slices.values()}
    storages = {key: archive.read(f"{root}data/{key}") for key in keys}
    return {
        name: tensor(piece, storages[piece.storage.key], swapped) for name, piece in slices.items()
    }


def read_stream(file: BinaryIO) -> dict[str, np.ndarray]:
    """PyTorch's older format: five pickles, then each storage as its size and raw bytes.

    The pickles are the opening number, the version, facts about the machine, the state dict, and
    the keys of the storages in their order.
    """
    *_, described, keys = (Unpickler(file).load() for _ in range(5))
    slices = state_dict(described)
    known = {piece.storage.key: piece.storage for piece in slices.values()}
    storages = {}
    for key in keys:
        size = int.from_bytes(file.read(8), "little")
        storages[key] = file.read(size * element(known[key].dtype).itemsize)
    return {name: tensor(piece, storages[piece.storage.key]) for name, piece in slices.items()}


def read_safetensors(file: BinaryIO) -> dict[str, np.ndarray]:
    """An 8-byte length, that many bytes of JSON, and the data that the JSON points into."""
    length = int.from_bytes(file.read(8), "little")
    if length > SAFETENSORS_HEADER_LIMIT:
        raise ValueError(f"a header of {length} bytes")
    header = json.loads(file.read(length))
    data = file.read()
    header.pop("__metadata__", None)
    return {name: safetensor(name, entry, data) for name, entry in header.items()}


def safetensor(name: str, entry: Mapping[str, Any], data: bytes) -> np.ndarray:
    dtype, shape = element(SAFETENSORS_TYPES[entry["dtype"]]), entry["shape"]
    start, stop = entry["data_offsets"]
    if not 0 <= start <= stop <= len(data) or stop - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name}: bytes {start} to {stop} of {len(data)} for {dtype} {shape}")
    return np.ndarray(shape, dtype, data, start)


class Unpickler(pickle.Unpickler):
    """Knows the names in GLOBALS and STORAGES, and describes tensors instead of reading them."""

    def find_class(self, module: str, name: str) -> Any:
        if module in STORAGE_MODULES and name in STORAGES:
            return STORAGES[name]
        if (module, name) not in GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no tensor needs")
        return GLOBALS[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _, size, *view = pid
        whole = kind == "storage" and all(part is None for part in view)
        if not whole or dtype not in STORAGES.values():
            raise pickle.UnpicklingError(f"{pid!r} is not a whole storage of numbers")
        return Storage(dtype, key, size)


def rebuild_tensor(storage, offset, shape, strides, *_) -> Slice:
    return Slice(storage, offset, shape, strides)


def rebuild_parameter(data, *_) -> Slice:
    return data


GLOBALS = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
}


def state_dict(described: Any) -> Mapping[str, Slice]:
    """Raises ValueError unless the pickle described a mapping of names to tensors."""
    if not isinstance(described, Mapping):
        raise ValueError(f"it holds a {type(described).__name__}, not a state dict")
    named = {k: v for k, v in described.items() if isinstance(k, str) and isinstance(v, Slice)}
    other = [key for key in described if key not in named]
    if other:
        raise ValueError(
            f"it holds more than named tensors, {other[:3]}; save the state dict alone"
        )
    return named


def tensor(piece: Slice, raw: bytes, swapped: bool = False) -> np.ndarray:
    """The array of a slice; NumPy refuses one that reaches outside `raw`, unless `raw` is empty."""
    dtype = element(piece.storage.dtype)
    filled = raw or not math.prod(piece.shape)
    if not filled or len(raw) != piece.storage.size * dtype.itemsize:
        raise ValueError(f"{piece} has {len(raw)} bytes")
    if swapped:
        raw = np.frombuffer(raw, np.uint8).reshape(-1, dtype.itemsize)[:, ::-1].tobytes()
    strides = [step * dtype.itemsize for step in piece.strides]
    return np.ndarray(piece.shape, dtype, raw, piece.offset * dtype.itemsize, strides)


def element(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
