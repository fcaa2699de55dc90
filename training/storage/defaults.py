"""Reads configs of other versions: fills in the fields that they lack, finds those removed since.

A run records all fields of its version. A field that was added later takes today's default, so that
the run goes on and samples as before. BEFORE has the few fields for which runs did something else.
"""

from collections.abc import Mapping
from typing import Any

from fewstep.configs import base, objectives
from fewstep.data import FIRST_DECODING
from fewstep.models import NETWORKS
from fewstep.objectives import OBJECTIVES
from fewstep.objectives.needs import network_defaults
from fewstep.training.storage.fields import OBJECTIVE, PLAYERS

Fields = Mapping[str, Any]
# Groups whose fields depend on the part that their `name` chooses.
MODEL = "model"
PARTS = (MODEL, OBJECTIVE)
# What runs did before these fields existed: decode by the first rules, draw labels equally often.
BEFORE = {"data": {"decoding": FIRST_DECODING, "label_shares": "equal"}}


def fill_missing_fields(config: Fields) -> dict[str, Any]:
    """A recorded config's fields; each that it lacks stands for what runs did without it."""
    return fill_network(fill_defaults(fill_defaults(config, BEFORE), current_fields(config)))


def fill_network(config: dict[str, Any]) -> dict[str, Any]:
    """The config with values for the fields that its network has and that are None.

    Runs record these values (training/networks.py), so a later field has one too.
    """
    model, objective = config[MODEL], config[OBJECTIVE]
    kind, method = NETWORKS.get(model.get("name")), OBJECTIVES.get(objective.get("name"))
    if kind is None or method is None:
        return config
    own = network_defaults(kind.fields, method, objective)
    open_fields = {name: value for name, value in own.items() if model.get(name) is None}
    return {**config, MODEL: {**model, **open_fields}}


def fill_defaults(fields: Fields, defaults: Fields, group: str = "") -> dict[str, Any]:
    """The fields, with defaults for those that they lack.

    A network, or a part of an objective, with another name than the default's takes none of its
    defaults: fields that it lacks are None, the default of the function that takes them.
    """
    other = group and fields.get("name", defaults.get("name")) != defaults.get("name")
    found = dict(fields)
    for name, default in defaults.items():
        part = f"{group}.{name}" if group or name in PARTS else ""
        if name not in fields:
            found[name] = unset_value(default) if other else default
        elif isinstance(default, Mapping) and isinstance(fields[name], Mapping):
            found[name] = fill_defaults(fields[name], default, part)
    return found


def unset_value(default: Any) -> Any:
    """The value that leaves a field open: None, and for a part a group whose name is ""."""
    if not isinstance(default, Mapping):
        return None
    return {name: "" if name == "name" else unset_value(field) for name, field in default.items()}


def current_fields(config: Fields) -> dict[str, Any]:
    """All fields of this version with their defaults, those of objective and network included."""
    fields, name = base.config().to_dict(), config.get(OBJECTIVE, {}).get("name")
    if name in OBJECTIVES:
        fields[OBJECTIVE] = getattr(objectives, name)().to_dict()
    kind = NETWORKS.get(config.get(MODEL, {}).get("name"))
    if kind is not None:
        fields[MODEL] = {**dict.fromkeys(kind.fields), **fields[MODEL]}
    return fields


def removed_fields(config: Fields) -> list[str]:
    """Dotted names of a config's fields that this version does not have.

    Leaves out fields that are None, and fields of an objective that this version does not have.
    """
    today = current_fields(config)
    known = today if today[OBJECTIVE] else {**today, OBJECTIVE: config.get(OBJECTIVE)}
    return sorted(unknown_fields(config, {**known, PLAYERS: config.get(PLAYERS)}))


def unknown_fields(fields: Fields, known: Fields, prefix: str = "") -> list[str]:
    """Dotted names of fields that are neither known nor None."""
    found = []
    for name, value in fields.items():
        own = known.get(name)
        if isinstance(value, Mapping) and isinstance(own, Mapping):
            found += unknown_fields(value, own, f"{prefix}{name}.")
        elif name not in known and value is not None:
            found.append(prefix + name)
    return found
