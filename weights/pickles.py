"""Reads the pickle of a PyTorch state dict as a description of tensors, without running its code.

A pickle is a program for a stack machine that may call any function. Here a machine with only the
instructions of a state dict interprets it. The machine makes containers, text and numbers, calls
only the functions below, and sets no attributes.

A training checkpoint has more beside its state dicts: arguments, an optimizer's state, counters. To
read one part of it, the machine can put an `Inert` object in the place of whatever else the pickle
asks for. An inert object has a name for messages and nothing else; it is never called.

Traps of the format:
- Containers can nest by reference thousands of times. Such a pickle is small, but hashing, printing
  or comparing it takes exponential time, and copying it fills the memory. So keys must be text or
  small numbers, copies are short, and errors print only values that were checked.
- Every byte may create a container, so the number of bytes is limited.
"""

import pickletools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

# PyTorch's storage classes, each of one element type.
STORAGES: dict[str, Any] = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
STORAGE_MODULES = ("torch", "torch.cuda")
LARGEST_SIZE, MOST_AXES = 2**62, 32  # NumPy's limits
LARGEST_KEY = 2**16  # larger numbers can be chosen to collide in a hash table
SHOWN = 80  # characters of the file's own text in an error

VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
# Instructions that push their argument, a number or text.
LITERALS = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"),
)
# Instructions that fill a container: methods of Machine.
FILLING = {
    "APPEND": "append",
    "APPENDS": "extend",
    "SETITEM": "set_item",
    "SETITEMS": "set_marked",
}
NEW = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
PUT = ("BINPUT", "LONG_BINPUT")
GET = ("BINGET", "LONG_BINGET")
IGNORED = ("PROTO", "FRAME")


class PickleError(ValueError):
    """A pickle describes something other than tensors."""


class Storage(NamedTuple):
    """Elements that tensors may share: their type, name in the file, and number."""

    dtype: str
    key: str
    size: int


