"""What a compiled training step needs: memory, and the collectives between devices.

Everything is read off a program that was compiled and never ran, so it can be that of a mesh of
emulated devices. The collectives are read from the program's text, which is after partitioning: its
shapes are those of one device.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from jax.stages import Compiled, Lowered
from ml_collections import ConfigDict

from fewstep.objectives.base import Params
from fewstep.training.compiled_step import abstract_state, compile_step
from fewstep.training.experiment import Experiment
from fewstep.training.sharding import batch_sharding
from fewstep.training.sources import abstract_batch
from fewstep.training.storage.train_state import TrainState
from fewstep.training.teacher import abstract_params

# For a program that is only looked at. Memory and collectives are settled before XLA optimises
# machine code, which is 30 % of the time for DiT-B. XLA for CPUs also removes what keeps it from
# merging a rematerialised block with the block itself, as it does not for accelerators.
FOR_INSPECTION = {
    "xla_backend_optimization_level": 0,
    "xla_disable_hlo_passes": "cse_barrier_expander",
}

# Bytes that a device sends, over those of the whole array, in a group of n devices: what the ring
# algorithms need, which is the least that is possible.
SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}


class StepInputs(NamedTuple):
    """Shapes, dtypes and shardings of what a training step takes."""

    state: TrainState
    frozen: Mapping[str, Params]
    batch: Mapping[str, Any]


class Memory(NamedTuple):
    """Bytes of a program on each device. aliased: outputs that take the place of arguments."""

    arguments: int
    outputs: int
    aliased: int
    temporary: int

    @property
    def added(self) -> int:
        """What is there beside the arguments while the program runs."""
        return self.outputs - self.aliased + self.temporary


class Collective(NamedTuple):
    """All collectives of one kind among as many devices, in one run of the program on one device.

    bytes: of the whole arrays: what is reduced, scattered, exchanged or sent, or has been gathered.
    conditional: whether they are in a branch, which need not be taken.
    uncounted: whether they are in a loop of unknown length, of which one turn is counted.
    """

    kind: str
    devices: int
    count: int
    bytes: int
    conditional: bool = False
    uncounted: bool = False

    @property
    def sent(self) -> float:
        """Bytes that a device sends at least."""
        return SENT[self.kind](self.devices) * self.bytes


class Instruction(NamedTuple):
    """NAME = SHAPE OPCODE(REST in a program's text."""

    name: str
    shape: str
    opcode: str
    rest: str


Computations = Mapping[str, list[Instruction]]


def step_inputs(config: ConfigDict, experiment: Experiment, mesh: Mesh) -> StepInputs:
    """The inputs of a run's training step, none of them allocated; teachers need not be there."""
    # A teacher is a network of the same shape.
    frozen = {name: abstract_params(experiment, mesh) for name in experiment.objective.frozen}
    objective = experiment.objective._replace(init_from={})
    state = abstract_state(objective, experiment.optimizers, config.seed, frozen, mesh)
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=batch_sharding(mesh)),
        abstract_batch(objective, config.batch_size, experiment.image_shape),
    )
    return StepInputs(state, frozen, batch)


def lowered_step(
    config: ConfigDict, experiment: Experiment, mesh: Mesh, inputs: StepInputs
) -> Lowered:
    """The production training step for such inputs, ready to be compiled."""
    step = compile_step(
        experiment.objective, experiment.optimizers, config.seed, mesh, config.micro_batches
    )
    return step.lower(*inputs)


