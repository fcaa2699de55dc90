"""Seals of files that are written once and trusted later: JSON records, and arrays in .npz files.

A seal reveals a file that was edited, assembled, or made from something else. It is no signature:
anybody can compute one. The seal of a record is its checksum. The seal of arrays is one more entry,
`seal`: JSON text of what they were made from, and a hash of that text and the arrays.
"""

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.files import read_npz, write_npz
from fewstep.messages import differences
from fewstep.training.cluster.processes import warn_once

SEAL = "seal"
Arrays = Mapping[str, np.ndarray]


def seal_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of plain JSON values, together with its checksum."""
    return {"record": dict(record), "crc32": checksum(record)}


def unseal_record(content: Any) -> dict[str, Any]:
    """The record in the output of `seal_record`. Raises ValueError if it was changed since."""
    if not isinstance(content, dict) or content.get("crc32") != checksum(content.get("record")):
        raise ValueError("its record does not have the checksum that was written with it")
    return content["record"]


def checksum(record: Any) -> int:
    """CRC-32 of a JSON value."""
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def write_sealed(path: Path, source: Mapping[str, Any], **arrays: Any) -> None:
    """Write arrays and their seal, all or nothing.

    source: what the arrays were made from, as plain values by name; None where unknown.
    """
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    source = json.loads(json.dumps(source))
    seal = {"sha256": arrays_sha256(arrays, source), "source": source}
    write_npz(path, **arrays, **{SEAL: np.array(json.dumps(seal))})


def read_sealed(path: Path, source: Mapping[str, Any], remedy: str) -> dict[str, np.ndarray]:
    """The arrays of `write_sealed`; also reads a file without a seal, of an older version.

    Raises ValueError with the file and the remedy if the file is damaged, changed, or not made from
    `source`. Does not compare values that are None on either side.
    """
    arrays = read_npz(path, remedy)
    seal = arrays.pop(SEAL, None)
    if seal is None:
        warn_once(
            f"{path.parent} has a file without a seal, which an older version wrote; nobody can "
            "tell whether it was changed"
        )
        return arrays
    try:
        content = json.loads(str(seal))
        sha256, made_from = content["sha256"], dict(content["source"])
        now = arrays_sha256(arrays, made_from)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path} has a seal that cannot be read; {remedy}") from error
    if sha256 != now:
        raise ValueError(f"{path} was changed after it was written; {remedy}")
    found = [
        f"{name} ({there} there, {here} here)"
        for name, there, here in sorted(differences(made_from, json.loads(json.dumps(source))))
        if None not in (there, here)
    ]
    if found:
        raise ValueError(f"{path} was made from something else: {'; '.join(found)}. {remedy}")
    return arrays


def arrays_sha256(arrays: Arrays, source: Mapping[str, Any]) -> str:
    """A hash of the arrays' names, types, shapes and bytes, and of `source`."""
    total = hashlib.sha256(json.dumps(source, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        total.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return total.hexdigest()


def check_array(
    path: Path, name: str, array: np.ndarray, dtype: Any, shape: tuple[int | None, ...], remedy: str
) -> None:
    """Raises ValueError unless an array of a file has this type and shape, and is finite.

    shape: None allows any size of an axis. dtype: an abstract type such as np.floating allows all
    types below it.
    """
    fits = len(array.shape) == len(shape) and all(
        own == side or side is None for own, side in zip(array.shape, shape, strict=True)
    )
    if not fits or not np.issubdtype(array.dtype, dtype):
        sizes = ["any" if side is None else side for side in shape]
        raise ValueError(
            f"{path}: {name} is {array.dtype} {list(array.shape)}, not {dtype.__name__} "
            f"[{', '.join(map(str, sizes))}]; {remedy}"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{path}: {name} has values that are not finite; {remedy}")


def find_kept_file(path: Path, root: Path, read_only: Path | None) -> Path:
    """`path`, which lies under root, or the same file under read_only if only that exists."""
    other = None if read_only is None else read_only / path.relative_to(root)
    return path if other is None or path.exists() or not other.exists() else other


@contextmanager
def warn_if_unwritable(path: Path) -> Iterator[None]:
    """A block that writes a file that can be made again; warns once instead of raising OSError."""
    try:
        yield
    except OSError as error:
        warn_once(
            f"{path.parent} cannot be written to ({error}), so what measurements need is computed "
            "again every time; set data.dir or $FEWSTEP_DATA to another folder"
        )
