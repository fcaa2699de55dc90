"""One signal at a random moment of a run, and whether the run kept what is promised of it."""

import os
import signal
import time
from typing import NamedTuple

from fewstep.training.cluster import exits
from tests.training import killed

PAUSE = 0.05  # seconds added to every step, so that moments fall within the run
# More checkpoints than are kept, so that kills meet the removal of old ones too.
OPTIONS = {"save": 2, "keep": 2}
MOST_STEPS = 5  # that a process does before its signal: a run is restored several times
CODES = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: exits.PREEMPTED}


class Interruption(NamedTuple):
    """What a signal met in a run, and what it left.

    phase: what the run was doing. code: exit code, None if it did not end. before, after: steps of
    the whole checkpoints when the process started and when it had ended. sent, begun: last step
    that it had begun when the signal was sent and when it had ended, 0 if none. own: how many steps
    it had done by then. finished: whether it ended the run.
    """

    number: int
    phase: str
    code: int | None
    before: list[int]
    after: list[int]
    sent: int
    begun: int
    own: int
    finished: bool


def ended_before_signal(one):
    """Whether the run was over before the signal could do anything: it says nothing then."""
    return one.finished and max([one.sent, *one.before]) == killed.STEPS


def hit_restored_run(one):
    """Whether the signal met a process that had restored a checkpoint and made steps since."""
    return bool(one.before) and one.own > 0


def kept_promises(one):
    """What is promised of an interruption that was not missed, and whether it was kept."""
    newest = max(one.before, default=0)
    kept = {
        "exit code as promised": one.code == CODES[one.number],
        "newest checkpoint kept": max(one.after, default=0) >= newest,
    }
    if one.number == signal.SIGTERM:
        kept["its step saved"] = max(one.after, default=0) == (one.begun or newest)
    return kept


def current_phase(folder):
    """What a run is doing, as its folder shows."""
    names = [path.name for path in (folder / "checkpoints").glob("*")]
    if any(not name.isdigit() for name in names):
        return "while a checkpoint is written"
    return "between two checkpoints" if names else "before the first checkpoint"


def draw_steps(before, rng):
    """How many steps to wait for: 0, while it is set up or compiles, or a few of those left.

    More where nothing is saved yet, so that most processes leave a checkpoint to the next.
    """
    most = MOST_STEPS if before else 2 * MOST_STEPS
    return rng.randint(0, min(most, killed.STEPS - max(before, default=0)))


def interrupt(folder, method, number, rng, steps=None):
    """Start or go on with a run and send it a signal at a random moment.

    steps: after how many steps of its own, at random by default.
    """
    before = killed.saved_steps(folder)
    process = killed.start_process(folder, method, {}, pause=PAUSE, **OPTIONS)
    # By its steps, not by the clock, which says little of where a run is on a busy machine.
    killed.wait_for_steps(folder, process, draw_steps(before, rng) if steps is None else steps)
    time.sleep(rng.uniform(0.0, 2 * PAUSE))
    met, noted = current_phase(folder), killed.begun_steps(folder, process)
    if process.is_alive():
        os.kill(process.pid, number)
    process.join(killed.TIMEOUT)
    code = process.exitcode
    process.kill()
    return Interruption(
        number,
        met,
        code,
        before,
        killed.saved_steps(folder),
        sent=max(noted, default=0),
        begun=max(killed.begun_steps(folder, process), default=0),
        own=max(len(noted) - 2, 0),
        finished=(folder / killed.FINAL).exists(),
    )
