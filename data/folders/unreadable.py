"""Finds unreadable image files before decoding, if the config allows some to be left out.

    DATA_DIR/unreadable/KEY.json   {"a/b.png": "why", ...}

KEY is a hash of the files' names, sizes and times, so that the files are searched only once. Errors
of the system, such as a missing permission, may pass without a change of these: a list with one is
not kept.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from fewstep.data.arrays.files import stored_file
from fewstep.data.folders.class_names import printable
from fewstep.data.folders.decoding import NEWEST_DECODING
from fewstep.data.folders.file_tree import Tree
from fewstep.data.folders.image_file import read_image
from fewstep.progress import progress_bar

FOLDER = "unreadable"
SHOWN = 5  # most files in a message
LINK = "a broken link"


def find_unreadable(
    tree: Tree, images: Sequence[str], allowed: int, root: Path | None
) -> Mapping[str, str]:
    """The unreadable images, and why each is.

    If none are allowed, it checks only for broken links; decoding then fails at the first
    unreadable file. root: the folder that keeps the list, or None. Raises ValueError for more than
    allowed.
    """
    broken = dict.fromkeys(tree.broken, LINK)
    found = broken | (_cached_unreadable(tree, images, root) if allowed else {})
    if len(found) > allowed:
        shown = [f"{printable(path)}: {why}" for path, why in found.items()][:SHOWN]
        shown += ["..."] if len(found) > SHOWN else []
        raise ValueError(
            f"{tree.top.name} has {len(found)} unreadable images, and data.unreadable={allowed} "
            f"allows {allowed or 'none'}: {'; '.join(shown)}. "
            "Repair or remove them, or raise data.unreadable"
        )
    return found


def _cached_unreadable(tree: Tree, images: Sequence[str], root: Path | None) -> dict[str, str]:
    """The unreadable images, from the kept list if it exists."""
    content = [NEWEST_DECODING, tree.top.name, [(i, *tree.stamps[i]) for i in sorted(images)]]
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    path = None if root is None else root / FOLDER / f"{key}.json"
    if path:
        with suppress(OSError, ValueError):
            known = json.loads(path.read_bytes())
            if isinstance(known, dict) and set(known) <= set(images):
                return known
    errors = _try_images(tree, images)
    found = {image: str(error) or type(error).__name__ for image, error in errors.items()}
    passing = any(isinstance(error, OSError) and error.errno for error in errors.values())
    if path and not passing:
        with suppress(OSError):  # then the next run searches again
            path.parent.mkdir(parents=True, exist_ok=True)
            with stored_file(path) as file:
                file.write(json.dumps(found, indent=2).encode())
    return found


def _try_images(tree: Tree, images: Sequence[str]) -> dict[str, Exception]:
    def why(path: str) -> Exception | None:
        try:
            read_image(tree.read(path), 3, (0, 0, 0))
        except Exception as error:  # each of Pillow's decoders has its own exceptions
            return error
        return None

    with ThreadPoolExecutor() as threads:
        described = f"looking for unreadable files in {tree.top.name}"
        reasons = threads.map(why, images)
        reasons = progress_bar(reasons, desc=described, total=len(images), unit="image")
        return {path: reason for path, reason in zip(images, reasons, strict=True) if reason}
