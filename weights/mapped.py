"""Bytes of a file as a memory map, so that a file larger than the memory can be read.

Arrays are views of the map: the system reads a page when it is used, and may drop it again. A file
must not be shortened while its arrays are in use.
"""

import json
from collections.abc import Sequence
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

# Most bytes of the pickles or JSON that say where tensors lie. A tensor takes some hundred bytes,
# and each byte may become a Python object.
DESCRIPTION_LIMIT = 2**20


def map_file(file: BinaryIO) -> np.ndarray:
    """All bytes of a file that is not empty, read-only: uint8 [size]."""
    return np.memmap(file, np.uint8, mode="r")


def cut(data: np.ndarray, start: int, length: int) -> np.ndarray:
    """`length` bytes from `start`, as a view. Raises ValueError if the data end before."""
    left = max(len(data) - start, 0)
    if length > left:
        raise ValueError(f"it is cut short: {length} bytes are needed and {left} are left")
    return data[start : start + length]


def array_of(
    raw: np.ndarray,
    dtype: np.dtype,
    shape: Sequence[int],
    offset: int = 0,
    strides: Sequence[int] | None = None,
) -> np.ndarray:
    """The array in raw bytes, as a view; NumPy refuses one that reaches outside of them."""
    return np.ndarray(shape, dtype, raw, offset, strides)


def check_description(length: int) -> None:
    """Raises ValueError if the description of the tensors has too many bytes."""
    if length > DESCRIPTION_LIMIT:
        raise ValueError(f"its header has {length} bytes, more than {DESCRIPTION_LIMIT}")


def read_json(text: bytes) -> Any:
    """The content of a JSON text. Raises ValueError for a duplicate name."""
    return json.loads(text, object_pairs_hook=json_object)


def json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict. Raises ValueError for a duplicate name."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("two of its tensors or fields have the same name")
    return content


def element_type(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
