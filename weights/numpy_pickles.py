"""Reads a pickle of nested dicts of NumPy arrays, as JAX codes save parameters, without running it.

    {"train_state": {"params": {...}, "params_ema": {...}, "opt_state": ..., "step": ...}, ...}

A part is named by its keys, joined by "/", such as "train_state/params_ema"; its tensors by the
keys below that. Beside the part, all that no tensor needs becomes an inert object, as in
weights/checkpoints.py. Arrays are views of a memory map: of their bytes, the machine keeps only
where they lie.

Traps of the format:
- NumPy 1 and 2 name the function that makes an array differently. Protocol 5 uses another one.
- An array is made empty, and gets its shape, type and bytes afterwards, by BUILD.
- The bytes of an array with Fortran order are those of its transpose.
"""

import math
import pickletools
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from fewstep.weights.checkpoints import CheckpointMachine, Inert
from fewstep.weights.mapped import DESCRIPTION_LIMIT, array_of, cut, map_file
from fewstep.weights.nested import arrays_of_part, parts_of_arrays
from fewstep.weights.pickles import SHOWN, PickleError, is_shape

# The start of a pickle of a protocol since Python 3.4.
STARTS = (b"\x80\x04", b"\x80\x05")
# How many bytes of length follow the instruction that pushes bytes.
LENGTHS = {"SHORT_BINBYTES": 1, "BINBYTES": 4, "BINBYTES8": 8, "BYTEARRAY8": 8}
MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
FROZEN_DICT = ("flax.core.frozen_dict", "FrozenDict")
KINDS = {"f2": "float16", "f4": "float32", "f8": "float64", "i4": "int32", "i8": "int64"}
ORDERS = "<=|"


def is_pickle(start: bytes) -> bool:
    """Whether a file that starts with these 9 bytes is such a pickle.

    The length at the start of safetensors may begin alike, but its header follows.
    """
    return start.startswith(STARTS) and start[8:9] != b"{"


class Span(NamedTuple):
    """Bytes of the file."""

    start: int
    length: int


class Maker(NamedTuple):
    """A function or type of NumPy or Flax that the pickle may ask for, by its own name."""

    name: str


class Type:
    """An element type; its byte order comes after it."""

    def __init__(self, kind: str) -> None:
        self.kind, self.order = kind, "<"


class Stored:
    """An array: its shape, type and bytes, which come after it."""

    def __init__(self, state: tuple[Any, ...] = ()) -> None:
        self.state = state


GLOBALS = {
    **{(module, "_reconstruct"): Maker("empty array") for module in MULTIARRAY},
    **{(module, "_frombuffer"): Maker("array") for module in NUMERIC},
    ("numpy", "ndarray"): Maker("array type"),
    ("numpy", "dtype"): Maker("element type"),
    FROZEN_DICT: Maker("dict"),
}


class ArrayMachine(CheckpointMachine):
    """A machine that knows NumPy's arrays, and puts inert objects in the place of all else."""

    def find(self, module: Any, name: Any) -> Any:
        known = isinstance(module, str) and isinstance(name, str) and GLOBALS.get((module, name))
        return known or super().find(module, name)

    def result(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Maker) or type(arguments) is not tuple:
            return super().result(function, arguments)
        match function.name, arguments:
            case "empty array", (_, _, _):
                return Stored()
            case "array", (Span() as raw, Type() as kind, tuple() as shape, str() as order):
                return Stored((1, shape, kind, order == "F", raw))
            case "element type", (str() as kind, *_):
                return Type(kind) if kind in KINDS else Inert(f"an array of {kind[:SHOWN]}")
            case "dict", (dict() as content,):
                return content
        return Inert(f"{function.name} of something else")

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if isinstance(target, Stored):
            target.state = state if type(state) is tuple else ()
        elif isinstance(target, Type):
            target.order = state[1] if type(state) is tuple and len(state) > 1 else ""
        elif not isinstance(target, Inert):
            self.container(dict)


def read_pickled_arrays(file: BinaryIO, part: str) -> dict[str, np.ndarray]:
    """The arrays of a part by name; "" is the whole file, which must then be arrays alone.

    Raises ValueError if the part is missing, or holds anything besides named arrays.
    """
    inside = arrays_of_part(describe(file), part, Stored)
    data = map_file(file)
    return {name: stored_array(name, leaf, data) for name, leaf in inside.items()}


def array_parts(file: BinaryIO) -> list[str]:
    """The outermost parts of a file that hold arrays and nothing else."""
    return parts_of_arrays(describe(file), Stored)


def describe(file: BinaryIO) -> Any:
    """What the pickle describes. Raises PickleError."""
    machine = ArrayMachine()
    for count, (opcode, argument, position) in enumerate(pickletools.genops(file)):
        if opcode.name == "STOP":
            return machine.pop()
        if count > DESCRIPTION_LIMIT:
            raise PickleError(f"it has more than {DESCRIPTION_LIMIT} instructions")
        if opcode.name in LENGTHS:
            machine.stack.append(Span(position + 1 + LENGTHS[opcode.name], len(argument)))
        else:
            machine.do(opcode.name, argument)
    raise PickleError("it has no end")


def stored_array(name: str, stored: Stored, data: np.ndarray) -> np.ndarray:
    """The array of a description. Raises ValueError unless its bytes are in the file."""
    match stored.state:
        case (_, tuple() as shape, Type() as kind, bool() as transposed, Span() as raw) if (
            is_shape(shape) and kind.order in ORDERS
        ):
            dtype = np.dtype(KINDS[kind.kind])
            if raw.length == math.prod(shape) * dtype.itemsize:
                piece = cut(data, raw.start, raw.length)
                array = array_of(piece, dtype, shape[::-1] if transposed else shape)
                return array.T if transposed else array
    raise ValueError(f"{name} has a shape, a type or bytes that are not those of an array")
