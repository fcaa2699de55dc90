"""Shows what the processes of one job do if one of them fails; prints a table.

    python -m tests.drills [NAME ...]

Two real processes over loopback train the smallest network. Each drill disturbs one of them. A
drill holds if all processes end in time, with the exit codes and lines that docs/clusters.md
promises. The exit code is 1 if a drill does not hold. docs/clusters.md has the printed table.
"""

import os
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import tests.conftest  # noqa: F401, the environment of the tests, before JAX starts
from fewstep.models.dit import DiTSize
from fewstep.training.cluster import exits
from tests import cli, faults

NANO = DiTSize(32, 1, 2)
STEPS = 1_000_000
TRAIN = (
    "--config=configs/digits.py:shortcut",
    "--config.model.size=nano",
    "--config.batch_size=64",
    "--config.optimizer.schedule=constant",
    "--config.optimizer.warmup_steps=0",
    "--config.log.every=5",
    "--config.checkpoint.every=20",
    "--config.evaluate.steps=()",
)
# With these flags each process writes parts of every array.
SPLIT = ("--config.mesh.data=1", "--config.mesh.fsdp=2")
STARTED = 240.0  # seconds until the first checkpoint, on a busy machine
ENDED = 120.0  # seconds until all processes must have ended
SAVED = "checkpoints/20"


class Ended(NamedTuple):
    """The end of a process. seconds: time since the fault."""

    code: int | None
    line: str
    seconds: float


class Job:
    """Two processes of a run in WORKDIR."""

    def __init__(
        self, folder: Path, *flags: str, count: int = 2, steps: int = STEPS, **how
    ) -> None:
        self.workdir = folder / "run"
        self.flags = [*TRAIN, f"--config.steps={steps}", f"--workdir={self.workdir}", *flags]
        self.commands = cli.start_together(count, *self.flags, nano=NANO, **how) if count else []

    def add(self, *flags: str, **how) -> None:
        """Start one more process."""
        self.commands.append(cli.Command([*self.flags, *flags], nano=NANO, **how))

    def wait_for(self, pattern: str) -> None:
        """Wait until a file of the run matches the pattern."""
        deadline = time.monotonic() + STARTED
        while not any(self.workdir.glob(pattern)):
            if time.monotonic() > deadline or not all(c.process.is_alive() for c in self.commands):
                raise AssertionError(f"{pattern} is not there: {self.end()}")
            time.sleep(0.02)

    def signal(self, index: int, number: int) -> None:
        """Send a signal to one process."""
        os.kill(self.commands[index].process.pid, number)

    def end(self, *, after: float | None = None, frozen: int | None = None) -> list[Ended]:
        """Wait for all processes; return their ends. `frozen` continues after the others ended.

        after: start of the measured time, now by default.
        """
        start = time.monotonic() if after is None else after
        seconds: dict[int, float] = {}
        order = [i for i in range(len(self.commands)) if i != frozen]
        self.await_end(order, start, seconds)
        if frozen is not None:
            self.signal(frozen, signal.SIGCONT)
            self.await_end([frozen], time.monotonic(), seconds)
        for command in self.commands:
            command.process.kill()
        results = [command.result() for command in self.commands]
        return [
            Ended(command.process.exitcode, last_line(result.stderr), seconds.get(i, float("inf")))
            for i, (command, result) in enumerate(zip(self.commands, results, strict=True))
        ]

    def await_end(self, indices: list[int], start: float, seconds: dict[int, float]) -> None:
        """Wait for these processes, and note when each ends."""
        while len(left := [i for i in indices if i not in seconds]) and (
            time.monotonic() - start < ENDED
        ):
            for i in left:
                if not self.commands[i].process.is_alive():
                    seconds[i] = time.monotonic() - start
            time.sleep(0.02)


def last_line(text: str) -> str:
    """Return the last line on standard error that is not a progress bar."""
    lines = [line for line in re.split(r"[\r\n]+", text) if line and not re.search(r"\d%\|", line)]
    return lines[-1] if lines else ""


def kill(folder: Path, victim: int, name: str = SAVED, after: float = 0.0, **how) -> list[Ended]:
    """Send SIGKILL `after` seconds after a file appears."""
    job = Job(folder, **how)
    job.wait_for(name)
    time.sleep(after)
    job.signal(victim, signal.SIGKILL)
    return job.end()


def freeze(folder: Path, victim: int, **how) -> list[Ended]:
    """Send SIGSTOP in training, and SIGCONT when the other has ended."""
    job = Job(folder, **how)
    job.wait_for(SAVED)
    job.signal(victim, signal.SIGSTOP)
    return job.end(frozen=victim)


def leave_out(folder: Path, victim: int) -> list[Ended]:
    """Never start one process."""
    job = Job(folder, "--join_timeout=8", count=0)
    job.add(*cli.joined(cli.free_address(), 2, 1 - victim))
    return job.end()


