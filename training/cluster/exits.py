"""Exit codes of the command line, for schedulers and scripts.

TABLE is the one place that says what they mean and which of them start the same command again.
docs/running.md and the scripts of launch/ repeat it; tests/test_launch.py compares them.
"""

import os
import sys
from contextlib import suppress
from typing import NamedTuple

DONE = 0
ERROR = 1  # as Python ends when nobody catches an exception
BAD_INPUT = 2  # an error that names the field or file and the remedy
DIVERGED = 3  # not finite, or too many spikes: the run cannot go on as it is
PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: stopped on request, and the same command goes on
PEER_DIED = 76  # another process died, hung, failed or did not come: all of them start again
STALLED = 77  # a step or a save took too long
INTERRUPTED = 130  # as shells report a program that SIGINT ended
ABORTED = 134  # likewise SIGABRT
KILLED = 137  # likewise SIGKILL
TERMINATED = 143  # likewise SIGTERM


class Exit(NamedTuple):
    """What an exit code means.

    again: what a person does about it.
    restarts: whether a launcher starts the same command again, in all processes.
    """

    code: int
    meaning: str
    again: str
    restarts: bool


TABLE = (
    Exit(DONE, "done", "", False),
    Exit(ERROR, "an error that nobody foresaw; its traceback is printed", "when mended", False),
    Exit(
        BAD_INPUT,
        "bad input, or a file that cannot be read or written; the message names it and the remedy",
        "when mended",
        False,
    ),
    Exit(
        DIVERGED,
        "the run diverged: not finite, or more spikes than `optimizer.spike_cap`",
        "with other fields and folder",
        False,
    ),
    Exit(
        PREEMPTED,
        "preempted: SIGTERM came; training has saved its state, other modes repeat unfinished work",
        "yes, as it is",
        True,
    ),
    Exit(
        PEER_DIED,
        "another process of the job died, hung, failed or did not come; the message names it",
        "yes, as it is; if it failed, when mended",
        True,
    ),
    Exit(
        STALLED,
        "a step took `watchdog.exit_after` seconds, or a save hung; `stacks/` shows where",
        "yes, as it is",
        True,
    ),
    Exit(
        INTERRUPTED,
        "interrupted from the keyboard: training ends after the step, and at once if Ctrl-C comes "
        "twice",
        "yes, as it is",
        False,
    ),
    Exit(ABORTED, "a library aborted, such as JAX's runtime", "yes, as it is", True),
    Exit(KILLED, "killed, often because the host's memory was full", "yes, as it is", True),
    Exit(TERMINATED, "SIGTERM came before anything was under way", "yes, as it is", True),
)

# What launchers start again, and what ends a job for good; any other code ends it too.
RESTARTS = tuple(exit.code for exit in TABLE if exit.restarts)
ENDS = tuple(exit.code for exit in TABLE if not exit.restarts and exit.code != DONE)


def end(code: int) -> None:
    """End here and now: what waits for the other processes at an ordinary exit is left out."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed on the other side
            stream.flush()
    os._exit(code)
