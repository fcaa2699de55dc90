"""What changes when the command line replaces a part of a config by another name."""

from collections.abc import Mapping, Set
from typing import Any

from ml_collections import ConfigDict

from fewstep.configs.base import time_scale_for


def forget_replaced(
    config: ConfigDict, given: Mapping[str, Any], before: Mapping[str, Any]
) -> None:
    """Unset the fields that a config file set for a part that the command line replaced.

    A pseudo-Huber distance's c, for example, means nothing to the squared_l2 that replaces it.
    Fields that were overridden themselves keep their values.

    given, before: overridden fields by dotted name, with their values now and in the config file.
    """
    for field, name in given.items():
        part, _, last = field.rpartition(".")
        if field == "codec.name" and name != before[field]:
            open_scaling(config, set(given))
        is_part = part in ("model", "path", "prediction") or part.startswith("objective.")
        if is_part and last in ("name", "kind") and name != before[field]:
            time_scale = time_scale_for(config, name)
            unset(config, part, keep=set(given))
            if part == "model" and "model.time_scale" not in given:
                config.model.time_scale = time_scale


def open_scaling(config: ConfigDict, keep: Set[str]) -> None:
    """Leave the scale and shift of latents open, which are those of one codec."""
    for field in ("scale", "shift"):
        if f"codec.{field}" not in keep:
            config.codec[field] = ()


def unset(config: ConfigDict, part: str, keep: Set[str]) -> None:
    """Set a part's fields to None and the names of its own parts to "", except those in `keep`."""
    for field, value in config[part].items():
        name = f"{part}.{field}"
        if isinstance(value, ConfigDict):
            unset(config, name, keep)
            if f"{name}.name" not in keep:
                config[name].name = ""
        elif name not in keep and field not in ("name", "kind"):
            config[part].update({field: None})
