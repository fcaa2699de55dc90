"""Exit codes of the command line, for schedulers and scripts.

TABLE says what each code means and whether launchers start the same command again.
docs/running.md and the scripts in launch/ repeat it; tests/test_launch.py compares them.
"""

import os
import sys
from contextlib import suppress
from typing import NamedTuple

DONE = 0
ERROR = 1  # Python's code for an uncaught exception
BAD_INPUT = 2  # the message names the field or file, and the remedy
DIVERGED = 3  # loss not finite, or too many spikes: the run cannot go on as it is
PREEMPTED = 75  # EX_TEMPFAIL in sysexits.h: stopped on request; the same command resumes
PEER_DIED = 76  # another process died, hung, failed or did not come
STALLED = 77  # a step or a save took too long
INTERRUPTED = 130  # a shell's code for a program that SIGINT ended
ABORTED = 134  # likewise SIGABRT
KILLED = 137  # likewise SIGKILL
TERMINATED = 143  # likewise SIGTERM


class Exit(NamedTuple):
    """What an exit code means.

    again: whether and when a user should start the command again.
    restarts: whether launchers start it again, in all processes.
    """

    code: int
    meaning: str
    again: str
    restarts: bool


TABLE = (
    Exit(DONE, "done", "", False),
    Exit(ERROR, "an unexpected error; its traceback is printed", "after the fix", False),
    Exit(
        BAD_INPUT,
        "bad input, or a file that cannot be read or written; the message names it and the remedy",
        "after the fix",
        False,
    ),
    Exit(
        DIVERGED,
        "the run diverged, or every run of a comparison: not finite, or more spikes than "
        "`optimizer.spike_cap`",
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
        "yes, as it is; if it failed, after the fix",
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
        "interrupted from the keyboard: training saves its state after the step; a second Ctrl-C "
        "ends it at once",
        "yes, as it is",
        False,
    ),
    Exit(ABORTED, "a library aborted, such as JAX's runtime", "yes, as it is", True),
    Exit(KILLED, "killed, often because the host's memory was full", "yes, as it is", True),
    Exit(TERMINATED, "SIGTERM came before anything was under way", "yes, as it is", True),
)

# Codes after which launchers start the job again, and codes that end it; any other ends it too.
RESTARTS = tuple(exit.code for exit in TABLE if exit.restarts)
ENDS = tuple(exit.code for exit in TABLE if not exit.restarts and exit.code != DONE)


def end(code: int) -> None:
    """Exit at once, without the exit handlers that wait for other processes."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed on the other side
            stream.flush()
    os._exit(code)
