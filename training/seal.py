"""JSON records that a reader can tell from edited or damaged ones."""

import json
import zlib
from collections.abc import Mapping
from typing import Any


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of plain JSON values with its checksum."""
    return {"record": dict(record), "crc32": checksum(record)}


def unsealed(content: Any) -> dict[str, Any]:
    """The record of `sealed`. Raises ValueError if it is not what was sealed."""
    if not isinstance(content, dict) or content.get("crc32") != checksum(content.get("record")):
        raise ValueError("its record does not have the checksum that was written with it")
    return content["record"]


def checksum(record: Any) -> int:
    """CRC-32 of a JSON value."""
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())
