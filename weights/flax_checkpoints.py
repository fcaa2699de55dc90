"""Reads the checkpoints that flax.training.checkpoints saved: a file of msgpack, or its folder.

    checkpoint_500000               {"params": {...}, "ema_params": {...}, "step": ..., ...}
    checkpoint_500000/checkpoint    the same file, as Flax had Orbax write it until 2024
    FOLDER/checkpoint_N             the newest of several

Parts and tensors have the names of weights/nested.py. msgpack has no code to run: arrays are their
shape, type and bytes. What Orbax wrote into files of its own, as it did for arrays on devices and
does for all today, is not in the file; such a checkpoint is refused.
"""

import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from flax.serialization import msgpack_restore

from fewstep.weights.nested import arrays_of_part, parts_of_arrays

FILE = "checkpoint"
NUMBERED = re.compile(r"checkpoint_(\d+)")
# First bytes of a map of msgpack with up to 15 entries, and of its first key, a short text.
MAP, TEXT = range(0x81, 0x90), range(0xA1, 0xC0)
ELSEWHERE = "PLACEHOLDER"  # what Orbax writes in the place of an array in another file


def find_checkpoint(path: Path) -> Path | None:
    """The file of msgpack that a folder stands for; None for a folder without one."""
    if (path / FILE).is_file():
        return path / FILE
    numbered = {int(n[1]): one for one in path.glob("*") if (n := NUMBERED.fullmatch(one.name))}
    if not numbered:
        return None
    newest = numbered[max(numbered)]
    return newest if newest.is_file() else find_checkpoint(newest)


def is_msgpack(start: bytes) -> bool:
    """Whether a file that starts with these bytes may be a map of msgpack, such as a state."""
    return len(start) > 1 and start[0] in MAP and start[1] in TEXT


def read_flax(file: BinaryIO, part: str) -> dict[str, np.ndarray]:
    """The arrays of a part by name; "" is the whole file, which must then be arrays alone.

    Raises ValueError if the part is missing, holds anything besides named arrays, or lies in other
    files.
    """
    content = restored(file)
    try:
        return arrays_of_part(content, part, np.ndarray)
    except ValueError as error:
        if ELSEWHERE not in repr(content)[:10_000]:
            raise
        raise ValueError(
            "its arrays lie in other files, which Orbax wrote; restore it once by Flax, and save "
            "its parameters by numpy.savez"
        ) from error


def flax_parts(file: BinaryIO) -> list[str]:
    """The outermost parts of a file that hold arrays and nothing else."""
    return parts_of_arrays(restored(file), np.ndarray)


def restored(file: BinaryIO) -> Any:
    """What a file of msgpack holds. Raises ValueError for one that is damaged."""
    return msgpack_restore(file.read())
