"""Race Fewstep against other packages: the same network, shapes and work, in turn on one core.

    python -m bench.race --peer=torch --peer=torch_compile --peer=dew:/path/to/python
    python -m bench.race --scale=latent --works=flow_matching --peer=dew:/path/to/python

Each peer works in a process of its own environment (bench/peers), and they take turns, so that
whatever else the machine does disturbs all of them alike. Times are CPU seconds. OUT/race.md has
the tables, OUT/race.json every figure.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.cases import CHANNELS, CLASSES, IMAGE_SIZE, PATCH_SIZE
from bench.entrants import Entrant, PeerError, Racer, find_entrant
from bench.peers import OURS, PEERS, Peer
from bench.race_table import (
    Result,
    Start,
    as_markdown,
    as_text,
    program_rows,
    read_cost,
    start_rows,
    time_rows,
)
from fewstep.files import replace_file, write_json
from fewstep.messages import unknown_choice
from fewstep.models.dit import SIZES
from fewstep.progress import note, progress_bar

DEVICES, EMULATE = 8, "--xla_force_host_platform_device_count"  # for collectives of a step
CACHES = ("JAX_COMPILATION_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
LATENT = {"side": IMAGE_SIZE, "channels": CHANNELS, "classes": CLASSES, "dtype": "float32"}
LATENT |= {"grid": 128}  # shortcut's finest
SCALES = {
    # configs/digits.py
    "digits": {**LATENT, "side": 8, "channels": 1, "classes": 10, "size": "micro", "batch": 128},
    # An eighth of the rows, two, cannot have more than two step sizes.
    "latent": {**LATENT, "size": "S", "batch": 16, "grid": 4},
    # Seconds on any machine: does it all run?
    "smoke": {**LATENT, "side": 4, "channels": 1, "classes": 2, "size": "nano", "batch": 56},
}
# Name -> what a spec has in addition. `case` is a key of bench.cases.CASES.
WORKS: dict[str, Mapping[str, Any]] = {
    "flow_matching": {"kind": "train", "method": "flow_matching", "case": "flow_matching"},
    "shortcut": {"kind": "train", "method": "shortcut", "case": "shortcut_8"},
    "mean_flow": {"kind": "train", "method": "mean_flow", "case": "mean_flow"},
    "sct": {"kind": "train", "method": "sct", "case": "sct"},
    **{
        f"sample_{steps}": {
            "kind": "sample",
            "method": "flow_matching",
            "case": "flow_matching",
            "steps": steps,
        }
        for steps in (1, 4, 128)
    },
}


def main(argv: Sequence[str] | None = None) -> None:
    """Race, print a table after each kind of work, and write all of them."""
    parser = argparse.ArgumentParser(prog="python -m bench.race", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME[:PYTHON]",
        help=f"{', '.join(PEERS)}; PYTHON is the interpreter that has the package",
    )
    parser.add_argument("--scale", default="digits", choices=SCALES)
    parser.add_argument("--works", default="flow_matching,shortcut,sample_1,sample_4,sample_128")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.5, help="CPU time of a turn")
    parser.add_argument("--core", type=int, help="the one to use; the first by default")
    parser.add_argument("--starts", action="store_true", help="measure cold and warm starts too")
    parser.add_argument("--collectives", action="store_true", help="count them on 8 devices too")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/race"))
    asked = parser.parse_args(argv)
    try:
        entrants = [Entrant(OURS, PEERS[OURS], sys.executable), *map(find_entrant, asked.peer)]
        works = [find_work(name) for name in asked.works.split(",")]
        for name, times in Counter(one.name for one in entrants).items():
            if times > 1:
                raise ValueError(f"--peer={name} takes part twice; give it once")
        if asked.rounds < 1:
            raise ValueError(f"--rounds={asked.rounds} must be at least 1")
        race(entrants, works, SCALES[asked.scale], asked)
    except (ValueError, PeerError) as error:
        sys.exit(f"bench.race: {error}")


def race(
    entrants: Sequence[Entrant],
    works: Sequence[str],
    scale: Mapping[str, Any],
    asked: argparse.Namespace,
) -> tuple[list[Result], list[Start]]:
    """Race the entrants at each kind of work; print, write and return what was measured."""
    conditions = f"{asked.scale} scale, {asked.rounds} rounds, {pin(asked.core)}"
    asked.out.mkdir(parents=True, exist_ok=True)
    log = asked.out / "peers.log"
    results: list[Result] = []
    starts = measure_starts(entrants, works[0], scale, log) if asked.starts else []
    with contextlib.ExitStack() as stack:
        open_racer = lambda one, **variables: stack.enter_context(Racer(one, variables, log))
        racers = {one.name: open_racer(one) for one in entrants}
        emulated = {
            one.name: open_racer(one, XLA_FLAGS=f"{EMULATE}={DEVICES}")
            for one in entrants
            if one.peer.package != "torch" and asked.collectives
        }
        for work in works:
            taking_part = [racers[one.name] for one in entrants if has(one.peer, work)]
            for racer in progress_bar(taking_part, desc=f"{work}: compile", unit="peer"):
                prepare(racer, work, scale)
            times = take_turns(taking_part, work, asked.rounds, asked.seconds)
            for racer in progress_bar(taking_part, desc=f"{work}: count", unit="peer"):
                split = count_on_devices(emulated.get(racer.entrant.name), work, scale)
                cost = read_cost(racer.ask("cost", work), split)
                results.append(Result(work, racer.entrant.name, times[racer.entrant.name], cost))
            done = [result for result in results if result.work == work]
            note(f"{as_text(time_rows(done))}\n{as_text(program_rows(done))}\n")
            write_tables(results, starts, conditions, asked.out)
    return results, starts


def measure_starts(
    entrants: Sequence[Entrant], work: str, scale: Mapping[str, Any], log: Path
) -> list[Start]:
    """The start of every entrant that has the work, twice, with a fresh cache for both."""
    starts = []
    taking_part = [one for one in entrants if has(one.peer, work)]
    for one in progress_bar(taking_part, desc=f"{work}: start", unit="peer"):
        with tempfile.TemporaryDirectory() as cache:
            seconds = []
            for _ in range(2):
                with Racer(one, dict.fromkeys(CACHES, cache), log) as racer:
                    seconds.append(prepare(racer, work, scale))
        starts.append(Start(work, one.name, *seconds))
    note(f"{as_text(start_rows(starts))}\n")
    return starts


def prepare(racer: Racer, work: str, scale: Mapping[str, Any], count: int = 1) -> float:
    """CPU seconds of a racer's process after it has compiled a kind of work and run it once."""
    spec = {**spec_of(work, scale), **racer.entrant.peer.fields}
    return racer.ask("prepare", work, spec=spec, count=count)["cpu"]


