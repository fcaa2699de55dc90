"""What a mode of the command line is, and the flags that several modes read.

A flag's value is the field of `Request` with its name; without the flag that field has its default.
"""

import csv
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.modes.request import Request, expand_home

Read = Callable[[str, str], Any]


def parse_text(flag: str, given: str) -> str:
    """The text as it was given."""
    return given


class Flag(NamedTuple):
    """help: what --help says. read: (flag, text) -> value; raises ValueError, naming the flag."""

    help: str
    read: Read = parse_text


class Mode(NamedTuple):
    """One thing that the command line does.

    summary: one line for --help. together: whether several processes can run it as one. trains:
    whether SIGTERM ends it in all processes after the same step. alike: whether processes that
    were started with different flags are refused before it runs.
    """

    run: Callable[[Request], None]
    summary: str
    flags: Mapping[str, Flag] = {}
    together: bool = False
    trains: bool = False
    alike: bool = True


def parse_path(flag: str, given: str) -> Path | None:
    """A path, with ~ expanded; None for no text."""
    return Path(expand_home(given)) if given else None


def split_items(flag: str, given: str) -> list[str]:
    """The parts of a text between commas; one with a comma stands in double quotes.

    Raises ValueError for a quote that does not end, and for an empty part.
    """
    try:
        parts = [part.strip() for row in csv.reader([given], strict=True) for part in row]
    except csv.Error as error:
        raise ValueError(f"--{flag}={given} is no list between commas: {error}") from error
    if not all(parts):
        raise ValueError(f"--{flag}={given} has nothing between two commas, or at an end")
    return parts


def parse_paths(flag: str, given: str) -> tuple[Path, ...]:
    """Paths between commas."""
    return tuple(Path(expand_home(part)) for part in split_items(flag, given))


def parse_name_list(flag: str, given: str) -> tuple[str, ...]:
    """Names between commas."""
    return tuple(split_items(flag, given))


def parse_labels(flag: str, given: str) -> tuple[int | str, ...]:
    """Numbers as they would be printed as ints; anything else is the name of a class."""
    exact = re.compile(r"0|-?[1-9]\d*")
    return tuple(int(part) if exact.fullmatch(part) else part for part in split_items(flag, given))


def parse_integer(flag: str, given: str) -> int:
    """An integer. Raises ValueError."""
    try:
        return int(given)
    except ValueError as error:
        raise ValueError(f"--{flag}={given} must be an integer, such as 4") from error


def parse_integers(flag: str, given: str) -> tuple[int, ...]:
    """Integers between commas. Raises ValueError."""
    try:
        return tuple(map(int, split_items(flag, given)))
    except ValueError as error:
        raise ValueError(f"--{flag}={given} must be integers, such as 8,8") from error


def parse_number(flag: str, given: str) -> float:
    """A number. Raises ValueError."""
    try:
        return float(given)
    except ValueError as error:
        raise ValueError(f"--{flag}={given} must be a number, such as 2.5") from error


def parse_numbers(flag: str, given: str) -> tuple[float, ...]:
    """Numbers between commas. Raises ValueError."""
    try:
        return tuple(map(float, split_items(flag, given)))
    except ValueError as error:
        raise ValueError(f"--{flag}={given} must be numbers, such as 0.25,0.45") from error


def parse_ranges(flag: str, given: str) -> tuple[int, ...]:
    """Numbers and ranges with both ends, such as 0-63 or 0-7,100. Raises ValueError."""
    found: list[int] = []
    for part in given.split(","):
        ends = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if not ends or int(ends[2] or ends[1]) < int(ends[1]):
            raise ValueError(f"--{flag}={given} must be numbers or ranges, such as 0-63 or 0-7,100")
        found += range(int(ends[1]), int(ends[2] or ends[1]) + 1)
    return tuple(found)


# `config` is read by main.py, which knows the files of configs.
CONFIG = {"config": Flag("configs/FILE.py:METHOD")}
WORKDIR = {"workdir": Flag("Folder of the run.", parse_path)}
CHECKPOINT = {
    "checkpoint": Flag("Training step of the checkpoint; default the newest.", parse_integer),
    "network": Flag("Network or average that samples, such as ema_0.999."),
}
