"""Floating-point operations of a compiled program, with every iteration of a loop.

XLA's own count has the body of a loop only once. This one reads the matrix products from the text
of the optimized program, which must be compiled for CPUs, where products stay visible. They are
nearly all that a transformer computes; elementwise operations and convolutions are not counted.
"""

import functools
import math
import re
from collections.abc import Mapping

from fewstep.training.cost.compiled import (
    Instruction,
    callees,
    operand_names,
    parse_hlo,
    trip_count,
)


def product_flops(hlo_text: str) -> int:
    """FLOPs of the matrix products in `compiled.as_text()`, for one run on one device.

    A conditional counts as its most expensive branch. Raises ValueError for products in a loop
    whose trip count XLA does not know.
    """
    entry, computations = parse_hlo(hlo_text)

    @functools.cache
    def inside(name: str) -> int:
        shapes = {instruction.name: instruction.shape for instruction in computations[name]}
        return sum(of(instruction, shapes) for instruction in computations[name])

    def of(instruction: Instruction, shapes: Mapping[str, str]) -> int:
        opcode, rest = instruction.opcode, instruction.rest
        if opcode == "dot":
            return dot_flops(instruction, shapes)
        if opcode == "while":
            return loop_flops(rest, sum(map(inside, callees(rest, "body"))))
        if opcode == "conditional":
            branches = callees(rest, "branch_computations", "true_computation", "false_computation")
            return max(map(inside, branches))
        if opcode.endswith(("-done", "-update")):
            return 0
        return sum(map(inside, callees(rest, "calls", "to_apply", "called_computations")))

    return inside(entry)


def loop_flops(rest: str, flops: int) -> int:
    """FLOPs of a loop, from those of one iteration."""
    count = trip_count(rest)
    if count is None and flops:
        raise ValueError(
            "a loop of unknown length has matrix products, which cannot be counted; give the loop "
            "a fixed length"
        )
    return (count or 0) * flops


def dot_flops(instruction: Instruction, shapes: Mapping[str, str]) -> int:
    """FLOPs of a matrix product: 2 x elements of the output x elements of the contracted axes."""
    left = dimensions(shapes[operand_names(instruction.rest)[0]])
    axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)
    contracted = [left[int(axis)] for axis in (axes[1] if axes else "").split(",") if axis]
    return 2 * math.prod(dimensions(instruction.shape)) * math.prod(contracted)


def dimensions(shape: str) -> list[int]:
    """The sizes in a shape: [2, 3] for f32[2,3]{1,0}."""
    return [int(size) for size in re.search(r"\[([\d,]*)\]", shape)[1].split(",") if size]
