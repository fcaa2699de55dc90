"""The schedule of a run: what is due after which training steps."""

from typing import NamedTuple

from fewstep.training.profile import Window


class Schedule(NamedTuple):
    """When a run logs, saves and evaluates, in training steps.

    steps: last step of the run. log, save, evaluate: periods; 0 is after the last step only.
    dispatch: steps per dispatch where nothing is due between them. window: steps to trace. ends:
    last steps of the stages; each is logged, saved and evaluated. kept: more steps to save.
    """

    steps: int
    log: int = 0
    save: int = 0
    evaluate: int = 0
    dispatch: int = 1
    window: Window | None = None
    ends: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()

    def logs(self, step: int) -> bool:
        """Whether a row of the log ends after `step`."""
        return is_due(step, self.steps, self.log)

    def saves(self, step: int) -> bool:
        """Whether a save is due after `step`."""
        return step in (*self.ends, *self.kept) or is_due(step, self.steps, self.save)

    def evaluates(self, step: int) -> bool:
        """Whether an evaluation is due after `step`."""
        return step in self.ends or is_due(step, self.steps, self.evaluate)

    def next_dispatch(self, done: int) -> int:
        """Steps to dispatch at once after `done` steps: `dispatch` if nothing is due, else 1."""
        between = range(done + 1, done + self.dispatch)
        stops = self.window or ()
        free = not any(
            step in stops or self.saves(step) or self.evaluates(step) for step in between
        )
        return self.dispatch if free else 1


def is_due(step: int, last: int, period: int) -> bool:
    """Whether `step` is a multiple of `period` or the last step; a period of 0 is the last only."""
    return step == last or (period > 0 and step % period == 0)
