"""Reads a network from a pickle of whole PyTorch modules, without running its code.

    {"ema": EDMPrecond(...), "loss_fn": ..., "augment_pipe": ..., "dataset_kwargs": {...}}

EDM's files are such pickles. A module of theirs is a call of `_reconstruct_persistent_obj` with the
source code of its class, which PyTorch's own reader would run. Here a module is its class name and
its attributes; the source code is a text like any other. A tensor is a call of `_load_from_bytes`
with PyTorch's older format (weights/streams.py) as bytes, which are read as such. Whatever else a
pickle asks for becomes an `Inert` object. Nothing of the file is called.

Traps of the format, beside those of weights/pickles.py:
- Modules may contain each other, so each is visited once, and their nesting and names are limited.
- The bytes of tensors lie inside the pickle. They do not count as its description.
"""

import io
import mmap
import pickletools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from fewstep.weights.checkpoints import CheckpointMachine, Inert, in_words, name_of
from fewstep.weights.mapped import DESCRIPTION_LIMIT, check_description, cut, map_file
from fewstep.weights.pickles import SHOWN, Machine, PickleError, Slice, Storage
from fewstep.weights.streams import (
    STREAM_START,
    describe_stream,
    stream_storages,
    tensor_array,
)

PICKLE_START = b"\x80"
PART = "ema"  # in files of EDM, and the part that is meant unless another is named
# Functions that a pickle of modules calls: what makes a module, and the bytes of a storage.
MAKE_MODULE = ("torch_utils.persistence", "_reconstruct_persistent_obj")
LOAD_BYTES = ("torch.storage", "_load_from_bytes")
# Instructions that push bytes, and the length of the number before these that counts them.
BYTES = {"SHORT_BINBYTES": 1, "BINBYTES": 4, "BINBYTES8": 8}
TENSORS, PARTS = ("_parameters", "_buffers"), "_modules"  # attributes of a module
DEEPEST, LONGEST = 16, 100  # nesting of modules, and characters of a name in a module


class PickledModule(NamedTuple):
    """A module of a file.

    name: of its class. fields: its own attributes that are numbers or text. tensors: parameters and
    buffers of it and the modules inside it, named as in a state dict.
    """

    name: str
    fields: Mapping[str, Any]
    tensors: dict[str, np.ndarray]


class Span(NamedTuple):
    """Bytes of the file, where a pickle has them."""

    start: int
    length: int


class Object:
    """An object of a class: its name, and its attributes if the pickle gives any."""

    def __init__(self, name: str, state: Any = None) -> None:
        self.name, self.state = name, state


def holds_modules(path: str | Path) -> bool:
    """Whether a file is a pickle that names the function which makes modules."""
    with open(path, "rb") as file:
        start = file.read(len(STREAM_START))
        if not start.startswith(PICKLE_START) or start == STREAM_START:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(MAKE_MODULE[1].encode()) >= 0


def read_module(path: str | Path, part: str = "") -> PickledModule:
    """The module of a pickle; its arrays are views of a memory map of the file.

    part: its key in a pickled dict, "ema" if it is "". Raises ValueError that names the file if it
    is damaged or holds anything else.
    """
    with open(path, "rb") as file:
        try:
            content, machine = describe_modules(file)
            module = take_module(content, part or PART)
            return PickledModule(module.name, fields_of(module), machine.tensors(module))
        except Exception as error:  # as in `weights.tensors.read_tensors`
            raise ValueError(
                f"{path} cannot be read: {type(error).__name__}: {error}. If it is damaged or cut "
                "short, download it again"
            ) from error


def describe_modules(file: BinaryIO) -> tuple[Any, "ModuleMachine"]:
    """What a pickle describes, and the machine that has its bytes."""
    machine, in_tensors = ModuleMachine(map_file(file)), 0
    file.seek(0)
    for opcode, argument, position in pickletools.genops(file):
        check_description(position - in_tensors)
        if opcode.name == "STOP":
            return machine.pop(), machine
        if opcode.name in BYTES:
            machine.stack.append(Span(position + 1 + BYTES[opcode.name], len(argument)))
            in_tensors += len(argument)
        else:
            machine.do(opcode.name, argument)
    raise PickleError("it has no end")


