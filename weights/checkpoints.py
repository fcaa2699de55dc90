"""Reads one part of a training checkpoint, such as its "ema", without running its code.

    {"model": {...}, "ema": {...}, "opt": {...}, "args": argparse.Namespace(...)}

Beside its state dicts such a pickle has arguments, optimizer states and counters of any class. Here
each object that no tensor needs becomes an `Inert` one: a name, for messages. Nothing is called,
and no attribute is set. The part that is taken may have no inert object in it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from fewstep.weights.pickles import (
    SHOWN,
    Machine,
    PickleError,
    Slice,
    Storage,
    is_key,
    set_items,
)

# Instructions that push bytes or a set, and those that make an object of a class.
BYTES = ("BINBYTES", "SHORT_BINBYTES")
ARGUMENTS = {"NEWOBJ": 1, "NEWOBJ_EX": 2}
# In place of items whose keys are neither text nor small numbers.
OTHER_KEYS = "(other keys)"
MOST_NAMES = 8  # shown in a message


class Inert(NamedTuple):
    """In place of an object that no tensor needs. name: its class or function, for messages."""

    name: str


class CheckpointMachine(Machine):
    """A machine that puts inert objects in the place of all that no tensor needs."""

    def do(self, name: str, argument: Any) -> None:
        if name in BYTES:
            self.stack.append(Inert("bytes"))
        elif name == "EMPTY_SET":
            self.stack.append(Inert("a set"))
        elif name == "ADDITEMS":
            self.pop_marked()
        elif name == "FROZENSET":
            self.pop_marked()
            self.stack.append(Inert("a set"))
        elif name in ARGUMENTS:
            for _ in range(ARGUMENTS[name]):
                self.pop()
            self.stack.append(Inert(name_of(self.pop())))
        else:
            super().do(name, argument)

    def find(self, module: Any, name: Any) -> Any:
        try:
            return super().find(module, name)
        except PickleError:
            if not isinstance(module, str) or not isinstance(name, str):
                raise
            return Inert(f"{module[:SHOWN]}.{name[:SHOWN]}")

    def refer(self, description: Any) -> Storage | Inert:
        try:
            return super().refer(description)
        except PickleError:
            return Inert("a storage of another kind")

    def result(self, function: Any, arguments: Any) -> Any:
        """What a function of tensors returns; of any other call an inert object."""
        given = arguments if type(arguments) is tuple else (arguments,)
        if any(isinstance(one, Inert) for one in (function, *given)):
            return Inert(name_of(function))
        return super().result(function, arguments)

    def build(self) -> None:
        self.pop()
        if not isinstance(self.top(), Inert):
            self.container(dict)

    def container(self, kind: type) -> Any:
        """The list or dict on top; for an inert object an empty one, which is dropped."""
        return kind() if isinstance(self.top(), Inert) else super().container(kind)

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        set_known_items(self.container(dict), [key, value])

    def set_marked(self) -> None:
        values = self.pop_marked()
        set_known_items(self.container(dict), values)


def set_known_items(target: dict[Any, Any], items: list[Any]) -> None:
    """Add items to a dict; those with other keys become one inert value."""
    pairs = list(zip(items[::2], items[1::2], strict=True))
    known = [part for pair in pairs if is_key(pair[0]) for part in pair]
    set_items(target, known)
    if len(known) < len(items):
        target[OTHER_KEYS] = Inert("keys that are neither text nor small numbers")


def name_of(made_by: Any) -> str:
    """What an object is called that a class or function would make."""
    return made_by.name if isinstance(made_by, Inert) else "something that no tensor needs"


def take_part(described: Any, part: str) -> Any:
    """The part of a training checkpoint. Raises ValueError that names the parts it has."""
    names = part_names(described)
    if part not in names:
        raise ValueError(f"it has no part {part[:SHOWN]!r} of tensors; it has {in_words(names)}")
    return described[part]


def part_names(described: Any) -> list[str]:
    """The parts of a training checkpoint that have tensors by name."""
    if not isinstance(described, Mapping):
        return []
    return [
        name for name, value in described.items() if isinstance(name, str) and has_slices(value)
    ]


def has_slices(value: Any) -> bool:
    """Whether a value is a dict with a tensor."""
    return isinstance(value, Mapping) and any(isinstance(one, Slice) for one in value.values())


def check_inert(named: Mapping[Any, Any], part: str) -> None:
    """Raises ValueError that names an inert object in the part that was taken."""
    for value in named.values():
        if isinstance(value, Inert):
            raise ValueError(f"its part {part} asks for {value.name}, which no tensor needs")


def in_words(names: list[str]) -> str:
    """Names of parts for a message."""
    return ", ".join(name[:SHOWN] for name in names[:MOST_NAMES]) or "none"
