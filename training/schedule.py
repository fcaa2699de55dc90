"""The cadence of a run: what is due after which of its steps."""

from typing import NamedTuple

from fewstep.training.profile import Window


class Schedule(NamedTuple):
    """When things are done, in steps. steps: in all; log, save, evaluate: 0 is after the last only.

    dispatch: steps that are dispatched at once where nothing is due between them. window: the steps
    that are traced. ends: numbers of steps after which a stage ends, which is logged, saved and
    evaluated.
    """

    steps: int
    log: int = 0
    save: int = 0
    evaluate: int = 0
    dispatch: int = 1
    window: Window | None = None
    ends: tuple[int, ...] = ()

    def logs(self, step: int) -> bool:
        """Whether a row of the log ends after `step`."""
        return is_due(step, self.steps, self.log)

    def saves(self, step: int) -> bool:
        """Whether a save is due after `step`."""
        return step in self.ends or is_due(step, self.steps, self.save)

    def evaluates(self, step: int) -> bool:
        """Whether an evaluation is due after `step`."""
        return step in self.ends or is_due(step, self.steps, self.evaluate)

    def next_dispatch(self, done: int) -> int:
        """How many steps to dispatch after `done` of them: `dispatch`, or one at a time."""
        between = range(done + 1, done + self.dispatch)
        stops = self.window or ()
        free = not any(
            step in stops or self.saves(step) or self.evaluates(step) for step in between
        )
        return self.dispatch if free else 1


def is_due(step: int, last: int, period: int) -> bool:
    """Whether something done every `period` steps, and after the last, is due after `step`."""
    return step == last or (period > 0 and step % period == 0)
