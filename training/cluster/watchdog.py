"""A watchdog that shows where a run hangs and ends the process if it hangs for too long.

A lost collective, a stuck file system or a deadlock raises no error: the run merely stops. If no
step finishes for max(seconds, factor x median step), the watchdog writes the stacks of all threads
to WORKDIR/stacks. After `exit_after` seconds it ends the process, so that a scheduler can start it
again. It also ends a process whose save is slower than `disk_speed`. Outside monitors read the
heartbeat (training/cluster/heartbeat.py).
"""

import faulthandler
import math
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax

from fewstep.files import replaced
from fewstep.training.cluster import exits, processes
from fewstep.training.cluster.heartbeat import Heartbeat

FOLDER = "stacks"
REMEMBERED = 101  # latest steps, whose median is the usual time
# Seconds that any save may take, however small: a busy file server needs time to make the folders,
# and the hosts wait for each other.
SMALLEST_SAVE = 120.0
WRITTEN = 10.0  # seconds to write the stacks, after which the disk counts as hung


class Patience(NamedTuple):
    """How long a step or a save may take.

    seconds, factor: when to report a step, see above. exit_after: seconds until the process ends; 0
    never ends it. disk_speed: slowest speed of a save, GB/s; 0 sets no limit.
    """

    seconds: float = 60.0
    factor: float = 10.0
    exit_after: float = 1800.0
    disk_speed: float = 0.01

    def save_seconds(self, size: int) -> float:
        """Seconds that a save of `size` bytes may take."""
        speed = self.disk_speed * 1e9
        return SMALLEST_SAVE + size / speed if speed else math.inf


PATIENCE = Patience()


class Watchdog:
    """Watches from its own thread while it is entered. Call `beat` after every finished step.

    size: bytes of a checkpoint.
    """

    def __init__(self, workdir: Path, patience: Patience = PATIENCE, size: int = 0) -> None:
        self.folder, self.patience, self.size = workdir / FOLDER, patience, size
        self.heartbeat = Heartbeat(workdir)
        self.times: deque[float] = deque(maxlen=REMEMBERED)
        self.last: float | None = None  # when the last step finished; None while not watching
        self.save_began: float | None = None
        self.reported = False
        self.ended = threading.Event()

    def __enter__(self) -> "Watchdog":
        self.thread = threading.Thread(target=self.watch, name="watchdog", daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def beat(self) -> None:
        """Note that a step has finished. Watching begins after the first, which is compiled."""
        now = time.monotonic()
        if self.last is not None:
            self.times.append(now - self.last)
        self.last, self.reported = now, False
        self.heartbeat.beat()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not watch in this block, which may take any time, nor until the next `beat`."""
        self.last = None
        try:
            yield
        finally:
            self.last = None

    @contextmanager
    def saving(self) -> Iterator[None]:
        """In this block watch a save, or the wait for one, instead of steps."""
        with self.paused():
            self.save_began, self.reported = time.monotonic(), False
            try:
                yield
            finally:
                self.save_began = None

    def limit(self) -> float:
        """Seconds without a finished step after which to report."""
        usual = statistics.median(self.times) if self.times else 0.0
        return max(self.patience.seconds, self.patience.factor * usual)

    def watch(self) -> None:
        """Compare the time since the last beat with the limits, until `__exit__`."""
        exit_after = self.patience.exit_after or math.inf
        save_limit = self.patience.save_seconds(self.size)
        while not self.ended.wait(min(1.0, self.patience.seconds / 4.0)):
            last, save_began = self.last, self.save_began
            if last is None:
                self.heartbeat.beat()
            else:
                limit = self.limit()
                self.check(last, limit, max(limit, exit_after), "no step was finished for")
            if save_began is not None:
                self.check(save_began, save_limit, save_limit, "a checkpoint was not saved in")

    def check(self, since: float, limit: float, exit_after: float, what: str) -> None:
        """Report what takes longer than `limit`, and end the process after `exit_after`."""
        waited = time.monotonic() - since
        if waited > limit and not self.reported:
            self.report(f"{what} {waited:.0f} s")
        if waited > exit_after:
            processes.abort(
                exits.STALLED,
                f"error: {what} {waited:.0f} s; ending this process. The same command goes on from "
                "the last checkpoint",
            )

    def report(self, what: str) -> None:
        """Write the stacks of all threads to a file; print them if the disk hangs."""
        self.reported = True
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-process-{jax.process_index()}.txt"
        writing = threading.Thread(target=self.write_stacks, args=(what, name), daemon=True)
        writing.start()
        writing.join(WRITTEN)
        if writing.is_alive():
            show_stacks(what, f"{self.folder} does not answer")

    def write_stacks(self, what: str, name: str) -> None:
        """Write the stacks of all threads to a file, and print its path."""
        try:
            self.folder.mkdir(exist_ok=True)
            with replaced(self.folder / name) as file:
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            show_stacks(what, str(error))
        else:
            print(f"warning: {what}: {self.folder / name}", file=sys.stderr)


def show_stacks(what: str, why: str) -> None:
    """Print the stacks of all threads, and why, to standard error."""
    faulthandler.dump_traceback(sys.stderr, all_threads=True)
    print(f"warning: {what}: {why}", file=sys.stderr)
