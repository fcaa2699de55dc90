"""Class names: their order, and labels by name."""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from fewstep.progress import note

SHOWN = 10  # most names in a line
NEAREST = 3  # most names that a message suggests
WHOLE = re.compile(r"-?\d+")


def sort_naturally(names: Iterable[str]) -> list[str]:
    """Names in natural order, by the numbers in them: "2" before "10", a2 before a10."""
    return sorted(names, key=natural_key)


def natural_key(name: str) -> tuple[list[str | int], str]:
    """The sort key of a name: its text and numbers in turn, then the name itself."""
    parts = re.split("([0-9]+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def join_names(names: Sequence[str]) -> str:
    """The first names in one line, and how many more there are."""
    shown = [printable(name) for name in names[:SHOWN]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def printable(name: str) -> str:
    """A name with unprintable characters escaped, so that it stays on one line."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def label_texts(labels: Iterable[int], names: Sequence[str]) -> list[str]:
    """Labels with class names, such as "0 (cat)"; only the label where it is also the name."""
    return [
        f"{label} ({printable(names[label])})"
        if 0 <= label < len(names) and names[label] != str(label)
        else str(label)
        for label in labels
    ]


def label_of(asked: int | str, names: Sequence[str], num_classes: int) -> int:
    """The label of a class, by its index or name.

    A whole number is an index, even if another class has that name. name:3 is the class named "3";
    so is 3 if no class has that index. Raises ValueError with the nearest names.
    """
    text = str(asked)
    if text.startswith("name:"):
        return (
            names.index(text[5:])
            if text[5:] in names
            else raise_unknown_class(text[5:], names, num_classes)
        )
    if text in names and not (isinstance(asked, int) and 0 <= asked < num_classes):
        return names.index(text)
    stripped = {name.strip(): label for label, name in enumerate(names)}
    if not WHOLE.fullmatch(text):
        return stripped[text] if text in stripped else raise_unknown_class(text, names, num_classes)
    if not 0 <= int(text) < num_classes:
        raise ValueError(
            f"--labels={text} is out of range; this model has 0 to {num_classes - 1}"
            + (f": {join_names(names)}" if names else "")
        )
    if text in names and names.index(text) != int(text):
        note(
            f"--labels={text} is the index {text}, the class named {names[int(text)]!r}; "
            f"--labels=name:{text} is the class named {text!r}"
        )
    return int(text)


def raise_unknown_class(asked: str, names: Sequence[str], num_classes: int) -> int:
    """Raises ValueError for a name that no class has."""
    if not names:
        raise ValueError(
            f"--labels={asked}: the record of this run has no class names; give numbers from 0 to "
            f"{num_classes - 1}"
        )
    folded = {name.casefold(): name for name in names}
    nearest = [folded[name] for name in get_close_matches(asked.casefold(), folded, n=NEAREST)]
    meant = f"; did you mean {join_names(nearest)}?" if nearest else "."
    raise ValueError(f"--labels={asked} is not a class{meant} The classes are {join_names(names)}")
