"""What it means to name another part on the command line than the config file has."""

from collections.abc import Mapping, Set
from typing import Any

from ml_collections import ConfigDict


def forget_replaced(
    config: ConfigDict, given: Mapping[str, Any], before: Mapping[str, Any]
) -> None:
    """Unset what a config file set for parts that were replaced by another name.

    given, before: overridden fields by dotted name, with their values now and in the config file.
    A pseudo-Huber distance's c, say, means nothing to the squared_l2 that takes its place; what was
    overridden itself stays.
    """
    for field, name in given.items():
        part, _, last = field.rpartition(".")
        is_part = part in ("model", "path", "prediction") or part.startswith("objective.")
        if is_part and last in ("name", "kind") and name != before[field]:
            unset(config, part, keep=set(given))


def unset(config: ConfigDict, part: str, keep: Set[str]) -> None:
    """Set the fields of a part to None, and the names of parts in it to ""; but those of `keep`."""
    for field, value in config[part].items():
        name = f"{part}.{field}"
        if isinstance(value, ConfigDict):
            unset(config, name, keep)
            if f"{name}.name" not in keep:
                config[name].name = ""
        elif name not in keep and field not in ("name", "kind"):
            config[part].update({field: None})
