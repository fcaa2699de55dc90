"""The log of a run: metrics.jsonl, and what training/loggers.py makes of its rows."""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fewstep.files import append, has_name, replaced, writing
from fewstep.objectives.base import Mean, Metrics
from fewstep.training.cluster.processes import warn
from fewstep.training.loggers import DEFAULT, Opening, open_loggers

LOG = "metrics.jsonl"
DROPPED = "metrics.dropped.jsonl"  # lines that a resumed run has moved out of its log
# Suffix of metrics that count from the start of the run.
RUNNING = "skipped"
PADDING = b"\xef\xbb\xbf\0 \t\r\n"  # what editors (a BOM) and power losses put around a line


class MetricMeans:
    """Means of metrics over steps; of running counts, the last value.

    Leaves out metrics that were never counted. sums: (total, count) by name to start from.
    """

    def __init__(self, sums: Mapping[str, tuple[float, float]] | None = None) -> None:
        self.sums = {name: Mean(*map(np.float64, pair)) for name, pair in (sums or {}).items()}

    def add(self, metrics: Metrics) -> None:
        """Add the metrics of one step, which are on the host."""
        for name, mean in metrics.items():
            old = self.sums.get(name, Mean(np.float64(0), np.float64(0)))
            if name.endswith(RUNNING):
                self.sums[name] = mean if mean.count > 0 else old
            else:
                self.sums[name] = Mean(old.total + mean.total, old.count + mean.count)

    def pending(self) -> dict[str, tuple[float, float]]:
        """(total, count) by name since the last `pop`, as plain numbers."""
        return {name: (float(m.total), float(m.count)) for name, m in self.sums.items()}

    def pop(self) -> dict[str, float]:
        """The means since the last call."""
        sums, self.sums = self.sums, {}
        return {name: float(m.total / m.count) for name, m in sums.items() if m.count > 0}


class MetricLog:
    """Rows of numbers by step, in WORKDIR/metrics.jsonl and in the loggers that `to` names.

    A log that is opened at step k drops the rows of later steps (`drop_rows_after`), so that it has
    no step twice. Raises OSError that names the file that cannot be written.
    """

    def __init__(self, workdir: Path, step: int, to: Iterable[str] = DEFAULT) -> None:
        self.path = workdir / LOG
        drop_rows_after(self.path, step)
        with writing(self.path):
            self.folder = os.open(workdir, os.O_RDONLY)
            self.file = self.open()
        self.loggers = open_loggers(to, Opening(workdir, step, partial(read_rows, self.path)))

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Append one row, without values that are not finite: JSON cannot express them."""
        finite = {name: value for name, value in row.items() if math.isfinite(value)}
        with writing(self.path):
            if not has_name(self.file.fileno(), LOG, self.folder):  # an editor has replaced it
                self.file.close()
                self.file = self.open()
            append(self.file, (json.dumps({"step": step, **finite}) + "\n").encode())
        for logger in self.loggers:
            logger.write(step, finite)

    def open(self) -> BinaryIO:
        """The log, opened for appending, in the folder that the run started in."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        return open(os.open(LOG, flags, 0o666, dir_fd=self.folder), "ab", buffering=0)

    def close(self) -> None:
        """Close the log and the loggers."""
        self.file.close()
        os.close(self.folder)
        for logger in self.loggers:
            logger.close()


def drop_rows_after(path: Path, step: int) -> None:
    """Move rows after a step, and a line that a killed run left incomplete, to the file DROPPED.

    All other lines stay as they are, even those that cannot be read.
    """

    def stays(line: bytes) -> bool:
        row = parse_row(line)
        return line.endswith(b"\n") if row is None else row["step"] <= step

    if not path.exists() or all(line.endswith(b"\n") and stays(line) for line in read_lines(path)):
        return
    with replaced(path) as kept, path.with_name(DROPPED).open("ab") as dropped:
        for line in read_lines(path):
            (kept if stays(line) else dropped).write(line.removesuffix(b"\n") + b"\n")
        dropped.flush()
        os.fsync(dropped.fileno())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, [] if there is none."""
    return list(iterate_rows(path))


def iterate_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of a metrics.jsonl: an integer `step` and finite numbers.

    Leaves out any other line or value and warns of it once. It does not warn of an incomplete last
    line, which a run may still be writing.
    """
    for number, line in enumerate(read_lines(path) if path.exists() else (), start=1):
        row = parse_row(line)
        if row is not None:
            yield {name: value for name, value in row.items() if is_finite_number(value)}
        if line.endswith(b"\n") and line.strip() and (row is None or not has_only_numbers(row)):
            warn_about_line(path, number, whole=row is None)


def read_lines(path: Path) -> Iterator[bytes]:
    """Yields the lines of a file, line ends included."""
    with path.open("rb") as file:
        yield from file


def parse_row(line: bytes) -> dict[str, Any] | None:
    """The row in a line of the log, an object with an integer step; None if it has none."""
    try:
        row = json.loads(line.strip(PADDING).decode())
    except (ValueError, RecursionError):
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return row if isinstance(step, int) and is_finite_number(step) and step >= 0 else None


def has_only_numbers(row: Mapping[str, Any]) -> bool:
    """Whether all values of a row are finite numbers."""
    return all(map(is_finite_number, row.values()))


def is_finite_number(value: Any) -> bool:
    """Whether a value is a finite number that float can hold; a bool is none."""
    try:
        return (
            isinstance(value, int | float)
            and value is not True
            and value is not False
            and math.isfinite(value)
        )
    except OverflowError:
        return False


@cache
def warn_about_line(path: Path, number: int, whole: bool) -> None:
    """Warn once that a line of the log cannot be read: the whole line, or a value in it."""
    what = "has no integer step" if whole else "has a value that is not a finite number"
    warn(f"{path}:{number} {what} and is left out; mend or delete the line")
