"""Stopping on request: SIGTERM, which clusters send before they take a machine away, and Ctrl-C.

A single process handles SIGTERM itself. When several train, any of them may get it and all must
stop at the same step: `jax.distributed` forwards it to the others and agrees on that step.

Python loses an exception that a handler raises in `__del__` or in a callback of the garbage
collector. Native code that calls Python, such as TensorStore, turns it into another error. So each
request is noted, and the training loop asks for it. A lost one is raised again a moment later; one
that became another error is raised again by `raise_again`.
"""

import itertools
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from fewstep.training.cluster import exits
from fewstep.training.cluster.processes import is_first

_entered: list["Preemption"] = []  # the innermost, which has the handlers, is last
_questions = itertools.count(1)
AGAIN = 0.05  # seconds after which a lost request is raised again
INTERRUPTED = "interrupted; the same command goes on from the last checkpoint"
STOPPING = "\nCtrl-C: stops after this step and saves it; a second Ctrl-C leaves at once\n"
GOES_ON = "the same command goes on from there"
# For modes that do not train.
BROKEN_OFF = "interrupted; the same command starts again"


class Preempted(SystemExit):
    """The run was asked to stop; the same command goes on.

    It is a SystemExit because libraries and event loops catch Exception, but let that pass.
    """


class Preemption:
    """Turns SIGTERM and Ctrl-C (SIGINT) into requests to stop, while it is entered.

    The loop asks `requested` after every dispatch; a block of `at_once` raises a request
    immediately. A second Ctrl-C ends the process at once. Outside the main thread nothing changes.
    Preemptions nest: the outer one gets what the inner one has noted but not raised.

    carried: whether `jax.distributed` handles SIGTERM, for all processes of a run. A Ctrl-C in the
    loop is then passed on as a SIGTERM, so that all stop at the same step.
    interrupted: the message when a second Ctrl-C ends the process.
    """

    def __init__(self, carried: bool | None = None, interrupted: str = INTERRUPTED) -> None:
        self.interrupted = interrupted
        self.carried = jax.process_count() > 1 if carried is None else carried
        self.noted: set[int] = set()
        self.lost: set[int] = set()
        self.timers: list[threading.Timer] = []
        self.immediate = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            for number in self.numbers():
                self.before[number] = signal.signal(number, self.on_signal)
            self.hook, sys.unraisablehook = sys.unraisablehook, self.on_unraisable
            _entered.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self not in _entered:
            return
        _entered.remove(self)
        sys.unraisablehook = self.hook
        for timer in self.timers:
            timer.cancel()
        for number, handler in self.before.items():
            signal.signal(number, handler)
            if kind is None and number in self.noted and is_ours(handler):
                signal.raise_signal(number)

    def numbers(self) -> list[int]:
        """The signals to handle: no SIGINT if the parent process has it ignored."""
        numbers = [] if self.carried else [signal.SIGTERM]
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            numbers.append(signal.SIGINT)
        return numbers

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Note the request. Raises it in a block of `at_once`."""
        if number in self.noted - self.lost:
            if number == signal.SIGINT:
                os.write(2, f"{self.interrupted}\n".encode())  # print may be what was interrupted
                exits.end(exits.INTERRUPTED)
            return
        self.noted.add(number)
        self.lost.discard(number)
        if self.immediate:
            raise self.stop_exception()
        if number == signal.SIGINT:
            if is_first():
                os.write(2, STOPPING.encode())
            if self.carried:
                signal.raise_signal(signal.SIGTERM)

    def on_unraisable(self, lost: Any) -> None:
        """Raise a request again that was raised where Python cannot raise."""
        if not isinstance(lost.exc_value, Preempted | KeyboardInterrupt):
            self.hook(lost)
            return
        main = threading.main_thread().ident
        for number in self.noted - self.lost:
            self.lost.add(number)
            self.timers.append(threading.Timer(AGAIN, signal.pthread_kill, (main, number)))
            self.timers[-1].start()

    def requested(self) -> bool:
        """Whether to stop now. All processes ask equally often, and get one answer.

        JAX stops them at the number after the largest that one has asked with, so questions are
        numbered without gaps; training steps, of which a dispatch makes several, are not.
        Nobody else may ask: Orbax would, with training steps (storage/checkpoint.py).
        """
        if self.carried:
            return multihost_utils.reached_preemption_sync_point(next(_questions))
        return bool(self.noted)

    def stop_exception(self, saved: str = "") -> BaseException:
        """The exception to raise for what was noted: KeyboardInterrupt after a Ctrl-C.

        saved: what is saved, for the message.
        """
        if signal.SIGINT in self.noted:
            return KeyboardInterrupt(saved and f"interrupted: {saved}; {GOES_ON}")
        return Preempted(saved and f"preempted, resumable: {saved}")

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise Preempted or KeyboardInterrupt in this block as soon as a signal comes.

        For work that changes no state, such as setup and evaluation.
        """
        self.immediate = True  # first, so that no request is missed in between
        try:
            if any(self.noted):
                raise self.stop_exception()
            yield
        finally:
            self.immediate = False

    def at_once_if_alone(self) -> AbstractContextManager[None]:
        """`at_once` in a single process; several finish the block, and stop after it together."""
        return nullcontext() if self.carried else self.at_once()


def raise_again() -> None:
    """Raise a request again that a library has turned into an error of its own.

    Code that takes any error as a sign of a damaged file calls this first.
    """
    for preemption in _entered[-1:]:
        if preemption.immediate and preemption.noted:
            raise preemption.stop_exception()


def is_ours(handler: Any) -> bool:
    """Whether a signal handler belongs to a Preemption."""
    return isinstance(getattr(handler, "__self__", None), Preemption)
