"""Stopping on request: SIGTERM, which clusters send before they take a machine away.

One process alone notices the signal itself. Of several, any may get it and all must stop at the
same step: `jax.distributed` carries it to the others, and names that step.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Preempted(Exception):
    """The run was asked to stop; the same command goes on."""


class Preemption:
    """Whether the run was asked to stop.

    While it is entered, SIGTERM does not end the process: the loop asks `requested` after every
    step. Outside the main thread nothing is changed.
    """

    def __init__(self) -> None:
        self.signalled, self.immediate = False, False
        self.alone = jax.process_count() == 1

    def __enter__(self) -> "Preemption":
        self.handles = self.alone and threading.current_thread() is threading.main_thread()
        if self.handles:
            self.before = signal.signal(signal.SIGTERM, self.on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        if self.handles:
            signal.signal(signal.SIGTERM, self.before)

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Take note; raises Preempted where that loses nothing."""
        self.signalled = True
        if self.immediate:
            raise Preempted

    def requested(self, step: int) -> bool:
        """Whether to stop after this step; all processes ask at every step, and are told alike."""
        if self.alone:
            return self.signalled
        return multihost_utils.reached_preemption_sync_point(step)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Raises Preempted in this block as soon as it is asked for; of one process alone.

        For work that changes no state: setting up, evaluating.
        """
        if self.signalled:
            raise Preempted
        self.immediate = True
        try:
            yield
        finally:
            self.immediate = False
