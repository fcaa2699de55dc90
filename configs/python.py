"""Reads configs for Python: a file, and the fields that a caller replaces."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from fewstep.configs import command_line
from fewstep.configs.fields import flattened, spread, unknown_field_message

# Types of fields -> what a value must be.
TYPES = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "text",
    tuple: "a list",
}


def fields_from_python(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields by dotted name as a record has them.

    A mapping for a group of fields gives those of its fields that it has. Paths become text, and
    numbers and arrays of NumPy those of Python.
    """
    return spread(plain_value(fields))


def plain_value(value: Any) -> Any:
    """Return a value without types of other modules, also inside of mappings and lists."""
    if isinstance(value, ConfigDict):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {name: plain_value(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return (
            [*map(plain_value, value)] if isinstance(value, list) else (*map(plain_value, value),)
        )
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def read_config(name: str, fields: Mapping[str, Any]) -> ConfigDict:
    """Return the config FILE[:METHOD] with some fields replaced, for Python.

    fields: of `fields_from_python`. Raises ValueError with the messages of the command line.
    """
    path = command_line.packaged_config(name)
    file = path.partition(":")[0]
    if not command_line.is_python(Path(file)):
        raise ValueError(command_line.missing_file_message(name))
    try:
        config = command_line.config_without_overrides(path)
    except command_line.ERRORS as error:
        raise ValueError(
            command_line.explain_file_error(file, error) or command_line.explain_value(error)
        ) from error
    arguments = [f"--config.{field}={value}" for field, value in fields.items()]
    unknown = unknown_field_message(config, arguments)
    if unknown:
        raise ValueError(unknown)
    written = dict(flattened(config.to_dict()))
    before = {field: written.get(field) for field in fields}
    try:
        config.update_from_flattened_dict(fields)
    except (TypeError, ValueError) as error:
        raise ValueError(wrong_type_message(fields, before)) from error
    return command_line.with_consequences(config, fields, before, file)


def wrong_type_message(fields: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """Return the error message for the first value whose type is not that of its field."""
    for field, value in fields.items():
        try:
            ConfigDict({"field": before[field]}).update({"field": value})
        except (TypeError, ValueError):
            kind = TYPES.get(type(before[field]), f"a {type(before[field]).__name__}")
            return f"--config.{field}={value!r} must be {kind}"
    return f"--config: {', '.join(fields)} do not fit together"
