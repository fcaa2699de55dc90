"""PyTorch's older format, a stream of five pickles and then the bytes of each storage.

It is the format of files before 2020, and of each tensor inside a pickle of whole modules. Numbers
are little-endian.
"""

import io
import math
import pickle
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from fewstep.weights.mapped import DESCRIPTION_LIMIT, array_of, cut, element_type
from fewstep.weights.pickles import Machine, Slice, Storage, read_description

# The format starts with this number, pickled on its own.
STREAM_START = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)


class Description(NamedTuple):
    """What a pickle describes. storages: all that it refers to, by key. keys: in file order."""

    content: Any
    storages: Mapping[str, Storage]
    keys: Any = ()
    end: int = 0


def describe_stream(file: BinaryIO, machine: Machine) -> Description:
    """What the five pickles of PyTorch's older format describe.

    They are the opening number, the version, the computer, the state dict, and the storage keys in
    file order.
    """
    head = io.BytesIO(file.read(DESCRIPTION_LIMIT))
    for _ in range(3):
        read_description(head)
    content, keys = read_description(head, machine), read_description(head)
    return Description(content, machine.storages, keys, head.tell())


def stream_storages(described: Description, data: np.ndarray) -> dict[str, np.ndarray]:
    """The bytes of each storage of a stream by key, as views of all its bytes.

    Raises ValueError if they are not the storages of its tensors.
    """
    known, place, storages = described.storages, described.end, {}
    for key in described.keys:
        if not isinstance(key, str) or key not in known or key in storages:
            raise ValueError("its storages are not those of its tensors")
        size = int.from_bytes(cut(data, place, 8).tobytes(), "little")
        if size != known[key].size:
            raise ValueError(f"a storage of {known[key].size} numbers has {size} in the file")
        storages[key] = cut(data, place + 8, size * element_type(known[key].dtype).itemsize)
        place += 8 + len(storages[key])
    return storages


def tensor_array(piece: Slice, raw: np.ndarray, swapped: bool = False) -> np.ndarray:
    """The array of a slice; NumPy refuses one that reaches outside a non-empty `raw`."""
    dtype = element_type(piece.storage.dtype)
    filled = len(raw) or not math.prod(piece.shape)
    if not filled or len(raw) != piece.storage.size * dtype.itemsize:
        raise ValueError(f"a storage of {piece.storage.size} numbers has {len(raw)} bytes")
    if swapped:
        raw = np.ascontiguousarray(raw.reshape(-1, dtype.itemsize)[:, ::-1]).ravel()
    strides = [step * dtype.itemsize for step in piece.strides]
    return array_of(raw, dtype, piece.shape, piece.offset * dtype.itemsize, strides)