def start_late(folder: Path) -> list[Ended]:
    """Start process 1 ten seconds after the other."""
    job, address = Job(folder, count=0, steps=20), cli.free_address()
    job.add(*cli.joined(address, 2, 0))
    time.sleep(10.0)
    job.add(*cli.joined(address, 2, 1))
    return job.end()


def start_with_wrong_count(folder: Path) -> list[Ended]:
    """Start process 1 with a count of three processes."""
    job, address = Job(folder, "--join_timeout=8", count=0), cli.free_address()
    job.add(*cli.joined(address, 2, 0))
    job.add(*cli.joined(address, 3, 1))
    return job.end()


def start_with_same_id(folder: Path) -> list[Ended]:
    """Start a third process with the id of process 1; the two others train on."""
    job = Job(folder, steps=100)
    address = next(flag for flag in job.commands[0].arguments if "--coordinator" in flag)
    job.wait_for("run.json")
    job.add(address, "--num_processes=2", "--process_id=1")
    return job.end()


def occupy_port(folder: Path) -> list[Ended]:
    """Open the port of a Slurm job by another program."""
    job = Job(folder, "--distributed", count=0)
    with socket.create_server(("", 0)) as other:
        job.add(before=partial(faults.slurm_task, 0, 2, other.getsockname()[1]))
        return job.end()


def start_by_slurm(folder: Path, before: Callable[..., None]) -> list[Ended]:
    """Start a short run as a Slurm job."""
    job = Job(folder, "--distributed", count=0, steps=20)
    port = int(cli.free_address().rpartition(":")[2])
    for index in (0, 1):
        job.add(before=partial(before, index, 2, port))
    return job.end()


def fill_disk_at_start(folder: Path, victim: int) -> list[Ended]:
    """Fill the disk of one process before it starts."""
    return Job(folder, *SPLIT, before={victim: partial(faults.full_disk, 2000)}).end()


def fill_disk_in_save(folder: Path, victim: int) -> list[Ended]:
    """Fill the disk of one process after the first checkpoint."""
    first = folder / "run" / SAVED
    job = Job(folder, *SPLIT, before={victim: partial(faults.full_disk_after, first, 16_000)})
    job.wait_for(SAVED)
    return job.end()


def fill_disk_of_all(folder: Path) -> list[Ended]:
    """Keep all checkpoints on a disk with room for a few."""
    (folder / "run").mkdir()
    cli.mount("none", str(folder / "run"), "tmpfs", 0, "size=4m")
    job = Job(folder, "--config.checkpoint.keep=0")
    job.wait_for(SAVED)
    return job.end()


def unshare_disk(folder: Path) -> list[Ended]:
    """Give process 1 another disk at the same path."""
    return Job(folder, before={1: partial(faults.own_disk, folder)}).end()


def terminate_one(folder: Path) -> list[Ended]:
    """Send SIGTERM to process 1 alone."""
    job = Job(folder)
    job.wait_for(SAVED)
    job.signal(1, signal.SIGTERM)
    return job.end()


def hang_save(folder: Path) -> list[Ended]:
    """Make the disk of process 1 never finish its part of a save."""
    return Job(folder, before={1: partial(faults.hanging_save, 10.0)}).end()


def start(folder: Path, **how) -> list[Ended]:
    """Run a short job to its end."""
    return Job(folder, steps=20, **how).end()


class Drill(NamedTuple):
    """A disturbance and its expected outcome: exit codes and patterns of the last lines."""

    what: str
    run: Callable[[Path], list[Ended]]
    codes: tuple[int, ...]
    lines: tuple[str, ...]
    seconds: float = 20.0


DIED = "process {} .* died; start the same command again"
SILENT = "process {} .* gave no sign of life for 30 s"
FAILED = "process {} .* ended with an error: .*"
ABSENT = "process {} of 2 did not come to "
FULL = "could not be written .*(File too large|No space left)"
EVALUATED = ("--config.evaluate.every=20", "--config.evaluate.steps=(128,)")
EVALUATED += ("--config.evaluate.num_samples=4096", "--config.evaluate.features=pixels")
BOTH = (exits.PEER_DIED, exits.PEER_DIED)
KILLED = -signal.SIGKILL


def outcome(fault: int, code: int, line: str, other: str) -> dict[str, tuple]:
    """Return codes and lines of both; process `fault` has its own code, the other 76."""
    codes, lines = [(code, exits.PEER_DIED), (line, other.format(fault))], [0, 1]
    return dict(
        zip(("codes", "lines"), (tuple(c[i ^ fault] for i in lines) for c in codes), strict=True)
    )