class ModuleMachine(CheckpointMachine):
    """A machine that makes objects with attributes, and finds storages in the bytes of the file."""

    def __init__(self, data: np.ndarray) -> None:
        super().__init__()
        self.data, self.raw = data, {}

    def do(self, name: str, argument: Any) -> None:
        if name == "NEWOBJ":
            self.pop()
            self.stack.append(Object(name_of(self.pop())))
        else:
            super().do(name, argument)

    def find(self, module: Any, name: Any) -> Any:
        known = (module, name) in (MAKE_MODULE, LOAD_BYTES)
        return (module, name) if known else super().find(module, name)

    def result(self, function: Any, arguments: Any) -> Any:
        if function == MAKE_MODULE:
            return persistent_module(arguments)
        if function == LOAD_BYTES:
            return self.storage(arguments)
        return super().result(function, arguments)

    def storage(self, arguments: Any) -> Storage:
        """The storage that lies in the bytes of the file, under a key of its own."""
        if type(arguments) is not tuple or [type(one) for one in arguments] != [Span]:
            raise PickleError("it loads a storage from something other than bytes")
        span = arguments[0]
        data = cut(self.data, *span)
        described = describe_stream(io.BytesIO(data[:DESCRIPTION_LIMIT].tobytes()), Machine())
        inner = described.content
        if not isinstance(inner, Storage):
            raise PickleError("its bytes are no storage of a tensor")
        found = inner._replace(key=str(span.start))
        self.raw[found.key] = stream_storages(described, data)[inner.key]
        return found

    def build(self) -> None:
        state, last = self.pop(), self.top()
        if isinstance(last, Object):
            last.state = state
        elif not isinstance(last, Inert):
            self.container(dict)

    def container(self, kind: type) -> Any:
        return kind() if isinstance(self.top(), Object) else super().container(kind)

    def tensors(self, module: Object) -> dict[str, np.ndarray]:
        """The tensors of a module and of those inside it, by name."""
        return {
            name: tensor_array(piece, self.raw[piece.storage.key])
            for name, piece in named_pieces(module)
        }


def persistent_module(arguments: Any) -> Object:
    """The module that a call of MAKE_MODULE stands for; its source code is left as text."""
    described = arguments[0] if type(arguments) is tuple and len(arguments) == 1 else None
    if not isinstance(described, dict) or not isinstance(described.get("class_name"), str):
        raise PickleError("a module has no class name")
    return Object(described["class_name"][:SHOWN], described.get("state"))


def take_module(content: Any, part: str) -> Object:
    """The module under a key of a pickled dict. Raises PickleError that names those it has."""
    found = content if isinstance(content, dict) else {}
    modules = [name for name, one in found.items() if isinstance(one, Object) and is_module(one)]
    if part not in modules:
        raise PickleError(f"it has no module {part[:SHOWN]!r}; it has {in_words(modules)}")
    return found[part]


def is_module(one: Object) -> bool:
    """Whether an object has the attributes of a PyTorch module."""
    names = (*TENSORS, PARTS)
    state = one.state
    return isinstance(state, dict) and all(isinstance(state.get(name), dict) for name in names)


def fields_of(module: Object) -> dict[str, Any]:
    """The attributes of a module that are numbers or text."""
    plain = (bool, int, float, str)
    return {name: value for name, value in module.state.items() if type(value) in plain}


def named_pieces(module: Object) -> Iterator[tuple[str, Slice]]:
    """The slices of a module and of those inside it, by name. Raises PickleError for others."""
    waiting, seen = [("", 0, module)], set()
    while waiting:
        prefix, depth, one = waiting.pop()
        if not isinstance(one, Object) or not is_module(one) or id(one) in seen or depth > DEEPEST:
            raise PickleError(f"{prefix[:-1] or 'it'} is no module of its own")
        seen.add(id(one))
        for kind in TENSORS:
            for name, value in named_values(one.state[kind]):
                if not isinstance(value, Slice):
                    raise PickleError(f"{prefix}{name} is no tensor")
                yield f"{prefix}{name}", value
        inner = named_values(one.state[PARTS])
        waiting.extend((f"{prefix}{name}.", depth + 1, value) for name, value in inner)


def named_values(values: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    """The values of a dict that are not None. Raises PickleError if a key is no short text."""
    for name, value in values.items():
        if not isinstance(name, str) or len(name) > LONGEST:
            raise PickleError("a module has a part whose name is no short text")
        if value is not None:
            yield name, value
