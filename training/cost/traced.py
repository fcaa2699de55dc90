"""Memory of a program, estimated from its trace, before XLA compiles it.

XLA keeps in memory what products, reductions, sorts and loops read and make. It fuses what lies
between them, elementwise arithmetic and changes of layout, into the operation that reads it. The
estimate does the same: it keeps an array if it comes from an operation that is not fused, if such
an operation reads it, or if several operations read it. A kept array is in memory from the
operation that makes it to the last one that reads it, directly or through fused arrays.
docs/planning.md compares the estimate with XLA's own figures.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var

LOOPS = ("scan", "while", "cond")
CALLED = ("jaxpr", "call_jaxpr")  # parameters of an operation that hold the program it calls
# Operations that only rename an array.
SAME = ("copy", "copy_p", "expand_dims", "optimization_barrier", "reshape", "sharding_constraint")
SAME += ("squeeze",)
# Beginnings of names of operations that XLA does not fuse: they need what they read in memory, or
# read fused arrays while these are computed.
MEMORY = (*LOOPS, "conv_", "dot_", "dynamic_update_slice", "gather", "scatter", "sort", "top_k")
REDUCTIONS = ("arg", "cum", "random_bits", "reduce_")


class Operation(NamedTuple):
    """One operation. Arrays go by number. inside: bytes that a loop needs beside its results."""

    name: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    inside: int = 0

    @property
    def is_fused(self) -> bool:
        """Whether XLA fuses it into the operations that read its result."""
        return not self.name.startswith((*MEMORY, *REDUCTIONS))

    @property
    def reads_memory(self) -> bool:
        """Whether what it reads must be in memory."""
        return self.name.startswith(MEMORY)


class Program:
    """A program without calls: functions, and parts to recompute, stand where they are called.

    sizes: bytes of each array. results: numbers of its results.
    """

    def __init__(self, jaxpr: Jaxpr, least_itemsize: int) -> None:
        self.least_itemsize = least_itemsize
        self.numbers: dict[Var, int] = {}
        self.sizes: list[int] = []
        self.operations: list[Operation] = []
        self.add(jaxpr)
        self.results = {*map(self.number, jaxpr.outvars)}

    def number(self, atom: Var | Literal) -> int:
        """The number of an array, a new one if it has none."""
        if isinstance(atom, Var) and atom in self.numbers:
            return self.numbers[atom]
        self.sizes.append(0 if isinstance(atom, Literal) else self.bytes_of(atom.aval))
        if isinstance(atom, Var):
            self.numbers[atom] = len(self.sizes) - 1
        return len(self.sizes) - 1

    def bytes_of(self, aval: Any) -> int:
        """Bytes of an array; 0 for what is no array of numbers."""
        itemsize = getattr(getattr(aval, "dtype", None), "itemsize", 0)
        if itemsize and itemsize < self.least_itemsize and aval.dtype.name.startswith("bfloat"):
            itemsize = self.least_itemsize
        return aval.size * itemsize if itemsize else 0

    def add(self, jaxpr: Jaxpr) -> None:
        """Add the operations of a program whose arguments have numbers."""
        for equation in jaxpr.eqns:
            name, reads = equation.primitive.name, tuple(map(self.number, equation.invars))
            called = next(programs_in(map(equation.params.get, CALLED)), None)
            # Kernels and reductions have programs of other arguments, for parts of an array.
            if called and name not in LOOPS and len(called.invars) == len(reads):
                self.call(called, reads, equation.outvars)
            elif name in SAME:
                self.numbers.update(zip(equation.outvars, reads, strict=True))
            else:
                inner = programs_in(equation.params.values()) if name in LOOPS else ()
                inside = [temporary_bytes(own, self.least_itemsize) for own in inner]
                writes = tuple(map(self.number, equation.outvars))
                self.operations.append(Operation(name, reads, writes, max(inside, default=0)))

    def call(self, jaxpr: Jaxpr, reads: Sequence[int], outvars: Sequence[Var]) -> None:
        """Add the operations of a called program, as new ones in every call."""
        outer, self.numbers = self.numbers, dict(zip(jaxpr.invars, reads, strict=True))
        self.add(jaxpr)
        results = [self.number(atom) for atom in jaxpr.outvars]
        self.numbers = outer
        self.numbers.update(zip(outvars, results, strict=True))


def programs_in(parameters: Iterable[Any]) -> Iterator[Jaxpr]:
    """The programs in the parameters of an equation."""
    for value in parameters:
        if isinstance(value, Jaxpr | ClosedJaxpr):
            yield getattr(value, "jaxpr", value)
        elif isinstance(value, tuple | list):
            yield from programs_in(value)


def temporary_bytes(jaxpr: Jaxpr, least_itemsize: int = 1) -> int:
    """The most bytes in memory at a time, beside the arguments and the results of a program.

    least_itemsize: bytes of a number in bfloat16, at least; 4 where XLA computes it in float32.
    """
    program = Program(jaxpr, least_itemsize)
    operations = used_operations(program)
    sources = kept_sources(program, operations)
    last: dict[int, int] = {}
    for index, operation in enumerate(operations):
        if any(array in sources[array] for array in operation.writes):
            last |= {kept: index for array in operation.reads for kept in sources[array]}
    live, peak, freed = 0, 0, Counter()
    for index, operation in enumerate(operations):
        for array in operation.writes:
            if array in sources[array] and array not in program.results:
                live += program.sizes[array]
                freed[last.get(array, index)] += program.sizes[array]
        peak = max(peak, live + operation.inside)
        live -= freed[index]
    return peak


def used_operations(program: Program) -> list[Operation]:
    """The operations that the results depend on."""
    needed, used = {*program.results}, []
    for operation in reversed(program.operations):
        if needed.intersection(operation.writes):
            needed.update(operation.reads)
            used.append(operation)
    return used[::-1]


def kept_sources(program: Program, operations: Sequence[Operation]) -> dict[int, frozenset[int]]:
    """By array, the kept arrays that it is computed from; a kept array is computed from itself."""
    readers = Counter(array for operation in operations for array in {*operation.reads})
    in_memory = {a for operation in operations if operation.reads_memory for a in operation.reads}
    in_memory |= program.results
    # Arguments and constants are computed from nothing: they do not count.
    sources: dict[int, frozenset[int]] = defaultdict(frozenset)
    for operation in operations:
        read = frozenset().union(*(sources[array] for array in operation.reads))
        for array in operation.writes:
            kept = not operation.is_fused or array in in_memory or readers[array] > 1
            sources[array] = frozenset([array]) if kept else read
    return sources
