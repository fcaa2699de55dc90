"""What every error message builds alike: nearest names, fields that differ, commands to type."""

import shlex
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher, get_close_matches
from typing import Any, NamedTuple

CUTOFF = 0.6  # likeness in [0, 1] below which a name is no guess but nonsense
SHORTEST_PART = 2  # letters that a name needs to be taken for a part of another


def nearest(name: str, names: Iterable[str]) -> str:
    """The one of `names` that `name` resembles most, or is a part of; "" if none is near.

    Upper and lower case are the same.
    """
    by_lower = {other.lower(): other for other in map(str, names)}
    asked = str(name).lower()
    close = get_close_matches(asked, by_lower, n=1, cutoff=CUTOFF)
    if not close and len(asked) >= SHORTEST_PART:
        close = sorted((other for other in by_lower if asked in other), key=len)
    return by_lower[close[0]] if close else ""


def likeness(a: str, b: str) -> float:
    """How much two names resemble each other, in [0, 1]."""
    return 1.0 if a == b else SequenceMatcher(None, a, b).ratio()


def guess(name: str, form: str = "{!r}") -> str:
    """The end of a message that asks whether `name` was meant; "" for "".

    form: of the name, such as "--{}".
    """
    return f"; did you mean {form.format(name)}?" if name else ""


def no_choice(field: str, value: object, names: Iterable[str]) -> str:
    """The message that a field has a value that is none of `names`."""
    names = [*names]
    return f"{field}={value!r} is not one of {', '.join(names)}{guess(nearest(str(value), names))}"


class Difference(NamedTuple):
    """A field and its values in two mappings, None in one that lacks it."""

    field: str
    first: Any
    second: Any


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """The fields in which two mappings differ, in the order of the first, then of the second.

    A field that is absent counts as None.
    """
    pairs = {field: (first.get(field), second.get(field)) for field in [*first, *second]}
    return [Difference(field, *pair) for field, pair in pairs.items() if pair[0] != pair[1]]


def common_differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """Those of `differences` whose fields both mappings have."""
    both = first.keys() & second.keys()
    return [found for found in differences(first, second) if found.field in both]


def command(mode: str, **flags: Any) -> str:
    """The flags of a command as a shell takes them: paths with spaces are quoted."""
    options = [f"--{name}={value}" for name, value in flags.items()]
    return shlex.join([f"--mode={mode}", *options])
