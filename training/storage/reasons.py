"""Why fields of a run stay as they are when it goes on, in words for a refusal."""

from collections.abc import Mapping, Sequence
from typing import Any

from fewstep.messages import Difference
from fewstep.objectives import OBJECTIVES
from fewstep.parts import open_lengths
from fewstep.training.storage.fields import PLAYERS

Fields = Mapping[str, Any]  # by dotted name
STEPS = "steps"
# Prefixes of fields -> why a run keeps their values; the first that fits counts.
WHY = {
    "seed": "parameters, batches and noise are drawn by it",
    **dict.fromkeys(
        ("batch_size", "micro_batches"), "the noise and the data of a step depend on it"
    ),
    **dict.fromkeys(("method", "objective."), "it would minimise another loss"),
    **dict.fromkeys(("optimizer.", PLAYERS), "every update so far depends on it"),
    **dict.fromkeys(
        ("teacher", "start_from_teacher", "pairs."), "it has learned from that teacher"
    ),
    **dict.fromkeys(("data.", "codec."), "it would learn from other data"),
    "model.": "its parameters are those of that network",
    **dict.fromkeys(
        ("path.", "prediction."), "the output of its network would mean something else"
    ),
    "ema.": "its averages depend on it",
    "": "its steps so far depend on it",
}
# Fields that decide what the output of a network means, so that no other run can start from it.
MEANING = ("path.", "prediction.", "codec.", "model.name", "model.time_scale", "model.scan")
# These, and fields that decide the shapes of nearly all parameters.
FOREIGN = (*MEANING, "model.size", "model.width")


def explain_changes(changes: Sequence[Difference], fields: Fields) -> str:
    """Why a run keeps these fields, in a sentence. fields: all those of the run."""
    by_reason: dict[str, list[str]] = {}
    for name in sorted(change.field for change in changes):
        reason = " and ".join(length_reasons(fields)) if name == STEPS else reason_of(name)
        by_reason.setdefault(reason, []).append(name)
    kept = [f"{', '.join(names)}, since {reason}" for reason, names in by_reason.items()]
    return f"It keeps {'; '.join(kept)}"


def reason_of(name: str) -> str:
    """Why a run keeps the value of a field."""
    return next(reason for prefix, reason in WHY.items() if name.startswith(prefix))


def length_reasons(fields: Fields) -> list[str]:
    """What of a run depends on its number of steps, in words; [] if nothing does."""
    schedules = [f"the {name} schedule depends on steps" for name in length_schedules(fields)]
    return schedules + [f"{name} is the number of steps" for name in lengths_left_open(fields)]


def length_schedules(fields: Fields) -> list[str]:
    """The learning-rate schedules of a run that end at its last step."""
    named = [fields.get("optimizer.schedule")] + [
        value
        for name, value in fields.items()
        if name.startswith(f"{PLAYERS}.") and name.endswith(".schedule")
    ]
    return [name for name in dict.fromkeys(named) if name != "constant"]


def lengths_left_open(fields: Fields) -> list[str]:
    """The fields of the objective and its parts that stand for the length of the run."""
    objective = OBJECTIVES.get(fields.get("objective.name", ""))
    return list(open_lengths(objective, fields, "objective")) if objective else []
