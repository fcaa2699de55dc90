"""How a function says, beside its arguments, what the fields of a config stand for.

    def denoising(model, *, solver: Annotated[Solver | None, Part(SOLVERS)] = None, ...)
    def square_root(first: int = 2, *, total_steps: Annotated[int, RUN_LENGTH]) -> Curriculum

A field whose argument has no such mark is passed as it is. A name means what the function that
takes it declares, and may mean something else to another.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

Table = Mapping[str, Any]


class Part(NamedTuple):
    """What a function of a table returns: a group of fields, of which "name" is its entry.

    The name "" stands for the argument's default. on_path: whether the functions take the path.
    """

    table: Table
    on_path: bool = False


class Entry(NamedTuple):
    """An entry of a table as it is: a field with its name."""

    table: Table


class RunLength(NamedTuple):
    """A number of steps: a field of None stands for the length of the run."""


RUN_LENGTH = RunLength()
Mark = Part | Entry | RunLength


def declared(function: Callable[..., Any]) -> dict[str, Mark]:
    """The marks of a function's arguments, by name."""
    return {
        name: mark
        for name, parameter in inspect.signature(function).parameters.items()
        for mark in getattr(parameter.annotation, "__metadata__", ())
        if isinstance(mark, Mark)
    }


def groups(function: Callable[..., Any], prefix: str) -> Iterator[str]:
    """The dotted names of all groups of fields that a function and its parts may have."""
    for name, mark in declared(function).items():
        if isinstance(mark, Part):
            yield f"{prefix}.{name}"
            for part in mark.table.values():
                yield from groups(part, f"{prefix}.{name}")


def lengths_left_open(
    function: Callable[..., Any], fields: Mapping[str, Any], prefix: str
) -> Iterator[str]:
    """The fields that stand for the length of the run; fields: by dotted name."""
    parameters = inspect.signature(function).parameters
    for name, mark in declared(function).items():
        field = f"{prefix}.{name}"
        if isinstance(mark, RunLength):
            default = parameters[name].default
            default = None if default is inspect.Parameter.empty else default
            if fields.get(field, default) is None:
                yield field
        elif isinstance(mark, Part) and fields.get(f"{field}.name") in mark.table:
            part = mark.table[fields[f"{field}.name"]]
            yield from lengths_left_open(part, fields, field)
