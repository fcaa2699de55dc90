"""Modes of the command line, their flags, and the functions that parse the values of flags.

The value of a flag becomes the field of `Request` with its name. Without the flag, the field keeps
its default. Each parser takes the name of the flag and the given text, and raises ValueError with
the name of the flag.
"""

import csv
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.modes.request import Request, expand_home
from fewstep.training.profile import Window

Read = Callable[[str, str], Any]
MOST_NUMBERS = 10_000_000  # of a range, so that a slip of the finger does not fill the memory


def parse_text(flag: str, given: str) -> str:
    """Return the text as given."""
    return given


class Flag(NamedTuple):
    """A flag. help: its text in --help. read: the parser, (flag, text) -> value.

    fields: dotted names of the fields of the config that the value sets; () for a field of Request.
    switch: whether the flag is on or off, and needs no value.
    """

    help: str
    read: Read = parse_text
    fields: tuple[str, ...] = ()
    switch: bool = False


class Mode(NamedTuple):
    """One mode of the command line.

    summary: one line for --help. together: whether several processes can run it as one job.
    trains: whether SIGTERM ends it in all processes after the same training step. alike: whether it
    refuses to run if the processes have different flags. replaces: for a mode that takes the config
    from the record of a run, the fields and groups of fields that --config.FIELD may replace.
    """

    run: Callable[[Request], None]
    summary: str
    flags: Mapping[str, Flag] = {}
    together: bool = False
    trains: bool = False
    alike: bool = True
    replaces: tuple[str, ...] = ()

    def may_replace(self, field: str) -> bool:
        """Whether --config.FIELD may replace this field of the record of a run."""
        return field in self.replaces or field.partition(".")[0] in self.replaces


def parse_path(flag: str, given: str) -> Path | None:
    """Return the path with ~ expanded; None for an empty text."""
    return Path(expand_home(given)) if given else None


def split_items(flag: str, given: str) -> list[str]:
    """Split a text at commas. Double quotes enclose a part that contains a comma.

    Raises ValueError for an open quote, and for an empty text or part.
    """
    try:
        parts = [part.strip() for row in csv.reader([given], strict=True) for part in row]
    except csv.Error as error:
        raise ValueError(f"--{flag}={given} has unmatched quotes; close them") from error
    if not parts:
        raise ValueError(f"--{flag}= has no value; give one, or leave out --{flag}")
    if not all(parts):
        raise ValueError(f"--{flag}={given} has an empty part; remove the extra comma")
    return parts


def parse_paths(flag: str, given: str) -> tuple[Path, ...]:
    """Return the paths between commas."""
    return tuple(Path(expand_home(part)) for part in split_items(flag, given))


def parse_name_list(flag: str, given: str) -> tuple[str, ...]:
    """Return the names between commas."""
    return tuple(split_items(flag, given))


def parse_labels(flag: str, given: str) -> tuple[int | str, ...]:
    """Return the labels between commas: an int, or the text of a class name such as 007."""
    exact = re.compile(r"0|-?[1-9]\d*")
    return tuple(int(part) if exact.fullmatch(part) else part for part in split_items(flag, given))


def parse_integer(flag: str, given: str) -> int:
    """Return a whole number. Raises ValueError."""
    try:
        return int(given)
    except ValueError as error:
        raise ValueError(f"--{flag}={given} must be a whole number, such as 4") from error


def parse_integers(flag: str, given: str) -> tuple[int, ...]:
    """Return the whole numbers between commas. Raises ValueError."""
    try:
        return tuple(map(int, split_items(flag, given)))
    except ValueError as error:
        raise ValueError(f"--{flag}={given} must be whole numbers, such as 8,8") from error


def parse_window(flag: str, given: str) -> Window:
    """Parse START:STOP as training steps. Raises ValueError."""
    ends = re.fullmatch(r"(\d+):(\d+)", given)
    if not ends:
        raise ValueError(f"--{flag}={given} must be START:STOP, two training steps such as 100:103")
    return Window(*map(int, ends.groups()))


def parse_number(flag: str, given: str) -> float:
    """Return a number. Raises ValueError."""
    try:
        return float(given)
    except ValueError as error:
        raise ValueError(f"--{flag}={given} must be a number, such as 2.5") from error


def parse_numbers(flag: str, given: str) -> tuple[float, ...]:
    """Return the numbers between commas. Raises ValueError."""
    try:
        return tuple(map(float, split_items(flag, given)))
    except ValueError as error:
        raise ValueError(f"--{flag}={given} must be numbers, such as 0.25,0.45") from error


def parse_one_or_several(flag: str, given: str) -> float | tuple[float, ...]:
    """Return a number, or several between commas. Raises ValueError."""
    found = parse_numbers(flag, given)
    return found[0] if len(found) == 1 else found


def parse_grid(flag: str, given: str) -> tuple[str, ...]:
    """Return the axes of rows and of columns. Raises ValueError unless they are two others."""
    axes = tuple(part.strip() for part in given.split(","))
    if sorted(axes) != ["labels", "seeds"]:
        raise ValueError(
            f"--{flag}={given} must be seeds,labels (a row for each seed) or labels,seeds"
        )
    return axes


def parse_ranges(flag: str, given: str) -> tuple[int, ...]:
    """Return the numbers of inclusive ranges, such as 0-63 or 0-7,100. Raises ValueError."""
    found: list[int] = []
    for part in given.split(","):
        ends = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if not ends or int(ends[2] or ends[1]) < int(ends[1]):
            raise ValueError(f"--{flag}={given} must be numbers or ranges, such as 0-63 or 0-7,100")
        numbers = range(int(ends[1]), int(ends[2] or ends[1]) + 1)
        if numbers[-1] - numbers[0] >= MOST_NUMBERS:
            raise ValueError(f"--{flag}={given} has more than {MOST_NUMBERS:,} numbers")
        found += numbers
    return tuple(found)


# Fields of a run whose images or teacher have moved.
PLACES = ("data.dir", "data.name", "codec.weights", "teacher")
# main.py reads `config`, since it knows the files of configs.
CONFIG = {"config": Flag("File and method of the config, such as configs/digits.py:shortcut.")}
WORKDIR = {"workdir": Flag("Folder of the run.", parse_path)}
FROM = {
    "from": Flag(
        "RUN[@STEP], another run whose networks a new run starts from (docs/running.md).",
        lambda flag, given: expand_home(given),
    )
}
PROFILE = {
    "profile": Flag("START:STOP, the training steps to trace, such as 100:103.", parse_window)
}
CHECKPOINT = {
    "checkpoint": Flag("Training step of the checkpoint; default: the newest.", parse_integer),
    "network": Flag(
        "Network or average that samples, such as ema_0.999; default: that of the config."
    ),
    "solver": Flag("Solver that samples a denoiser, such as heun or unipc; default: the run's."),
}
