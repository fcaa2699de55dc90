"""Files that are written whole or not at all, and arrays read from them."""

import io
import json
import os
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from training.archives import read_arrays


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part.

    Folders on the way are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with fresh.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all."""
    replace_file(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write a compressed .npz file whole or not at all."""
    np.savez_compressed(content := io.BytesIO(), **arrays)
    replace_file(path, content.getvalue())


def read_npz(path: Path, remedy: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, none of which may hold objects.

    Raises ValueError that names the file and the remedy.
    """
    try:
        return read_arrays(path)
    except Exception as error:  # a damaged file can raise nearly anything
        raise ValueError(f"{path} cannot be read ({error}); {remedy}") from error