DRILLS = [
    *(
        Drill(
            f"process {i} is killed {when}",
            partial(kill, victim=i, **how),
            **outcome(i, KILLED, "", DIED),
        )
        for when, how in (
            ("while it compiles", {"name": "run.json"}),
            ("in training", {}),
            ("in a save", {"name": "checkpoints/*tmp*"}),
            ("in an evaluation", {"after": 5.0, "own": {0: EVALUATED, 1: EVALUATED}}),
        )
        for i in (0, 1)
    ),
    *(
        Drill(
            f"process {i} is frozen, and goes on when the other has ended",
            partial(freeze, victim=i),
            **outcome(i, exits.PEER_DIED, "this process gave no sign of life|died", SILENT),
            seconds=45.0,
        )
        for i in (0, 1)
    ),
    Drill("process 1 is never started", partial(leave_out, victim=1), (76,), (ABSENT.format(1),)),
    Drill("process 0 is never started", partial(leave_out, victim=0), (76,), ("no process 0 at ",)),
    Drill("process 1 is started late", start_late, (0, 0), ("", ""), ENDED),
    Drill(
        "process 1 is started for three",
        start_with_wrong_count,
        (76, 2),
        (ABSENT.format(1), "--num_processes=3"),
    ),
    Drill(
        "a third process has the id of process 1",
        start_with_same_id,
        (0, 0, 2),
        ("", "", "is in use by"),
        ENDED,
    ),
    Drill(
        "another program has the port of a Slurm job", occupy_port, (2,), ("cannot listen on port",)
    ),
    *(
        Drill(
            f"the disk of process {i} is full {when}",
            partial(run, victim=i),
            **outcome(i, 2, FULL, FAILED + FULL),
            seconds=ENDED,
        )
        for when, run in (("at the start", fill_disk_at_start), ("in a save", fill_disk_in_save))
        for i in (0, 1)
    ),
    Drill("the disk of both is full in a save", fill_disk_of_all, (2, 2), (FULL, "")),
    Drill(
        "process 1 has another disk at --workdir",
        unshare_disk,
        (2, 2),
        ("is another folder for process 1", ""),
    ),
    Drill(
        "process 1 runs other code",
        partial(start, before={1: faults.other_code}),
        (2, 2),
        ("process 1 runs other code", ""),
    ),
    Drill(
        "process 1 has another config",
        partial(start, own={1: ["--config.seed=5"]}),
        (2, 2),
        ("different flags", ""),
    ),
    Drill(
        "the clock of process 1 is 3 h ahead",
        partial(start, before={1: partial(faults.clock_ahead, 10800.0)}),
        (0, 0),
        ("", ""),
        ENDED,
    ),
    Drill(
        "the loss becomes NaN",
        partial(start, own={i: ["--config.optimizer.learning_rate=1e38"] for i in (0, 1)}),
        (3, 3),
        ("not finite", ""),
        ENDED,
    ),
    Drill(
        "SIGTERM comes to process 1 alone", terminate_one, (75, 75), ("preempted, resumable", "")
    ),
    Drill(
        "a job of Slurm", partial(start_by_slurm, before=faults.slurm_task), (0, 0), ("", ""), ENDED
    ),
    Drill(
        "a job that JAX alone detects",
        partial(start_by_slurm, before=faults.task_for_jax),
        (0, 0),
        ("", ""),
        ENDED,
    ),
    Drill(
        "each process is a host of its own",
        partial(start, before=dict.fromkeys((0, 1), cli.become_a_host)),
        (0, 0),
        ("", ""),
        ENDED,
    ),
    Drill(
        "a save of process 1 hangs (limit 10 s)",
        hang_save,
        (exits.PEER_DIED, exits.STALLED),
        (FAILED.format(1) + "a checkpoint was not saved", "a checkpoint was not saved in 1"),
        ENDED,
    ),
]


def is_as_promised(drill: Drill, found: list[Ended]) -> bool:
    """Whether the processes ended as the drill promises."""
    alike = zip(found, drill.codes, drill.lines, strict=True)
    return all(
        ended.code == code and re.search(line, ended.line) and ended.seconds < drill.seconds
        for ended, code, line in alike
    )


def table_row(drill: Drill, found: list[Ended]) -> str:
    """Return a row of the table."""
    last = max(ended.seconds for ended in found)
    codes = ", ".join(str(ended.code if ended.code >= 0 else 128 - ended.code) for ended in found)
    lines = "<br>".join(f"{i}: `{ended.line}`" for i, ended in enumerate(found) if ended.line)
    return f"| {drill.what} | {last:.1f} | {codes} | {lines} |"


def main(names: list[str]) -> int:
    """Run the drills whose description contains one of `names`; all by default."""
    cli.private_mounts()
    failed = 0
    print("| what happened | seconds until all ended | exit codes | lines |\n|---|---|---|---|")
    for drill in DRILLS:
        if names and not any(name in drill.what for name in names):
            continue
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            try:
                found = drill.run(Path(folder))
            except AssertionError as error:
                print(f"| {drill.what} | FAILED: {error}", flush=True)
                failed += 1
                continue
        good = is_as_promised(drill, found)
        failed += not good
        print(
            table_row(drill, found) + ("" if good else f" FAILED: expected {drill[2:]}"), flush=True
        )
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
