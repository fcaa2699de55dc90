"""A watchdog: says where a run hangs, and ends it when it has hung for too long.

A lost collective, a stuck file system or a deadlock give no error: the run merely stops. Without a
finished step for max(seconds, factor x median step) the stacks of all threads are written to
WORKDIR/stacks, and after `exit_after` seconds the process ends, so that a scheduler can start it
again. Watchers from outside see the heartbeat (training/heartbeat.py).
"""

import faulthandler
import os
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

from training import exits
from training.files import replaced
from training.heartbeat import Heartbeat

FOLDER = "stacks"
REMEMBERED = 101  # steps whose median is the usual time of one


class Patience(NamedTuple):
    """How long a step may take. exit_after: seconds until the process ends, 0 for never."""

    seconds: float = 60.0
    factor: float = 10.0
    exit_after: float = 1800.0


PATIENCE = Patience()


class Watchdog:
    """Watches from a thread of its own while it is entered; `beat` after every finished step."""

    def __init__(self, workdir: Path, patience: Patience = PATIENCE) -> None:
        self.folder, self.patience = workdir / FOLDER, patience
        self.heartbeat = Heartbeat(workdir)
        self.times: deque[float] = deque(maxlen=REMEMBERED)
        self.last: float | None = None  # when the last step was finished; None: not watching
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
        """A step is finished; watching begins with the first one, which is compiled."""
        now = time.monotonic()
        if self.last is not None:
            self.times.append(now - self.last)
        self.last, self.reported = now, False
        self.heartbeat.beat()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Not watching in this block, which takes its own time; the next `beat` begins anew."""
        self.last = None
        try:
            yield
        finally:
            self.last = None

    def limit(self) -> float:
        """Seconds without a finished step that are too many."""
        usual = statistics.median(self.times) if self.times else 0.0
        return max(self.patience.seconds, self.patience.factor * usual)

    def watch(self) -> None:
        """Until `__exit__`: compare the time since the last beat with the limits."""
        while not self.ended.wait(min(1.0, self.patience.seconds / 4.0)):
            last = self.last
            if last is None:
                self.heartbeat.beat()
            waited = 0.0 if last is None else time.monotonic() - last
            if waited > self.limit() and not self.reported:
                self.report(waited)
            if self.patience.exit_after and waited > max(self.limit(), self.patience.exit_after):
                print(
                    f"error: no step was finished for {waited:.0f} s; ending this process. The "
                    "same command goes on from the last checkpoint",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(exits.STALLED)

    def report(self, waited: float) -> None:
        """Write the stacks of all threads, and say where: here, if the folder cannot be written."""
        self.reported = True
        where = self.folder / f"{time.strftime('%Y%m%d-%H%M%S')}-process-{jax.process_index()}.txt"
        try:
            self.folder.mkdir(exist_ok=True)
            with replaced(where) as file:
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            where = error
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
        print(f"warning: no step was finished for {waited:.0f} s: {where}", file=sys.stderr)