def count_on_devices(
    racer: Racer | None, work: str, scale: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """The cost of a training step on emulated devices; None without them or for a sampler."""
    if racer is None or WORKS[work]["kind"] != "train":
        return None
    prepare(racer, work, scale, count=0)
    return racer.ask("cost", work)


def take_turns(
    racers: Sequence[Racer], work: str, rounds: int, seconds: float
) -> dict[str, list[float]]:
    """CPU seconds of one run, by racer and round; every second round goes backwards."""
    run = lambda racer, count: racer.ask("run", work, count=count)["cpu"] / count
    counts = {racer.entrant.name: round(seconds / run(racer, 1)) for racer in racers}
    times: dict[str, list[float]] = {name: [] for name in counts}
    for number in progress_bar(range(rounds), desc=f"{work}: race", unit="round"):
        for racer in racers[:: -1 if number % 2 else 1]:
            name = racer.entrant.name
            times[name].append(run(racer, max(1, counts[name])))
    return times


def has(peer: Peer, work: str) -> bool:
    """Whether a peer has a kind of work."""
    return WORKS[work]["kind"] == "sample" or WORKS[work]["method"] in peer.methods


def find_work(name: str) -> str:
    """A key of WORKS. Raises ValueError for another name."""
    if name not in WORKS:
        raise ValueError(unknown_choice("--works", name, WORKS))
    return name


def spec_of(work: str, scale: Mapping[str, Any]) -> dict[str, Any]:
    """What peers are told: sizes as numbers, because they do not know ours by name."""
    size = SIZES[scale["size"]]
    return {**scale, **size._asdict(), **WORKS[work], "patch": PATCH_SIZE}


def pin(core: int | None) -> str:
    """Keep this process and the peers on one core, if the system can; says where they run."""
    if not hasattr(os, "sched_setaffinity"):
        return "all cores (this system cannot pin a process)"
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0)) if core is None else core})
    return "one core of a CPU"


def write_tables(
    results: Sequence[Result], starts: Sequence[Start], conditions: str, out: Path
) -> None:
    """Write OUT/race.md and OUT/race.json."""
    tables = [time_rows(results), program_rows(results), *([start_rows(starts)] if starts else [])]
    page = "\n\n".join([f"Medians of CPU time, {conditions}.", *map(as_markdown, tables)])
    replace_file(out / "race.md", f"{page}\n".encode())
    rows = [{**one._asdict(), "cost": one.cost._asdict()} for one in results]
    record = {"conditions": conditions, "results": rows}
    write_json(out / "race.json", {**record, "starts": [one._asdict() for one in starts]})


if __name__ == "__main__":
    main()
