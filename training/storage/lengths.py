"""The lengths of a run that was continued with other `steps`.

A learning-rate schedule that ends at the last step must be told what to do if `steps` changes. The
record of the run keeps each answer, so that a resumed run computes the same rates.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fewstep.messages import Difference
from fewstep.training.storage.fields import CONTINUED, REFUSE, is_finite, is_int_or_float, is_whole
from fewstep.training.storage.reasons import STEPS, length_schedules

SCHEDULE, SCALE = "continued.schedule", "continued.scale"
EXTEND, HOLD = CONTINUED[1:3]
BEGUN = ""  # the schedule of the first length: the run's own


class Length(NamedTuple):
    """From training step `start` on, the run is one of `steps` steps.

    schedule: what the learning rate does then, one of CONTINUED, or BEGUN. scale: share of the
    learning rate that it holds or reaches again.
    """

    start: int
    steps: int
    schedule: str = BEGUN
    scale: float = 1.0


def is_length(value: Any) -> bool:
    """Whether a value is a `Length` as a record has it."""
    if not isinstance(value, list) or len(value) != len(Length._fields):
        return False
    start, steps, schedule, scale = value
    numbers = is_whole(start) and is_whole(steps) and is_int_or_float(scale) and is_finite(scale)
    return numbers and schedule in (BEGUN, *CONTINUED[1:])


def next_lengths(
    lengths: Sequence[Length], old: Mapping[str, Any], new: Mapping[str, Any], done: int
) -> list[Length]:
    """The lengths of a run that goes on with the fields `new` from step `done`.

    lengths, old: those that it was recorded with. A length that no step has followed is replaced.
    Raises ValueError for fields of `continued` that do not fit together.
    """
    how = new[SCHEDULE]
    if old[STEPS] == new[STEPS] or how == REFUSE or not length_schedules(old):
        return list(lengths)
    scale = continued_scale(new)
    if new[STEPS] <= done:
        raise ValueError(
            f"steps={new[STEPS]} is not above {done}, the step that the run has reached; raise it, "
            f"or leave {SCHEDULE} unset"
        )
    followed = [length for length in lengths if length.start < done]
    return [*(followed or [Length(0, old[STEPS])]), Length(done, new[STEPS], how, scale)]


def continued_scale(fields: Mapping[str, Any]) -> float:
    """The share of the learning rate that a continued run holds or reaches. Raises ValueError."""
    how, scale = fields[SCHEDULE], fields[SCALE]
    if how == HOLD and scale is None:
        raise ValueError(
            f"{SCHEDULE}={HOLD} needs {SCALE}, the share of optimizer.learning_rate to hold: the "
            "schedule itself ends at 0"
        )
    if how == EXTEND and scale is not None:
        raise ValueError(f"{SCALE} is not used by {SCHEDULE}={EXTEND}; leave it unset")
    return 1.0 if scale is None else float(scale)


def changed_continuation(
    lengths: Sequence[Length], old: Mapping[str, Any], new: Mapping[str, Any]
) -> list[Difference]:
    """The fields of `continued` that differ from how a run reached the length that it has."""
    if not lengths or old[STEPS] != new[STEPS] or new[SCHEDULE] == REFUSE:
        return []
    was = {SCHEDULE: lengths[-1].schedule, SCALE: lengths[-1].scale}
    return [
        Difference(name, value, new[name])
        for name, value in was.items()
        if new[name] not in (None, value)
    ]


def describe_lengths(lengths: Sequence[Length]) -> str:
    """The lengths in words, such as "3000 steps, then 6000 by rewarm to 0.5 from step 3000"."""
    first, *later = lengths
    parts = [f"{first.steps} steps"]
    for start, steps, schedule, scale in later:
        share = "" if schedule == EXTEND else f" ({scale:g} of the learning rate)"
        parts.append(f"from step {start} on {schedule}{share} up to {steps}")
    return ", ".join(parts)
