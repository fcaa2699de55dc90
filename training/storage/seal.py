"""What is written once and believed later: JSON records, and arrays in .npz files, with a seal.

The seal shows a file that was edited, put together, or made from something else. It is no
signature: whoever means to deceive can compute one. That of a record is its checksum. That of
arrays is one more entry, `seal`: JSON text of what they were made from, and a hash of that and of
them.
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
    """A record of plain JSON values with its checksum."""
    return {"record": dict(record), "crc32": checksum(record)}


def unseal_record(content: Any) -> dict[str, Any]:
    """The record of `seal_record`. Raises ValueError if it is not what was sealed."""
    if not isinstance(content, dict) or content.get("crc32") != checksum(content.get("record")):
        raise ValueError("its record does not have the checksum that was written with it")
    return content["record"]


def checksum(record: Any) -> int:
    """CRC-32 of a JSON value."""
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def write_sealed(path: Path, source: Mapping[str, Any], **arrays: Any) -> None:
    """Write arrays and their seal, whole or not at all.

    source: plain values by name that say what the arrays were made from; None where unknown.
    """
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    source = json.loads(json.dumps(source))
    seal = {"sha256": arrays_sha256(arrays, source), "source": source}
    write_npz(path, **arrays, **{SEAL: np.array(json.dumps(seal))})


def read_sealed(path: Path, source: Mapping[str, Any], remedy: str) -> dict[str, np.ndarray]:
    """The arrays of `write_sealed`. A file of an older version, without a seal, is read too.

    Raises ValueError that names the file and the remedy, unless it is whole, as it was written, and
    made from `source`; values that either side does not know are not compared.
    """
    arrays = read_npz(path, remedy)
    seal = arrays.pop(SEAL, None)
    if seal is None:
        warn_once(
            f"{path.parent} has a file without a seal, which an older version wrote; whether it "
            "was changed cannot be checked"
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
    """A hash of the arrays' names, types, shapes and bytes, and of what they were made from."""
    total = hashlib.sha256(json.dumps(source, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        total.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return total.hexdigest()


def check_array(
    path: Path, name: str, array: np.ndarray, dtype: Any, shape: tuple[int | None, ...], remedy: str
) -> None:
    """Raises ValueError unless an array of a file has this kind of number and shape, and is finite.

    shape: None is any size. dtype: np.floating, for example, is any of its kind.
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
    """A file under root, or the one of its name under read_only if only that is there."""
    other = None if read_only is None else read_only / path.relative_to(root)
    return path if other is None or path.exists() or not other.exists() else other


@contextmanager
def warn_if_unwritable(path: Path) -> Iterator[None]:
    """A block that writes a file that can be made again: without it there is one warning."""
    try:
        yield
    except OSError as error:
        warn_once(
            f"{path.parent} cannot be written to, and what is measured with is made again every "
            f"time; name another folder by data.dir or $FEWSTEP_DATA ({error})"
        )
