"""Sends a run one signal at a random moment, and checks which promises the run kept."""

import os
import signal
import time
from typing import NamedTuple

from fewstep.training.cluster import exits
from tests.training import killed

PAUSE = 0.05  # seconds added to every step, so that signals hit steps
# Saves more checkpoints than it keeps, so that kills hit the removal of old ones too.
OPTIONS = {"save": 2, "keep": 2}
MOST_STEPS = 5  # of a process before its signal; few, so that a run restores several times
CODES = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: exits.PREEMPTED}


class Interruption(NamedTuple):
    """A signal to a process of a run, and what it left.

    phase: what the run was doing. code: exit code, None if the process did not end. before, after:
    steps of the whole checkpoints when the process started, and after its end. sent, begun: last
    step that the process had begun when the signal was sent, and at its end; 0 if none. own: steps
    that the process had completed at the signal. finished: whether the process finished the run.
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
    """Whether the run was over before the signal came, so that it tests nothing."""
    return one.finished and max([one.sent, *one.before]) == killed.STEPS


def hit_restored_run(one):
    """Whether the signal hit a process that had restored a checkpoint and made steps since."""
    return bool(one.before) and one.own > 0


def kept_promises(one):
    """The promises of a run for this interruption, and whether it kept each."""
    newest = max(one.before, default=0)
    kept = {
        "exit code as promised": one.code == CODES[one.number],
        "newest checkpoint kept": max(one.after, default=0) >= newest,
    }
    if one.number == signal.SIGTERM:
        kept["its step saved"] = max(one.after, default=0) == (one.begun or newest)
    return kept


def current_phase(folder):
    """What a run is doing now, by its folder."""
    names = [path.name for path in (folder / "checkpoints").glob("*")]
    if any(not name.isdigit() for name in names):
        return "while a checkpoint is written"
    return "between two checkpoints" if names else "before the first checkpoint"


def draw_steps(before, rng):
    """Steps to wait for before the signal: 0, during setup or compilation, or a few more.

    Waits for more if nothing is saved yet, so that most processes leave a checkpoint.
    """
    most = MOST_STEPS if before else 2 * MOST_STEPS
    return rng.randint(0, min(most, killed.STEPS - max(before, default=0)))


def interrupt(folder, method, number, rng, steps=None):
    """Start or resume a run, and send it a signal at a random moment.

    steps: steps of the process before the signal; random by default.
    """
    before = killed.saved_steps(folder)
    process = killed.start_process(folder, method, {}, pause=PAUSE, **OPTIONS)
    # Count steps, not seconds: on a busy machine the time says little about a run's progress.
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
