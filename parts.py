"""Annotations by which a function declares what the config fields of its arguments stand for.

    def denoising(model, *, solver: Annotated[Solver | None, Part(SOLVERS)] = None, ...)
    def square_root(first: int = 2, *, total_steps: Annotated[int, RUN_LENGTH]) -> Curriculum

A field whose argument has no annotation is passed unchanged. The same field name may mean
different things to different functions.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

Table = Mapping[str, Any]


class Part(NamedTuple):
    """The result of a function in a table. The field is a group whose "name" selects the function.

    The name "" stands for the argument's default. on_path: the functions take the path.
    """

    table: Table
    on_path: bool = False


class Entry(NamedTuple):
    """An entry of a table, unchanged. The field is the name of the entry."""

    table: Table


class RunLength(NamedTuple):
    """A number of steps. A field of None stands for the length of the run."""


class Decoder(NamedTuple):
    """The decoder of the run's codec. The field is True for it, or False for none."""


RUN_LENGTH, DECODER = RunLength(), Decoder()
Mark = Part | Entry | RunLength | Decoder


def declared_marks(function: Callable[..., Any]) -> dict[str, Mark]:
    """The annotations of a function's arguments, by argument name."""
    return {
        name: mark
        for name, parameter in inspect.signature(function).parameters.items()
        for mark in getattr(parameter.annotation, "__metadata__", ())
        if isinstance(mark, Mark)
    }


def group_names(function: Callable[..., Any], prefix: str) -> Iterator[str]:
    """The dotted names of all groups of fields of a function and its parts."""
    for name, mark in declared_marks(function).items():
        if isinstance(mark, Part):
            yield f"{prefix}.{name}"
            for part in mark.table.values():
                yield from group_names(part, f"{prefix}.{name}")


def open_lengths(
    function: Callable[..., Any], fields: Mapping[str, Any], prefix: str
) -> Iterator[str]:
    """The fields that stand for the length of the run. fields: values by dotted name."""
    parameters = inspect.signature(function).parameters
    for name, mark in declared_marks(function).items():
        field = f"{prefix}.{name}"
        if isinstance(mark, RunLength):
            default = parameters[name].default
            default = None if default is inspect.Parameter.empty else default
            if fields.get(field, default) is None:
                yield field
        elif isinstance(mark, Part) and fields.get(f"{field}.name") in mark.table:
            part = mark.table[fields[f"{field}.name"]]
            yield from open_lengths(part, fields, field)
