"""Parts of messages: the nearest name, fields that differ, commands to type, times."""

import re
import shlex
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher, get_close_matches
from operator import ne
from typing import Any, NamedTuple

MINUTE, HOUR, DAY = 60, 3600, 86400  # in seconds
CUTOFF = 0.7  # least similarity of a guess, in [0, 1]
SHORTEST_PART = 2  # fewest letters that count as a part of another name


def nearest_name(name: str, names: Iterable[str]) -> str:
    """The one of `names` that is most similar to `name`; "" if none is.

    Ignores case. A name that begins with `name`, or has it as a word between underscores, is
    similar too.
    """
    by_lower = {other.lower(): other for other in map(str, names)}
    asked = str(name).lower()
    if len(asked) < SHORTEST_PART:
        return by_lower.get(asked, "")
    begun = [other for other in by_lower if other.startswith(asked)]
    parts = [other for other in by_lower if asked in re.split(r"[^a-z0-9]", other)]
    close = get_close_matches(asked, by_lower, n=1, cutoff=CUTOFF)
    close += [other for other in by_lower if is_slip(asked, other)]
    found = sorted(begun, key=len) or close or sorted(parts, key=len)
    return by_lower[found[0]] if found else ""


def is_slip(a: str, b: str) -> bool:
    """Whether two names of three or more letters differ in one letter, or in their order."""
    alike = sorted(a) == sorted(b) or sum(map(ne, a, b)) == 1
    return len(a) == len(b) > SHORTEST_PART and alike


def likeness(a: str, b: str) -> float:
    """Similarity of two names, in [0, 1]; at least CUTOFF if b begins with a."""
    alike = 1.0 if a == b else SequenceMatcher(None, a, b).ratio()
    return max(alike, CUTOFF) if len(a) >= SHORTEST_PART and b.startswith(a) else alike


def did_you_mean(name: str, form: str = "{!r}") -> str:
    """The end of a message: "; did you mean `name`?", or "" if `name` is "".

    form: how the name is written, such as "--{}".
    """
    return f"; did you mean {form.format(name)}?" if name else ""


def unknown_choice(field: str, value: object, names: Iterable[str]) -> str:
    """The error message for a field whose value is not one of `names`."""
    names = [*names]
    hint = did_you_mean(nearest_name(str(value), names))
    return f"{field}={value!r} is not one of {', '.join(names)}{hint}"


class Difference(NamedTuple):
    """A field and its values in two mappings; None if a mapping lacks the field."""

    field: str
    first: Any
    second: Any


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """The fields whose values differ, in the order of the first mapping, then the second.

    A missing field counts as None.
    """
    pairs = {field: (first.get(field), second.get(field)) for field in [*first, *second]}
    return [Difference(field, *pair) for field, pair in pairs.items() if pair[0] != pair[1]]


def common_differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """The `differences` in fields that both mappings have."""
    both = first.keys() & second.keys()
    return [found for found in differences(first, second) if found.field in both]


def shell_flags(mode: str, **flags: Any) -> str:
    """The flags of a command, quoted for a shell."""
    options = [f"--{name}={value}" for name, value in flags.items()]
    return shlex.join([f"--mode={mode}", *options])


def format_seconds(seconds: float) -> str:
    """A time in seconds, minutes, hours or days, whichever suits it."""
    for unit, name in ((DAY, "days"), (HOUR, "hours"), (MINUTE, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.1f} {name}"
    return f"{seconds:.1f} s"
