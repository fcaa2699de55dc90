"""Floating-point operations of a compiled program, those of a loop at every turn.

XLA's own count has the body of a loop once, however often it turns. This one reads the matrix
products from the program's text, after all that XLA removes and merges, as for CPUs, where products
stay visible. They are nearly all that a transformer computes; what is done to single elements, and
convolutions, are not counted.
"""

import functools
import math
import re
from collections.abc import Mapping

from fewstep.training.cost.compiled import Instruction, called, operands, parsed, trip_count


def product_flops(hlo_text: str) -> int:
    """FLOPs of the matrix products of `compiled.as_text()`, in one run on one device.

    Of exclusive branches the one with most counts. Raises ValueError for products in a loop whose
    length XLA does not know.
    """
    entry, computations = parsed(hlo_text)

    @functools.cache
    def inside(name: str) -> int:
        shapes = {instruction.name: instruction.shape for instruction in computations[name]}
        return sum(of(instruction, shapes) for instruction in computations[name])

    def of(instruction: Instruction, shapes: Mapping[str, str]) -> int:
        opcode, rest = instruction.opcode, instruction.rest
        if opcode == "dot":
            return dot_flops(instruction, shapes)
        if opcode == "while":
            return turns(rest, sum(map(inside, called(rest, "body"))))
        if opcode == "conditional":
            branches = called(rest, "branch_computations", "true_computation", "false_computation")
            return max(map(inside, branches))
        if opcode.endswith(("-done", "-update")):
            return 0
        return sum(map(inside, called(rest, "calls", "to_apply", "called_computations")))

    return inside(entry)


def turns(rest: str, flops: int) -> int:
    """The FLOPs of all turns of a loop, from those of one."""
    count = trip_count(rest)
    if count is None and flops:
        raise ValueError("a loop of unknown length has products, so that they cannot be counted")
    return (count or 0) * flops


def dot_flops(instruction: Instruction, shapes: Mapping[str, str]) -> int:
    """A product and a sum for every element of the output and of the contracted axes."""
    left = dimensions(shapes[operands(instruction.rest)[0]])
    axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)
    contracted = [left[int(axis)] for axis in (axes[1] if axes else "").split(",") if axis]
    return 2 * math.prod(dimensions(instruction.shape)) * math.prod(contracted)


def dimensions(shape: str) -> list[int]:
    """The sizes in f32[2,3]{1,0}."""
    return [int(size) for size in re.search(r"\[([\d,]*)\]", shape)[1].split(",") if size]
