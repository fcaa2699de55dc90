"""The processes of one run talk, and leave together; joining.py has how they join.

One process alone is a run too: what is here then does the same without the others.
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

VISIBLE, POLL = 10.0, 0.1  # seconds until all hosts see what one has written
_watch: Watch | None = None


def enter(watching: Watch) -> None:
    """Be one of several processes from now on, which watch each other."""
    global _watch
    _watch = watching


@contextmanager
def together() -> Iterator[None]:
    """The processes that joined leave at the end of the block; none is left waiting for another.

    An error that the block does not handle ends all of them. Does nothing for a single process.
    """
    try:
        yield
    except SystemExit:
        leave()
        raise
    except BaseException:
        if _watch is None:
            raise
        fail(exits.ERROR, traceback.format_exc())
    leave()


def leave() -> None:
    """Wait for all processes to come to their end, and part from them."""
    if _watch is not None:
        _watch.leave()


def say(line: str, file: TextIO | None = None) -> None:
    """Print a line at once, in process 0 alone."""
    if is_first():
        print(line, file=file, flush=True)


def warn(line: str) -> None:
    """Print a warning above the progress bar, in process 0 alone."""
    if is_first():
        tqdm.write(f"warning: {line}", file=sys.stderr)


@cache
def warn_once(text: str) -> None:
    """Print a warning on standard error, in process 0 alone, the first time that it is given."""
    warn(text)


def several() -> bool:
    """Whether this is one of several processes. Starts no devices, unlike jax.process_count."""
    return _watch is not None


def is_first() -> bool:
    """Whether this is process 0. Starts no devices, unlike jax.process_index."""
    return _watch is None or _watch.me.index == 0


def fail(code: int, text: str) -> None:
    """Say an error and end this process; as one of several, so that the others end too."""
    if _watch is not None:
        _watch.fail(code, text)
    watch.say(text)
    sys.exit(code)


def abort(code: int, text: str) -> None:
    """`fail` from any thread, when the main one hangs: nothing is waited for but the others."""
    if _watch is not None:
        _watch.fail(code, text)
    watch.say(text)
    exits.end(code)


@contextmanager
def within(seconds: float, otherwise: str) -> Iterator[None]:
    """End the process with a message if the block, which waits for others, takes too long."""

    def give_up() -> None:
        watch.say(f"error: after {seconds:g} s {otherwise}")
        exits.end(exits.PEER_DIED)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def first_process_says(here: bool) -> bool:
    """What process 0 found, in all processes: files may appear later to the others."""
    return bool(multihost_utils.broadcast_one_to_all(np.array(here)))


def everywhere(here: bool) -> bool:
    """Whether it holds in all processes."""
    return bool(np.all(multihost_utils.process_allgather(np.array(here))))


def of_each_process(values: Sequence[float]) -> np.ndarray:
    """The numbers of each process, float32 [processes, len(values)], in all processes."""
    here = np.asarray(values, np.float32)
    return np.reshape(multihost_utils.process_allgather(here), (-1, len(here)))


def broadcast(content: Any) -> Any:
    """The plain JSON value that process 0 has, in all processes; theirs is ignored."""
    encoded = json.dumps(content).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(encoded))))
    array = np.frombuffer(encoded.ljust(size)[:size], np.uint8)
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(array)))


def gather(content: Any) -> list[Any]:
    """The plain JSON value of each process, in their order, in all processes."""
    encoded = json.dumps(content).encode()
    size = int(multihost_utils.process_allgather(np.int32(len(encoded))).max())
    array = np.frombuffer(encoded.ljust(size), np.uint8)
    rows = multihost_utils.process_allgather(array).reshape(jax.process_count(), size)
    return [json.loads(bytes(row)) for row in rows]


def blind(sees: Callable[[], bool]) -> list[int]:
    """The processes that do not see something after some seconds of looking, in all processes.

    A disk that several hosts share may show files to one of them later than to another.
    """
    deadline = time.monotonic() + VISIBLE
    while not (seen := sees()) and time.monotonic() < deadline:
        time.sleep(POLL)
    return [index for index, there in enumerate(gather(seen)) if not there]