class Slice(NamedTuple):
    """A tensor as a pickle describes it; offset and strides count elements of the storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def ordered_dict(*items: Any) -> dict[Any, Any]:
    """A dict of the pairs that Python 2 passes as a list; the list is emptied, not copied."""
    made: dict[Any, Any] = {}
    for pairs in items:
        if type(pairs) is not list:
            raise PickleError("it makes a dict from something other than a list")
        set_items(made, [part for key, value in pairs for part in (key, value)])
        pairs.clear()
    return made


def rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Slice:
    shapes = type(shape) is type(strides) is tuple and is_shape(shape) and is_shape(strides)
    if not isinstance(storage, Storage) or not is_size(offset) or not shapes:
        raise PickleError("a tensor has an offset, shape or strides that are not sizes")
    return Slice(storage, offset, shape, strides)


def rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


GLOBALS: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): ordered_dict,
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
}


def read_description(file: BinaryIO, machine: "Machine | None" = None) -> Any:
    """What the pickle at the file's position describes; leaves the position at the pickle's end.

    machine: interprets it; by default one that makes state dicts only. Raises ValueError, or a
    container's own exception, if the pickle is damaged or describes anything else.
    """
    machine = machine or Machine()
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "STOP":
            return machine.pop()
        machine.do(opcode.name, argument)
    raise PickleError("it has no end")


class Machine:
    """The stack, its length at each mark, the memo, and the storages that tensors refer to."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def do(self, name: str, argument: Any) -> None:
        """Run one instruction. Raises PickleError for one that no tensor needs."""
        push = self.stack.append
        if name in LITERALS:
            push(argument)
        elif name in VALUES:
            push(VALUES[name])
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name in NEW:
            push(NEW[name]())
        elif name in TUPLES:
            push(tuple(self.pop() for _ in range(TUPLES[name]))[::-1])
        elif name == "TUPLE":
            push(tuple(self.pop_marked()))
        elif name in PUT:
            self.memo[argument] = self.top()
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.top()
        elif name in GET:
            push(self.memo[argument])
        elif name in FILLING:
            getattr(self, FILLING[name])()
        elif name == "GLOBAL":
            push(self.find(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            function, module = self.pop(), self.pop()
            push(self.find(module, function))
        elif name == "BINPERSID":
            push(self.refer(self.pop()))
        elif name == "REDUCE":
            self.call()
        elif name == "BUILD":
            self.build()
        elif name not in IGNORED:
            raise PickleError(f"it uses {name}, which no tensor needs")

    def find(self, module: Any, name: Any) -> Any:
        """The function or type of a name. Raises PickleError if no tensor needs it."""
        return find_global(module, name)

    def refer(self, description: Any) -> Any:
        """The storage that a reference describes. Raises PickleError for anything else."""
        storage = parse_storage(description)
        self.storages[storage.key] = storage
        return storage

    def top(self) -> Any:
        """The top of the stack, above the last mark."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise PickleError("it takes a value from an empty stack")
        return self.stack[-1]

    def pop(self) -> Any:
        """Remove and return the top of the stack."""
        self.top()
        return self.stack.pop()

    def pop_marked(self) -> list[Any]:
        """Remove and return all values above the last mark, and the mark."""
        if not self.marks:
            raise PickleError("it ends a group that has no start")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def container(self, kind: type) -> Any:
        """The list or dict on top. Raises PickleError for anything else."""
        last = self.top()
        if type(last) is not kind:
            raise PickleError(f"it adds items to a {type(last).__name__}")
        return last

    def append(self) -> None:
        value = self.pop()
        self.container(list).append(value)

    def extend(self) -> None:
        values = self.pop_marked()
        self.container(list).extend(values)

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        set_items(self.container(dict), [key, value])

    def set_marked(self) -> None:
        values = self.pop_marked()
        set_items(self.container(dict), values)

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        self.stack.append(self.result(function, arguments))

    def result(self, function: Any, arguments: Any) -> Any:
        """What one of GLOBALS returns. Raises PickleError for any other function."""
        if type(arguments) is not tuple or not any(function is own for own in GLOBALS.values()):
            raise PickleError("it calls something that is not a function of tensors")
        return function(*arguments)

    def build(self) -> None:
        """Drop the attributes of a dict; state dicts have `_metadata`."""
        self.pop()
        self.container(dict)


def set_items(target: dict[Any, Any], items: list[Any]) -> None:
    """Add alternating keys and values to a dict. Raises PickleError for keys of other types."""
    if len(items) % 2 or not all(map(is_key, items[::2])):
        raise PickleError("it has a dict whose keys are neither text nor small numbers")
    target.update(zip(items[::2], items[1::2], strict=True))


def find_global(module: Any, name: Any) -> Any:
    """The function or type that a name stands for. Raises PickleError if no tensor needs it."""
    if not isinstance(module, str) or not isinstance(name, str):
        raise PickleError("it asks for a function whose name is not text")
    if module in STORAGE_MODULES and name in STORAGES:
        return STORAGES[name]
    if (module, name) not in GLOBALS:
        raise PickleError(f"it asks for {module[:SHOWN]}.{name[:SHOWN]}, which no tensor needs")
    return GLOBALS[module, name]


def parse_storage(description: Any) -> Storage:
    """The storage of a tensor. Raises PickleError for a view of a part of one."""
    if type(description) is tuple and len(description) in (5, 6):
        kind, dtype, key, _, size, *view = description
        whole = kind == "storage" and all(part is None for part in view)
        texts = isinstance(dtype, str) and isinstance(key, str)
        if whole and texts and dtype in STORAGES.values() and is_size(size):
            return Storage(dtype, key, size)
    raise PickleError("it refers to something that is not a whole storage of numbers")


def is_key(value: Any) -> bool:
    """Whether a value is text or a small number."""
    return isinstance(value, str) or (type(value) is int and 0 <= value <= LARGEST_KEY)


def is_size(value: Any) -> bool:
    """Whether a value is a number of elements."""
    return type(value) is int and 0 <= value <= LARGEST_SIZE


def is_shape(values: Sequence[Any]) -> bool:
    """Whether values are sizes or strides of a tensor."""
    return len(values) <= MOST_AXES and all(map(is_size, values))
