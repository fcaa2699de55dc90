"""What a recorded config says of the fields that it lacks, and which of its fields are no more.

A run is recorded with all fields of its day. A field that came later counts as today's default, so
the run goes on and is sampled as before. BEFORE has the few fields whose default is another.
"""

from collections.abc import Mapping
from typing import Any

from fewstep.configs import base, objectives
from fewstep.data import FIRST_DECODING
from fewstep.objectives import OBJECTIVES
from fewstep.training.storage.fields import OBJECTIVE, PLAYERS

Fields = Mapping[str, Any]
# Groups whose fields are those of what they name.
PARTS = ("model", OBJECTIVE)
# What runs did before these fields: they decoded by the first rules, and drew all labels alike.
BEFORE = {"data": {"decoding": FIRST_DECODING, "label_shares": "equal"}}


def completed(config: Fields) -> dict[str, Any]:
    """The fields of a recorded config, and for each that it lacks what runs did without it."""
    return filled(filled(config, BEFORE), todays_fields(config))


def filled(fields: Fields, defaults: Fields, group: str = "") -> dict[str, Any]:
    """The fields, and those of the defaults that they lack.

    A network, or a part of an objective, by another name than the default's keeps nothing of that:
    what it lacks is None, the default of the function that takes it.
    """
    other = group and fields.get("name", defaults.get("name")) != defaults.get("name")
    found = dict(fields)
    for name, default in defaults.items():
        part = f"{group}.{name}" if group or name in PARTS else ""
        if name not in fields:
            found[name] = unset(default) if other else default
        elif isinstance(default, Mapping) and isinstance(fields[name], Mapping):
            found[name] = filled(fields[name], default, part)
    return found


def unset(default: Any) -> Any:
    """A field that stands for its function's default: None, and for a part one without a name."""
    if not isinstance(default, Mapping):
        return None
    return {name: "" if name == "name" else unset(field) for name, field in default.items()}


def todays_fields(config: Fields) -> dict[str, Any]:
    """All fields of this version with their defaults, those of the config's objective included."""
    fields, name = base.config().to_dict(), config.get(OBJECTIVE, {}).get("name")
    if name in OBJECTIVES:
        fields[OBJECTIVE] = getattr(objectives, name)().to_dict()
    return fields


def removed_fields(config: Fields) -> list[str]:
    """The dotted names of a config's fields that this version does not have.

    Those of None, which stands for a default, and of an objective that it does not have are left
    out.
    """
    today = todays_fields(config)
    known = today if today[OBJECTIVE] else {**today, OBJECTIVE: config.get(OBJECTIVE)}
    return sorted(beyond(config, {**known, PLAYERS: config.get(PLAYERS)}))


def beyond(fields: Fields, known: Fields, prefix: str = "") -> list[str]:
    """The dotted names of fields that are not among the known ones and are not None."""
    found = []
    for name, value in fields.items():
        own = known.get(name)
        if isinstance(value, Mapping) and isinstance(own, Mapping):
            found += beyond(value, own, f"{prefix}{name}.")
        elif name not in known and value is not None:
            found.append(prefix + name)
    return found
