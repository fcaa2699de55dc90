"""Long campaigns that test the promises of docs/running.md; prints a table of counts.

    python -m tests.soak --kills=30 --stops=30 --damages=80 --preparations=10 --seed=0

Kills and stops hit runs at random moments; the runs restart until they are finished. Each must end
with the bits and the log of an uninterrupted run. A signal that comes after the end of a run does
not count, and is repeated. Damage hits one random file of a checkpoint; a restore may only return
what was saved. A preparation of latents that is killed and started again must leave the bytes of an
undisturbed one. The exit code is 1 if a promise is broken.
"""

import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from absl import app, flags, logging

import tests.conftest  # noqa: F401, the environment of the tests, before JAX starts
from tests.modes import prepared
from tests.training import interruption, killed
from tests.training.kinds import ALL, methods_of_kinds

KILLS = flags.DEFINE_integer("kills", 30, "SIGKILLs at random moments, over all methods.")
STOPS = flags.DEFINE_integer("stops", 30, "SIGTERMs at random moments, over all methods.")
DAMAGES = flags.DEFINE_integer("damages", 80, "Damaged files, over all kinds of damage.")
PREPARATIONS = flags.DEFINE_integer("preparations", 10, "SIGKILLs while latents are prepared.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of all random choices.")

# Imported late, since they start devices: processes that meet import this file, and must not have.
DAMAGE, RESUME = "tests.training.test_damage", "tests.training.test_resume"
PER_RUN = 4  # most interruptions of one run
RESTORED = 0.2  # least share of interruptions after a restore; about half of the expected share


class Tally(NamedTuple):
    """How often each promise was tested, and how often it held."""

    tried: Counter
    held: Counter

    def count(self, name: str, held: bool) -> None:
        self.tried[name] += 1
        self.held[name] += held


def interrupt_run(
    folder: Path, method: str, number: int, count: int, rng: random.Random
) -> list[interruption.Interruption]:
    """Interrupt one run `count` times, or until it is finished."""
    found: list[interruption.Interruption] = []
    while len(found) < count and not (found and found[-1].finished):
        found.append(interruption.interrupt(folder, method, number, rng))
    return found


def check_end(folder: Path, whole: Path, method: str) -> dict[str, bool]:
    """Continue a run to its end, and compare it with the uninterrupted run."""
    rows = import_module(RESUME).rows
    killed.run_process(folder, method, {}, **interruption.OPTIONS)
    steps = killed.saved_steps(folder)
    return {
        "ended with the same bits": killed.have_same_bits(
            killed.final_state(whole), killed.final_state(folder)
        ),
        "ended with the same log": rows(whole) == rows(folder),
        "old checkpoints removed": len(steps) == interruption.OPTIONS["keep"],
    }


def run_campaign(root: Path, number: int, count: int, rng: random.Random, tally: Tally) -> None:
    """Make `count` interruptions of unfinished runs, by each method in turn."""
    name, methods = signal.Signals(number).name, methods_of_kinds(ALL)
    met: list[interruption.Interruption] = []
    runs = missed = 0
    while len(met) < count and missed <= count:
        method = methods[runs % len(methods)]
        whole, folder = root / "whole" / method, root / name / str(runs)
        if not whole.exists():
            killed.run_process(whole, method, {}, **interruption.OPTIONS)
        tries = interrupt_run(folder, method, number, min(PER_RUN, count - len(met)), rng)
        counted = [one for one in tries if not interruption.ended_before_signal(one)]
        kept = check_end(folder, whole, method)
        for one in counted:
            for promise, held in {**interruption.kept_promises(one), **kept}.items():
                tally.count(f"{name} {one.phase}: {promise}", held)
        met, missed, runs = met + counted, missed + len(tries) - len(counted), runs + 1
        print(f"\r{name}: {len(met)} of {count}", end="", file=sys.stderr)
    summarise(name, met, missed, count, tally)


def summarise(
    name: str, met: list[interruption.Interruption], missed: int, count: int, tally: Tally
) -> None:
    """Print where the interruptions fell, and tally whether enough of them count."""
    restored = sum(map(interruption.hit_restored_run, met))
    print(f"\n{name}: {len(met)} hit a run, {restored} of them after a restore and a step;", end="")
    print(f" {missed} came after its end and do not count")
    tally.count(f"{name}: {count} of them hit a run", len(met) >= count)
    tally.count(f"{name}: enough fell after a restore", restored >= RESTORED * count)


def run_damage(root: Path, count: int, rng: random.Random, tally: Tally) -> None:
    """Damage `count` files of a checkpoint, by each kind of damage in turn."""
    saved, test_damage = root / "damaged", import_module(DAMAGE)
    killed.run_process(saved, "shortcut", {})
    newest = test_damage.restore_newest(saved)
    older = shutil.copytree(saved, root / "older")
    shutil.rmtree(older / "checkpoints" / str(test_damage.NEWEST))
    states = {test_damage.NEWEST: newest, test_damage.BEFORE: test_damage.restore_newest(older)}
    for number in range(count):
        kind = test_damage.DAMAGES[number % len(test_damage.DAMAGES)]
        _, state = test_damage.damage_and_restore(saved, root / "copy", kind, rng)
        right = test_damage.is_right(state, root / "copy", states)
        tally.count(f"{kind.__name__}: nothing wrong restored", right)


def run_preparations(root: Path, count: int, rng: random.Random, tally: Tally) -> None:
    """Kill `count` preparations of latents, by one process and by two in turn."""
    whole, met, runs = root / "prepared", 0, 0
    prepared.prepare(whole)
    while met < count and runs < count:
        folder, processes, hits = root / f"prepared_{runs}", 1 + runs % 2, 0
        for _ in range(min(PER_RUN, count - met)):
            if prepared.shards_in(folder) < prepared.SHARDS:
                hits += prepared.kill_at_random(folder, processes, rng)
        met, runs = met + hits, runs + 1
        prepared.prepare(folder, processes)
        same = prepared.contents(folder) == prepared.contents(whole)
        for _ in range(hits):
            tally.count(f"SIGKILL of {processes} preparing: ended with the same bytes", same)
    tally.count(f"preparations: {count} kills hit one", met >= count)


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)
    rng, tally = random.Random(SEED.value), Tally(Counter(), Counter())
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        run_campaign(Path(folder), signal.SIGKILL, KILLS.value, rng, tally)
        run_campaign(Path(folder), signal.SIGTERM, STOPS.value, rng, tally)
        run_damage(Path(folder), DAMAGES.value, rng, tally)
        run_preparations(Path(folder), PREPARATIONS.value, rng, tally)
    for name, tried in sorted(tally.tried.items()):
        print(f"{tally.held[name]:>5} of {tried:<5} {name}")
    print(f"{time.monotonic() - start:.0f} seconds, seed {SEED.value}")
    sys.exit(tally.held != tally.tried)


if __name__ == "__main__":
    app.run(main)
