"""Builds the parts that a config names: table entries, or functions called with their fields."""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fewstep.diffusion.path import Path
from fewstep.latents.codec import Codec
from fewstep.messages import unknown_choice
from fewstep.parts import Decoder, Entry, Mark, Part, RunLength, declared_marks


class RunContext(NamedTuple):
    """What parts are built from besides their fields.

    steps: training steps of the run. codec: of its latents as the network sees them, or None.
    """

    path: Path
    steps: int
    codec: Codec | None = None


def look_up(table: Mapping[str, Any], name: str, field: str) -> Any:
    """table[name]. Raises ValueError that names the nearest entry if there is none."""
    if name in table:
        return table[name]
    raise ValueError(unknown_choice(field, name, table))


def construct(
    table: Mapping[str, Callable[..., Any]], fields: Mapping[str, Any], prefix: str, *inputs: Any
) -> Any:
    """table[fields["name"]](*inputs, **other fields), without the fields that are None.

    Raises ValueError for an unknown name, for a field that the function does not take, and for a
    value that it refuses.
    """
    function = look_up(table, fields["name"], f"{prefix}.name")
    given = {k: v for k, v in fields.items() if k != "name" and v is not None}
    accepted = list(inspect.signature(function).parameters)[len(inputs) :]
    for field in given:
        if field not in accepted:
            raise ValueError(
                f"{prefix}.{field} is not used by {fields['name']}, which takes "
                f"{', '.join(accepted) or 'no field'}; leave it unset"
            )
    try:
        return function(*inputs, **given)
    except ValueError as error:
        # The function knows its argument, and not the group that the field is in.
        if re.match(r"\w*", str(error))[0] not in given:
            raise
        raise ValueError(f"{prefix}.{error}") from error


def construct_with_parts(
    table: Mapping[str, Callable[..., Any]],
    fields: Mapping[str, Any],
    prefix: str,
    run: RunContext,
    *inputs: Any,
) -> Any:
    """`construct`, after building the parts that the function declares from their fields."""
    function = look_up(table, fields["name"], f"{prefix}.name")
    return construct(table, arguments(function, fields, prefix, run), prefix, *inputs)


def arguments(
    function: Callable[..., Any], fields: Mapping[str, Any], prefix: str, run: RunContext
) -> dict[str, Any]:
    """A function's arguments, built from its fields as it declares them. Raises ValueError."""
    marks = declared_marks(function)
    return {
        name: argument(marks.get(name), value, f"{prefix}.{name}", run)
        for name, value in fields.items()
    }


def argument(mark: Mark | None, value: Any, field: str, run: RunContext) -> Any:
    """The argument that a field's value stands for; None means the function's own default.

    Raises ValueError.
    """
    if isinstance(mark, RunLength):
        return run.steps if value is None else value
    if isinstance(mark, Decoder):
        return decoder(value, field, run)
    if isinstance(mark, Entry):
        return None if value is None else look_up(mark.table, value, field)
    if isinstance(value, Mapping) and not value["name"]:
        check_unset(value, field)
        return None
    if isinstance(mark, Part):
        inputs = (run.path,) if mark.on_path else ()
        return construct_with_parts(mark.table, value, field, run, *inputs)
    return value


def decoder(value: bool | None, field: str, run: RunContext) -> Any:
    """The codec's `decode` for True, else the value. Raises ValueError for a run without codec."""
    if value is not None and run.codec is None:
        raise ValueError(
            f"{field}={value} is for latents, and this run has no codec.name; leave it unset"
        )
    return run.codec.decode if value else value


def check_unset(part: Mapping[str, Any], field: str) -> None:
    """Raises ValueError for a field that is set although the part's name is ""."""
    for name, value in part.items():
        if isinstance(value, Mapping):
            check_unset(value, f"{field}.{name}")
        elif name != "name" and value is not None:
            raise ValueError(f"{field}.{name} is not used without {field}.name; set that too")
