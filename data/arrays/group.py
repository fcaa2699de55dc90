"""The processes that write the arrays of one data set together."""

from collections.abc import Callable
from typing import NamedTuple


def nobody_to_wait_for() -> None:
    """A single process meets nobody."""


class ProcessGroup(NamedTuple):
    """The processes that prepare a data set, on one disk.

    index, count: of this process, and of all. meet: returns once all processes have called it, and
    may take hours.
    """

    index: int = 0
    count: int = 1
    meet: Callable[[], None] = nobody_to_wait_for

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for the others."""
        return self.index == 0

    @property
    def part(self) -> str:
        """Which part of the work this process does, for progress bars; "" for all of it."""
        return f", part {self.index + 1} of {self.count}" if self.count > 1 else ""


ALONE = ProcessGroup()
