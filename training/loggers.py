"""Where the rows of a run's log go beside metrics.jsonl: TensorBoard, a CSV file, Weights & Biases.

A `Logger` gets every row after metrics.jsonl has it. A new one is a function that opens it, and an
entry in LOGGERS; `log.to` names those of a run.
"""

import csv
import io
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from fewstep.files import replace_file, writing
from fewstep.messages import unknown_choice
from fewstep.training.storage.identity import read_identity

EVENTS = "tensorboard"
TABLE = "metrics.csv"
PROJECT = "fewstep"


class Logger(Protocol):
    """What gets the rows of a log. Raises OSError that names a file that cannot be written."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add finite values of a step, by name."""

    def close(self) -> None:
        """End the log; the run has ended or stopped."""


class Opening(NamedTuple):
    """What a logger is opened with.

    workdir: of the run. start: step that it starts from; rows of later steps count no more. rows:
    reads all rows of metrics.jsonl up to now.
    """

    workdir: Path
    start: int
    rows: Callable[[], Iterable[Mapping[str, float]]]


class Events:
    """Scalars for TensorBoard, written at once: a full disk raises here, not in a thread.

    TensorBoard hides what earlier starts wrote after step `start`.
    """

    def __init__(self, opening: Opening) -> None:
        self.folder = opening.workdir / EVENTS
        with writing(self.folder):
            self.folder.mkdir(exist_ok=True)
            self.writer = EventsWriter(str(self.folder / "events"))
            began = SessionLog(status=SessionLog.START)
            self.add(Event(step=opening.start + 1, session_log=began))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add the values of a step."""
        with writing(self.folder):
            for name, value in values.items():
                self.add(Event(step=step, summary=scalar(name, value)))
            self.writer.flush()

    def add(self, event: Event) -> None:
        """Add an event that happens now."""
        event.wall_time = time.time()
        self.writer.write_event(event)

    def close(self) -> None:
        """Close the file. Ignores OSError, since `write` has raised for a full disk already."""
        with suppress(OSError):
            self.writer.close()


class Table:
    """metrics.csv: a line for each row, a column for each name, empty where a row lacks it.

    A row with a new name writes the file again from metrics.jsonl, since its columns change.
    """

    def __init__(self, opening: Opening) -> None:
        self.path, self.rows = opening.workdir / TABLE, opening.rows
        self.columns: list[str] = []
        self.write_again()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add the values of a step."""
        if not {*values} <= {*self.columns}:
            self.write_again()
            return
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(csv_lines([{"step": step, **values}], self.columns))

    def write_again(self) -> None:
        """Write all rows of the log, with every column."""
        rows = list(self.rows())
        self.columns = list(dict.fromkeys(["step", *(name for row in rows for name in row)]))
        header = dict(zip(self.columns, self.columns, strict=True))
        replace_file(self.path, csv_lines([header, *rows], self.columns).encode())

    def close(self) -> None:
        """Nothing is open."""


def csv_lines(rows: Iterable[Mapping[str, Any]], columns: list[str]) -> str:
    """Rows as lines of CSV."""
    writer = csv.DictWriter(text := io.StringIO(), columns, lineterminator="\n")
    writer.writerows(rows)
    return text.getvalue()


class WandbRun:
    """A run of Weights & Biases with the id of ours, so that a resumed run goes on there.

    Its own environment variables say the rest: WANDB_MODE=offline, WANDB_PROJECT, WANDB_ENTITY.
    """

    def __init__(self, opening: Opening) -> None:
        import wandb  # slow, and few have it

        recorded = read_identity(opening.workdir)
        self.run = wandb.init(
            project=None if "WANDB_PROJECT" in os.environ else PROJECT,
            name=opening.workdir.absolute().name,
            id=recorded.id if recorded else None,
            config=dict(recorded.config) if recorded else None,
            dir=str(opening.workdir),
            resume="allow",
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add the values of a step."""
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        """End the run there."""
        self.run.finish()


# name -> how it is opened
LOGGERS: dict[str, Callable[[Opening], Logger]] = {
    "tensorboard": Events,
    "csv": Table,
    "wandb": WandbRun,
}
# Loggers whose package Fewstep does not require.
OPTIONAL = {"wandb": "wandb"}
DEFAULT = ("tensorboard",)


def check_loggers(names: Iterable[str]) -> None:
    """Raises ValueError, before any compute, for a logger that does not exist or is not here."""
    for name in names:
        if name not in LOGGERS:
            raise ValueError(unknown_choice("log.to", name, LOGGERS))
        package = OPTIONAL.get(name)
        if package and not is_installed(package):
            raise ValueError(
                f"log.to={name} needs the package {package}, which is not installed; pip install "
                f"{package}, or leave {name} out"
            )


def is_installed(package: str) -> bool:
    """Whether a package can be imported; a folder of its name, as W&B makes them, is none."""
    found = find_spec(package)
    return found is not None and found.origin is not None


def open_loggers(names: Iterable[str], opening: Opening) -> list[Logger]:
    """The loggers of a run, open."""
    return [LOGGERS[name](opening) for name in names]
