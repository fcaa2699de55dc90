"""Stopping on request: SIGTERM, which clusters send before they take a machine away, and Ctrl-C.

One process alone notices SIGTERM itself. Of several that train, any may get it and all must stop at
the same step: `jax.distributed` carries it to the others, and names that step.

What a handler raises is lost where Python cannot raise, as in a callback of the garbage collector
or in `__del__`, and becomes another error where native code calls Python, as TensorStore does. So
each request is noted, for the training loop to ask; one that was lost is made again a moment later,
and one that became an error by `insist`.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from fewstep.training.cluster import exits

_entered: list["Preemption"] = []  # the innermost last; it has the handlers
AGAIN = 0.05  # seconds after which a request that was lost is made again
INTERRUPTED = "interrupted; the same command goes on from the last checkpoint"
# Where nothing is trained.
BROKEN_OFF = "interrupted; the same command starts again"


class Preempted(SystemExit):
    """The run was asked to stop; the same command goes on.

    A SystemExit, which libraries and event loops let pass as they do not an Exception.
    """


class Preemption:
    """Whether the process was asked to stop: by SIGTERM, or from the keyboard (SIGINT).

    While it is entered, neither ends the process by itself: the loop asks `requested` after every
    step, and in a block of `at_once` a request is raised. A second Ctrl-C ends the process without
    more ado. Outside the main thread nothing is changed. One Preemption may be entered in another,
    which then hears of what this one has noted and not raised.

    carried: whether SIGTERM is left to `jax.distributed`, which tells all processes of a run.
    interrupted: what is said when a second Ctrl-C ends the process.
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
        """The signals that are handled; not a Ctrl-C that whoever started us has switched off."""
        numbers = [] if self.carried else [signal.SIGTERM]
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            numbers.append(signal.SIGINT)
        return numbers

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Take note; raises what it stands for where that loses nothing."""
        if number in self.noted - self.lost:
            if number == signal.SIGINT:
                os.write(2, f"{self.interrupted}\n".encode())  # print may be what was interrupted
                exits.end(exits.INTERRUPTED)
            return
        self.noted.add(number)
        self.lost.discard(number)
        if self.immediate:
            raise request(number)

    def on_unraisable(self, lost: Any) -> None:
        """Make a request again that was raised where Python cannot raise."""
        if not isinstance(lost.exc_value, Preempted | KeyboardInterrupt):
            self.hook(lost)
            return
        main = threading.main_thread().ident
        for number in self.noted - self.lost:
            self.lost.add(number)
            self.timers.append(threading.Timer(AGAIN, signal.pthread_kill, (main, number)))
            self.timers[-1].start()

    def requested(self, step: int) -> bool:
        """Whether to stop after this step; all processes ask at every step, and are told alike.

        Raises KeyboardInterrupt if that was asked for from the keyboard.
        """
        if signal.SIGINT in self.noted:
            raise request(signal.SIGINT)
        if self.carried:
            return multihost_utils.reached_preemption_sync_point(step)
        return signal.SIGTERM in self.noted

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Raises Preempted or KeyboardInterrupt in this block as soon as it is asked for.

        For work that changes no state: setting up, evaluating.
        """
        self.immediate = True  # first, so that no request falls between
        try:
            for number in self.noted:
                raise request(number)
            yield
        finally:
            self.immediate = False


def insist() -> None:
    """Raise again a request that was raised, and of which a library has made an error of its own.

    Whoever takes any error for damage asks this first.
    """
    for preemption in _entered[-1:]:
        for number in preemption.noted if preemption.immediate else ():
            raise request(number)


def request(number: int) -> BaseException:
    """What a signal asks for, to be raised."""
    return KeyboardInterrupt() if number == signal.SIGINT else Preempted()


def is_ours(handler: Any) -> bool:
    """Whether a handler is that of a Preemption."""
    return isinstance(getattr(handler, "__self__", None), Preemption)
