"""Long campaigns against what docs/running.md promises; prints a table of figures.

    python -m tests.soak --kills=40 --stops=40 --damages=80 --seed=0

Kills and stops fall at random moments of runs that are started again until they are finished; each
must end with the bits of a run that was left alone. Damage is done to one random file of a
checkpoint; nothing else than what was saved may be restored. Exit code 1 if anything is not so.
"""

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from absl import app, flags, logging

import tests.conftest  # noqa: F401, the environment of the tests, before JAX starts
from tests.training import killed, test_damage
from tests.training.test_sharding import METHODS
from training import exits

KILLS = flags.DEFINE_integer("kills", 40, "SIGKILLs at random moments, over all objectives.")
STOPS = flags.DEFINE_integer("stops", 40, "SIGTERMs at random moments, likewise.")
DAMAGES = flags.DEFINE_integer("damages", 80, "Damaged files, over all kinds of damage.")
SEED = flags.DEFINE_integer("seed", 0, "Of all that is random.")

STEP_SECONDS = 0.05  # added to every step, so that moments fall within the run


class Tally(NamedTuple):
    """How often a thing was tried, and went as promised."""

    tried: Counter
    held: Counter

    def count(self, name: str, held: bool) -> None:
        self.tried[name] += 1
        self.held[name] += held


def phase(folder: Path) -> str:
    """What a run is doing, as its folder shows."""
    names = [path.name for path in (folder / "checkpoints").glob("*")]
    if any(not name.isdigit() for name in names):
        return "while a checkpoint is written"
    return "between two checkpoints" if names else "before the first checkpoint"


def interrupt(folder: Path, method: str, number: int, rng: random.Random) -> tuple[str, int]:
    """Start or go on with a run and end it at a random moment; when that was, and its exit code."""
    process = killed.start(folder, method, {}, pause=STEP_SECONDS)
    if rng.random() < 0.8:  # else while it is set up, or compiles
        killed.wait_for_a_step(folder, process)
    time.sleep(rng.uniform(0.0, 1.2 * killed.STEPS * STEP_SECONDS))
    when = phase(folder)
    if process.is_alive():
        os.kill(process.pid, number)
    process.join(killed.TIMEOUT)
    return when, process.exitcode


def campaign(root: Path, number: int, count: int, rng: random.Random, tally: Tally) -> None:
    """`count` interruptions, each objective in turn; a run is gone on with until it is finished."""
    name = signal.Signals(number).name
    expected = {0, -number} | ({exits.PREEMPTED} if number == signal.SIGTERM else set())
    methods, done = list(METHODS.values()), 0
    whole: dict[str, object] = {}
    while done < count:
        method = methods[done % len(methods)]
        if method not in whole:
            killed.run(root / name / method / "whole", method, {})
            whole[method] = killed.final(root / name / method / "whole")
        folder, before, code = root / name / method / str(done), [], None
        phases = []
        while code != 0 and done < count:
            when, code = interrupt(folder, method, number, rng)
            saved = killed.saved_steps(folder)
            tally.count(f"{name} {when}: exit code as promised", code in expected)
            tally.count(f"{name} {when}: no checkpoint lost", set(before) <= set(saved))
            before, phases, done = saved, [*phases, when], done + 1
            print(f"\r{name}: {done} of {count}", end="", file=sys.stderr)
        killed.run(folder, method, {})
        same = killed.identical(whole[method], killed.final(folder))
        for when in phases:
            tally.count(f"{name} {when}: ended with the same bits", same)
    print(file=sys.stderr)


def damage(root: Path, count: int, rng: random.Random, tally: Tally) -> None:
    """`count` damaged files of a checkpoint, each kind of damage in turn."""
    saved = root / "damaged"
    killed.run(saved, "shortcut", {})
    newest = test_damage.restored(saved)
    older = shutil.copytree(saved, root / "older")
    shutil.rmtree(older / "checkpoints" / str(test_damage.NEWEST))
    states = {test_damage.NEWEST: newest, test_damage.BEFORE: test_damage.restored(older)}
    for number in range(count):
        kind = test_damage.DAMAGES[number % len(test_damage.DAMAGES)]
        _, state = test_damage.damaged_and_restored(saved, root / "copy", kind, rng)
        right = test_damage.is_right(state, root / "copy", states)
        tally.count(f"{kind.__name__}: nothing wrong restored", right)


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)
    rng, tally = random.Random(SEED.value), Tally(Counter(), Counter())
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        campaign(Path(folder), signal.SIGKILL, KILLS.value, rng, tally)
        campaign(Path(folder), signal.SIGTERM, STOPS.value, rng, tally)
        damage(Path(folder), DAMAGES.value, rng, tally)
    for name, tried in sorted(tally.tried.items()):
        print(f"{tally.held[name]:>5} of {tried:<5} {name}")
    print(f"{time.monotonic() - start:.0f} seconds, seed {SEED.value}")
    sys.exit(tally.held != tally.tried)


if __name__ == "__main__":
    app.run(main)
