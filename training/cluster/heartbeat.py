"""The heartbeat file of each process, for outside monitors: WORKDIR/heartbeat/PROCESS.

Its modification time is that of the last training step. While a process compiles, saves or
evaluates, a thread keeps the file fresh. It is touched at most once a second.
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
    """The heartbeat file of this process. It is not created again in a folder that was removed."""

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
        """Touch the file, unless it was touched within the last second."""
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
        """Warn once that the file cannot be written; the run goes on."""
        if not self.warned:
            warn(f"{self.file} cannot be touched ({error.strerror}): watchers will miss it")
        self.warned = True


def remove_others(folder: Path) -> None:
    """Remove files of processes that an earlier start had and this one lacks."""
    if jax.process_index() > 0:
        return
    for file in folder.iterdir():
        if file.name.isdecimal() and int(file.name) >= jax.process_count():
            file.unlink(missing_ok=True)