def device_bytes(tree: Any) -> int:
    """Bytes of a tree of sharded arrays or shapes on each device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def memory(compiled: Compiled) -> Memory:
    """XLA's plan of a device's memory. Fusion differs between backends, so temporary bytes do."""
    stats = compiled.memory_analysis()
    return Memory(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        temporary=stats.temp_size_in_bytes,
    )


def collectives(hlo_text: str) -> list[Collective]:
    """The collectives of `compiled.as_text()`, by kind and size of their groups.

    Those in a loop count as often as it turns, where XLA knows that; of exclusive branches the one
    with most bytes counts. A pair of start and done is one.
    """
    entry, computations = parsed(hlo_text)
    sizes = re.findall(r"(?:num_partitions|replica_count)=(\d+)", hlo_text.partition("\n")[0])
    found = within(entry, computations, math.prod(map(int, sizes)))
    order = list(SENT)
    return sorted(
        merged(found), key=lambda c: (order.index(c.kind), c.devices, c.conditional, c.uncounted)
    )


def merged(found: Iterable[Collective]) -> list[Collective]:
    """Counts and bytes summed over those that agree in everything else."""
    totals: dict[Collective, tuple[int, int]] = {}
    for one in found:
        key = one._replace(count=0, bytes=0)
        count, size = totals.get(key, (0, 0))
        totals[key] = count + one.count, size + one.bytes
    return [key._replace(count=count, bytes=size) for key, (count, size) in totals.items()]


def parsed(hlo_text: str) -> tuple[str, Computations]:
    """The name of the entry computation, and the instructions of every computation."""
    entry, computations = "", {}
    instruction = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (.+?) ([a-z][a-z\d-]*)\((.*)")
    header = re.compile(r"(ENTRY )?%?([\w.-]+) .*\{$")
    current: list[Instruction] = []
    for line in hlo_text.splitlines():
        if start := header.match(line):
            current = computations[start[2]] = []
            entry = start[2] if start[1] else entry
        elif found := instruction.match(line):
            current.append(Instruction(*found.groups()))
    return entry, computations


def within(name: str, computations: Computations, devices: int) -> list[Collective]:
    """The collectives of a computation and of those that it calls; devices: all of the program."""
    instructions = computations[name]
    shapes = {instruction.name: instruction.shape for instruction in instructions}
    inside = lambda called: within(called, computations, devices)
    found: list[Collective] = []
    for instruction in instructions:
        opcode, rest = instruction.opcode, instruction.rest
        kind = opcode.removesuffix("-start")
        if kind in SENT:
            found.append(collective(kind, rest, shapes, devices))
        elif opcode == "while":
            found += [c for body in called(rest, "body") for c in repeated(inside(body), rest)]
        elif opcode == "conditional":
            branches = called(rest, "branch_computations", "true_computation", "false_computation")
            largest = max(map(inside, branches), key=lambda cs: sum(c.bytes for c in cs))
            found += [c._replace(conditional=True) for c in largest]
        elif not opcode.endswith(("-done", "-update")):
            for other in called(rest, "calls", "to_apply", "called_computations"):
                found += inside(other)
    return found


def called(rest: str, *attributes: str) -> list[str]:
    """The computations that attributes of an instruction name, one or several in braces."""
    values = re.findall(rf"\b(?:{'|'.join(attributes)})=(\{{[^}}]*\}}|%[\w.-]+)", rest)
    return [name for value in values for name in re.findall(r"%([\w.-]+)", value)]


def repeated(found: Iterable[Collective], rest: str) -> list[Collective]:
    """The collectives of a loop's body as often as the loop turns."""
    times = trip_count(rest)
    if times is None:
        return [one._replace(uncounted=True) for one in found]
    return [one._replace(count=times * one.count, bytes=times * one.bytes) for one in found]


def trip_count(rest: str) -> int | None:
    """How often a loop turns, None if XLA does not know."""
    trips = re.search(r"known_trip_count\W+n\W+(\d+)", rest)
    return int(trips[1]) if trips else None


def operands(rest: str) -> list[str]:
    """The names of what an instruction takes."""
    listed = re.split(r"\)(?:, \w+=|$)", rest, maxsplit=1)[0]
    return re.findall(r"%([\w.-]+)", listed)


def collective(kind: str, rest: str, shapes: Mapping[str, str], devices: int) -> Collective:
    """One collective, measured by its operands: what a start returns differs between kinds."""
    size = sum(shape_bytes(shapes[name]) for name in operands(rest))
    group = 1 if kind == "collective-permute" else group_size(rest, devices)
    return Collective(kind, group, 1, size * group if kind == "all-gather" else size)


def shape_bytes(shape: str) -> int:
    """Bytes of f32[2,3]{1,0}, or of all parts of a tuple."""
    total = 0
    for dtype, dimensions in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", shape):
        bits = 8 if dtype == "pred" else int((re.search(r"\d+", dtype) or "0")[0])
        total += -(-bits * math.prod(int(d) for d in dimensions.split(",") if d) // 8)
    return total


def group_size(rest: str, devices: int) -> int:
    """Devices in each of replica_groups, in any of the forms in which XLA writes them."""
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", rest):
        return int(iota[1])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(listed[1].split(","))
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        # A part of an axis is written 'x':(sizes before it)its size.
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return devices
