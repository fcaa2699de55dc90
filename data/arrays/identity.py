"""The identity of a data set, as JSON values; equal identities mean equal data.

    {"image_shape": [8, 8, 1], "classes": ["0", "1", ...],
     "splits": {"train": {"count": 1437, "images_sha256": "...", "labels_sha256": "..."}, ...}}

Hashes are of the decoded arrays, which training reads, whatever files they came from.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fewstep.messages import differences
from fewstep.progress import progress_bar

CHUNK_BYTES = 2**26  # bytes hashed at once
SHOWN_BYTES = 2**28  # fewest bytes that get a progress bar
DIGEST_DIGITS = 12
WORDS = 40  # most characters of a value in a message

Identity = Mapping[str, Any]


def dataset_identity(
    image_shape: Sequence[int], classes: Sequence[str], splits: Mapping[str, Mapping[str, Any]]
) -> Identity:
    """The identity of a data set, from `split_identity` of each of its splits."""
    return {"image_shape": list(image_shape), "classes": list(classes), "splits": dict(splits)}


def split_identity(images: np.ndarray, labels: np.ndarray, description: str = "") -> dict[str, Any]:
    """Count and hashes of a split: uint8 [N, H, W, C] and int [N].

    description: the text of the progress bar, which only many images have.
    """
    return {
        "count": len(labels),
        "images_sha256": images_sha256(images, description),
        "labels_sha256": labels_sha256(labels),
    }


def images_sha256(images: np.ndarray, description: str = "") -> str:
    """SHA-256 of the bytes of images [N, H, W, C], read in chunks."""
    total = hashlib.sha256()
    rows = max(CHUNK_BYTES // max(images[:1].nbytes, 1), 1)
    starts = range(0, len(images), rows)
    for start in progress_bar(
        starts, desc=description, silent=images.nbytes < SHOWN_BYTES, leave=False
    ):
        total.update(np.ascontiguousarray(images[start : start + rows]))
    return total.hexdigest()


def labels_sha256(labels: np.ndarray) -> str:
    """SHA-256 of labels [N] as little-endian int32."""
    return hashlib.sha256(np.asarray(labels, "<i4").tobytes()).hexdigest()


def short_hash(values: Mapping[str, Any]) -> str:
    """A short hash of JSON values, which does not depend on the order of fields."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_DIGITS]


def identity_changes(recorded: Identity, found: Identity) -> list[str]:
    """The fields in which two identities differ, each with both values in words."""
    return [
        f"{field} ({_in_words(before)} recorded, {_in_words(now)} now)"
        for field, before, now in differences(_flat(recorded), _flat(found))
    ]


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, Mapping):
        return {prefix: values}
    parts = (_flat(value, f"{prefix}.{name}".strip(".")) for name, value in values.items())
    return {name: value for part in parts for name, value in part.items()}


def _in_words(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= WORDS else f"{text[:12]}..."
