"""Names of classes: their order, and a class by its name."""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from fewstep.progress import note

SHOWN = 10  # names in a line
NEAREST = 3  # names that a message suggests
WHOLE = re.compile(r"-?\d+")


def sort_naturally(names: Iterable[str]) -> list[str]:
    """Names sorted with the numbers in them as numbers: "2" before "10", a2 before a10."""
    return sorted(names, key=natural_key)


def natural_key(name: str) -> tuple[list[str | int], str]:
    """What `sort_naturally` compares: texts and numbers in turn, at last the name itself."""
    parts = re.split("([0-9]+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def join_names(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    shown = [printable(name) for name in names[:SHOWN]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def printable(name: str) -> str:
    """A name on one line: characters that cannot be printed are escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def label_texts(labels: Iterable[int], names: Sequence[str]) -> list[str]:
    """Labels with the names of their classes: 0 (cat); the label alone where that is its name."""
    return [
        f"{label} ({printable(names[label])})"
        if 0 <= label < len(names) and names[label] != str(label)
        else str(label)
        for label in labels
    ]


def label_of(asked: int | str, names: Sequence[str], num_classes: int) -> int:
    """The label of a class asked for by its index or its name.

    A whole number is an index, also where a class is called by another number; name:3 is the class
    called "3", and so is 3 where no class has that index. Raises ValueError, with the nearest
    names.
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
            f"--labels={text} is the index {text}, whose class is called "
            f"{names[int(text)]!r}; --labels=name:{text} is the class called {text!r}"
        )
    return int(text)


def raise_unknown_class(asked: str, names: Sequence[str], num_classes: int) -> int:
    """Raises ValueError for a name that no class has."""
    if not names:
        raise ValueError(
            f"--labels={asked}: the record of this run has no names of classes; give numbers from "
            f"0 to {num_classes - 1}"
        )
    folded = {name.casefold(): name for name in names}
    nearest = [folded[name] for name in get_close_matches(asked.casefold(), folded, n=NEAREST)]
    meant = f"; did you mean {join_names(nearest)}?" if nearest else "."
    raise ValueError(f"--labels={asked} is no class{meant} The classes are {join_names(names)}")
