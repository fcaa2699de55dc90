"""How the processes of a run communicate and exit together; joining.py has how they join.

A single process is a run too; everything here works for it.
"""

import json
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, TextIO

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from fewstep.training.cluster import exits, watch
from fewstep.training.cluster.watch import Watch

VISIBLE, POLL = 10.0, 0.1  # seconds until all hosts must see a new file, and between two looks
_watch: Watch | None = None
_apart = False


def register_watch(watching: Watch) -> None:
    """Make this process one of several, which watch each other."""
    global _watch
    _watch = watching


@contextmanager
def leave_together() -> Iterator[None]:
    """Make all processes leave together at the end of the block, so that none waits for another.

    An uncaught error ends all of them. Does nothing for a single process.
    """
    try:
        yield
    except SystemExit:
        leave()
        raise
    except BaseException:
        if _watch is None:
            raise
        exit_with_error(exits.ERROR, traceback.format_exc())
    leave()


def leave() -> None:
    """Wait until all processes are done, then disconnect."""
    if _watch is not None:
        _watch.leave()


def say(line: str, file: TextIO | None = None) -> None:
    """Print a line in process 0 alone, and flush."""
    if is_first():
        print(line, file=file, flush=True)


def warn(line: str) -> None:
    """Print a warning above the progress bar, in process 0 alone."""
    if is_first():
        tqdm.write(f"warning: {line}", file=sys.stderr)


@cache
def warn_once(text: str) -> None:
    """Print a warning above the progress bar, in process 0 alone, and only once per text."""
    warn(text)


def meet() -> None:
    """Return once all processes have called this; waits without a limit."""
    if _watch is not None:
        _watch.meet()


def has_peers() -> bool:
    """Whether this is one of several processes. Starts no devices, unlike jax.process_count."""
    return _watch is not None


def is_first() -> bool:
    """Whether this is process 0. Starts no devices, unlike jax.process_index."""
    return _watch is None or _watch.me.index == 0


def exit_with_error(code: int, text: str) -> None:
    """Print an error and exit. If there are other processes, they end too."""
    if _watch is not None:
        _watch.fail(code, text)
    watch.write_line(text)
    sys.exit(code)


def abort(code: int, text: str) -> None:
    """`exit_with_error` for any thread: ends the process even if its main thread hangs."""
    if _watch is not None:
        _watch.fail(code, text)
    watch.write_line(text)
    exits.end(code)


@contextmanager
def time_limit(seconds: float, otherwise: str) -> Iterator[None]:
    """End the process if the block, which waits for others, takes too long.

    otherwise: the end of the message "error: after SECONDS s ...".
    """

    def give_up() -> None:
        watch.write_line(f"error: after {seconds:g} s {otherwise}")
        exits.end(exits.PEER_DIED)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def apart() -> Iterator[None]:
    """Make the functions below answer for this process alone, in the block.

    A check of what each process has may then fail in one of them, and no other waits for it.
    """
    global _apart
    _apart = True
    try:
        yield
    finally:
        _apart = False


def decides() -> bool:
    """Whether this process makes the values that all use: process 0, or each of them `apart`."""
    return _apart or is_first()


def first_process_says(here: bool) -> bool:
    """Process 0's value, in all processes, which may see a file later than process 0."""
    if _apart:
        return here
    return bool(multihost_utils.broadcast_one_to_all(np.array(here)))


def true_everywhere(here: bool) -> bool:
    """Whether a condition holds in all processes."""
    if _apart:
        return here
    return bool(np.all(multihost_utils.process_allgather(np.array(here))))


def gather_numbers(values: Sequence[float]) -> np.ndarray:
    """The values of all processes, float32 [processes, len(values)]; each passes as many."""
    here = np.asarray(values, np.float32)
    return np.reshape(multihost_utils.process_allgather(here), (-1, len(here)))


def broadcast(content: Any) -> Any:
    """Process 0's JSON value, in all processes. Those of the others are ignored."""
    encoded = json.dumps(content).encode()
    if _apart:
        return json.loads(encoded)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(encoded))))
    array = np.frombuffer(encoded.ljust(size)[:size], np.uint8)
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(array)))


def gather(content: Any) -> list[Any]:
    """The JSON values of all processes, by index, in all processes."""
    encoded = json.dumps(content).encode()
    if _apart:
        return [json.loads(encoded)]
    size = int(multihost_utils.process_allgather(np.int32(len(encoded))).max())
    array = np.frombuffer(encoded.ljust(size), np.uint8)
    rows = multihost_utils.process_allgather(array).reshape(jax.process_count(), size)
    return [json.loads(bytes(row)) for row in rows]


def blind_processes(sees: Callable[[], bool]) -> list[int]:
    """Indices of the processes for which `sees` stays false for VISIBLE seconds, in all processes.

    A shared disk may show a file to one host later than to another.
    """
    deadline = time.monotonic() + VISIBLE
    while not (seen := sees()) and time.monotonic() < deadline:
        time.sleep(POLL)
    return [index for index, there in enumerate(gather(seen)) if not there]
