"""A sign of life of each process, for watchers from outside: WORKDIR/heartbeat/PROCESS.

The file's modification time is that of the last step, or of now while a process does what has no
steps: compiles, saves, evaluates. It is not touched more often than once a second.
"""

import os
import time
from contextlib import suppress
from pathlib import Path

import jax

from fewstep.training.cluster.processes import warn

FOLDER = "heartbeat"
PERIOD = 1.0  # seconds


class Heartbeat:
    """The file of this process. It is not made again in a folder that was removed."""

    def __init__(self, workdir: Path) -> None:
        self.file, self.last = workdir / FOLDER / str(jax.process_index()), float("-inf")
        self.warned = False
        try:
            self.file.parent.mkdir(exist_ok=True)
            self.file.touch()
            remove_others(self.file.parent)
        except OSError as error:
            self.warn(error)

    def beat(self) -> None:
        """Touch the file, unless that was done within the last second."""
        now = time.monotonic()
        if now - self.last < PERIOD:
            return
        self.last = now
        try:
            os.utime(self.file)
        except FileNotFoundError:
            with suppress(OSError):
                self.file.touch()
        except OSError as error:
            self.warn(error)

    def warn(self, error: OSError) -> None:
        """Say that the file cannot be written, once; the run goes on."""
        if not self.warned:
            warn(f"{self.file} cannot be touched ({error.strerror}): watchers will miss it")
        self.warned = True


def remove_others(folder: Path) -> None:
    """Remove the files of processes that an earlier start had and this one has not."""
    if jax.process_index() > 0:
        return
    for file in folder.iterdir():
        if file.name.isdecimal() and int(file.name) >= jax.process_count():
            file.unlink(missing_ok=True)
