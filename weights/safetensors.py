"""Reads and writes safetensors: an 8-byte length, a JSON header of that length, and the data.

Large models are split over several files. Their `*.index.json` names the file of each tensor:

    {"metadata": {...}, "weight_map": {"proj_out_2.weight": "model-00002-of-00003.safetensors"}}
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fewstep.weights.mapped import (
    array_of,
    check_description,
    cut,
    element_type,
    map_file,
    read_json,
)
from fewstep.weights.pickles import SHOWN, is_shape, is_size

TYPES = {
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
FLOAT8 = "F8"  # the start of the names of types of 8 bits
LENGTH_BYTES = 8
WEIGHT_MAP, METADATA = "weight_map", "__metadata__"


def read_safetensors(file: BinaryIO) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, as views of its memory map."""
    data = map_file(file)
    length = int.from_bytes(cut(data, 0, LENGTH_BYTES).tobytes(), "little")
    check_description(length)
    header = read_json(cut(data, LENGTH_BYTES, length).tobytes())
    data = data[LENGTH_BYTES + length :]
    header.pop(METADATA, None)
    check_apart([entry["data_offsets"] for entry in header.values()])
    return {name: tensor_of(name, entry, data) for name, entry in header.items()}


def check_apart(spans: list[tuple[int, int]]) -> None:
    """Raises ValueError if tensors share bytes; a small file could then claim many of them."""
    spans = sorted(spans)
    if any(stop > start for (_, stop), (start, _) in zip(spans, spans[1:], strict=False)):
        raise ValueError("two of its tensors share bytes")


def tensor_of(name: str, entry: Mapping[str, Any], data: np.ndarray) -> np.ndarray:
    """The array of a header entry. Raises ValueError unless it lies within the data."""
    dtype, shape = dtype_of(name, entry["dtype"]), entry["shape"]
    start, stop = entry["data_offsets"]
    if not is_shape(shape) or not is_size(start) or not is_size(stop):
        raise ValueError("a tensor has a shape or offsets that are not sizes")
    if not start <= stop <= len(data) or stop - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(
            f"a tensor of {dtype} {shape} cannot be bytes {start} to {stop} of {len(data)}"
        )
    return array_of(data[start:stop], dtype, shape)


def dtype_of(name: str, kind: str) -> np.dtype:
    """The element type of a tensor. Raises ValueError for one that is not read."""
    if kind not in TYPES:
        why = (
            "numbers of 8 bits mean nothing without scales; use the file of float16, bfloat16 or "
            "float32"
            if kind.startswith(FLOAT8)
            else f"the types are {', '.join(TYPES)}"
        )
        raise ValueError(f"{name[:SHOWN]} has type {kind[:SHOWN]}, which is not read: {why}")
    return element_type(TYPES[kind])


def is_index(start: bytes) -> bool:
    """Whether a file that starts with these bytes is JSON text, such as an index of shards."""
    return start.startswith(b"{") and b"\0" not in start


def read_sharded(file: BinaryIO) -> dict[str, np.ndarray]:
    """The tensors of all files of an `*.index.json`, which lie beside it.

    Raises ValueError if a file is missing, or has other tensors than the index says.
    """
    tensors: dict[str, np.ndarray] = {}
    for path, names in shards(file).items():
        if not path.is_file():
            raise ValueError(f"{path.name} is not beside it; download all files of the model")
        with path.open("rb") as shard:
            found = read_safetensors(shard)
        if found.keys() != names:
            wrong = sorted(found.keys() ^ names)[:3]
            raise ValueError(f"{path.name} has other tensors than it says: {', '.join(wrong)}")
        tensors |= found
    return tensors


def shards(file: BinaryIO) -> dict[Path, set[str]]:
    """The files of an index, and the names of the tensors in each. Raises ValueError."""
    text = file.read()
    check_description(len(text))
    content = read_json(text)
    places = content.get(WEIGHT_MAP) if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places:
        raise ValueError(f"it is JSON, but no index of safetensors: it has no {WEIGHT_MAP}")
    found: dict[Path, set[str]] = {}
    for name, place in places.items():
        if not isinstance(place, str) or Path(place).name != place:
            raise ValueError(f"{name[:SHOWN]} is in {str(place)[:SHOWN]!r}, no file beside it")
        found.setdefault(Path(file.name).parent / place, set()).add(name)
    return found


def write_safetensors(file: BinaryIO, tensors: Mapping[str, np.ndarray]) -> None:
    """Write float32 tensors by name, in the order of their names.

    The data begin at a multiple of 8 bytes, as other readers expect.
    """
    header: dict[str, Any] = {METADATA: {"format": "pt"}}  # what PyTorch's libraries look for
    end = 0
    for name in sorted(tensors):
        array = tensors[name]
        size = array.size * np.dtype(np.float32).itemsize
        header[name] = {
            "dtype": "F32",
            "shape": list(array.shape),
            "data_offsets": [end, end + size],
        }
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    file.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
    for name in sorted(tensors):
        file.write(np.ascontiguousarray(tensors[name], "<f4").data)
