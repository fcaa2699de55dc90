"""Parts of nested dicts of arrays, as JAX codes keep parameters.

    {"train_state": {"params": {...}, "params_ema": {...}, "opt_state": ..., "step": ...}, ...}

A part is named by its keys, joined by "/", such as "train_state/params_ema"; its tensors by the
keys below that.
"""

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from fewstep.weights.checkpoints import Inert, in_words
from fewstep.weights.mapped import DESCRIPTION_LIMIT
from fewstep.weights.pickles import SHOWN, PickleError

SEPARATOR = "/"
DEEPEST = 16  # dicts in each other


def arrays_of_part(content: Any, part: str, array: type) -> dict[str, Any]:
    """The leaves of a part by name; "" is all of the content. array: type of the arrays.

    Raises ValueError if the part is missing, or holds anything besides arrays.
    """
    found = leaves(content)
    below = f"{part}{SEPARATOR}" if part else ""
    inside = {
        name.removeprefix(below): leaf for name, leaf in found.items() if name.startswith(below)
    }
    if not inside:
        raise ValueError(
            f"it has no part {part[:SHOWN]!r} of arrays; it has "
            f"{in_words(parts_among(found, array))}"
        )
    for name, leaf in inside.items():
        if not isinstance(leaf, array):
            what = leaf.name if isinstance(leaf, Inert) else type(leaf).__name__
            raise ValueError(f"it holds more than named arrays: {name} is {what}")
    return inside


def parts_of_arrays(content: Any, array: type) -> list[str]:
    """The outermost parts that hold arrays and nothing else. array: type of the arrays."""
    return parts_among(leaves(content), array)


def leaves(content: Any) -> dict[str, Any]:
    """What nested dicts hold, by the keys that lead to it, joined by "/".

    Raises PickleError for dicts that hold each other so often that reading them takes forever.
    """
    found: dict[str, Any] = {}
    pending, visited = [("", content)], 0
    while pending:
        name, value = pending.pop()
        if not isinstance(value, Mapping):
            found[name] = value
            continue
        visited += 1 + len(value)
        if visited > DESCRIPTION_LIMIT or name.count(SEPARATOR) > DEEPEST:
            raise PickleError("its dicts are too many or nested too deeply")
        below = [(f"{name}{SEPARATOR}{str(key)[:SHOWN]}", one) for key, one in value.items()]
        pending += [(path.removeprefix(SEPARATOR), one) for path, one in reversed(below)]
    return found


def parts_among(found: Mapping[str, Any], array: type) -> list[str]:
    """The shortest paths below which all leaves are arrays."""
    mixed = {
        path
        for name, leaf in found.items()
        if not isinstance(leaf, array)
        for path in accumulate(name.split(SEPARATOR), join)
    }
    pure = [
        next((path for path in accumulate(name.split(SEPARATOR), join) if path not in mixed), name)
        for name, leaf in found.items()
        if isinstance(leaf, array)
    ]
    return [part for part in dict.fromkeys(pure) if part not in found]


def join(path: str, key: str) -> str:
    """The path of a key below another path."""
    return f"{path}{SEPARATOR}{key}"
