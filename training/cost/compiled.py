"""Memory and collectives of a compiled training step.

All figures come from a compiled program that never runs, so the mesh may be one of emulated
devices. Collectives are read from the program's text, after partitioning: its shapes are those of
one device.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from jax.stages import Compiled, Lowered, Traced
from ml_collections import ConfigDict

from fewstep.objectives.base import Params
from fewstep.training.compiled_step import Advance, abstract_state, compile_step
from fewstep.training.experiment import Experiment
from fewstep.training.fixed_networks import abstract_fixed
from fewstep.training.sharding import batch_sharding
from fewstep.training.sources import abstract_batch
from fewstep.training.storage.train_state import TrainState
from fewstep.training.teacher import abstract_params

# Compiler options for a program that is only inspected. Memory and collectives are fixed before XLA
# optimises machine code, which takes 30 % of the time for DiT-B. cse_barrier_expander, which only
# CPUs have, lets XLA merge a rematerialised block with the original.
FOR_INSPECTION = {
    "xla_backend_optimization_level": 0,
    "xla_disable_hlo_passes": "cse_barrier_expander",
}

# Bytes that a device sends / bytes of the whole array, in a group of n devices, by the ring
# algorithms, which send the least possible.
SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}


class StepInputs(NamedTuple):
    """Shapes, dtypes and shardings of a training step's arguments."""

    state: TrainState
    frozen: Mapping[str, Params]
    batch: Mapping[str, Any]


class Memory(NamedTuple):
    """Bytes of a program on each device. aliased: outputs that reuse the memory of arguments."""

    arguments: int
    outputs: int
    aliased: int
    temporary: int

    @property
    def added(self) -> int:
        """Bytes that the program needs in addition to its arguments."""
        return self.outputs - self.aliased + self.temporary


class Collective(NamedTuple):
    """All collectives of one kind and group size, in one run of the program on one device.

    bytes: of the whole arrays that are reduced, scattered, exchanged, sent or gathered.
    conditional: whether they are in a branch that may not be taken.
    uncounted: whether they are in a loop of unknown length, which counts as one iteration.
    """

    kind: str
    devices: int
    count: int
    bytes: int
    conditional: bool = False
    uncounted: bool = False

    @property
    def sent(self) -> float:
        """The least bytes that a device must send."""
        return SENT[self.kind](self.devices) * self.bytes


class Instruction(NamedTuple):
    """A line of a program's text: NAME = SHAPE OPCODE(REST."""

    name: str
    shape: str
    opcode: str
    rest: str


Computations = Mapping[str, list[Instruction]]


def step_inputs(config: ConfigDict, experiment: Experiment, mesh: Mesh) -> StepInputs:
    """The arguments of a run's training step, unallocated. Reads no teacher."""
    # A teacher has the network's shapes.
    teacher = abstract_params(experiment.model.network, mesh)
    frozen = dict.fromkeys(experiment.objective.frozen, teacher) | abstract_fixed(experiment, mesh)
    objective = experiment.objective._replace(init_from={})
    state = abstract_state(objective, experiment.optimizers, config.seed, frozen, mesh)
    return StepInputs(state, frozen, sharded_batch(config, experiment, mesh))


def sharded_batch(config: ConfigDict, experiment: Experiment, mesh: Mesh) -> Mapping[str, Any]:
    """A run's batch on its devices, unallocated."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract_batch(experiment.objective, config.batch_size, experiment.space.shape),
    )


def production_step(config: ConfigDict, experiment: Experiment, mesh: Mesh) -> Advance:
    """The step that trains a config."""
    return compile_step(
        experiment.objective, experiment.optimizers, config.seed, mesh, config.micro_batches
    )


def traced_step(
    config: ConfigDict, experiment: Experiment, mesh: Mesh, inputs: StepInputs
) -> Traced:
    """The production training step, traced for these inputs."""
    return production_step(config, experiment, mesh).trace(*inputs)


def lowered_step(
    config: ConfigDict, experiment: Experiment, mesh: Mesh, inputs: StepInputs
) -> Lowered:
    """The production training step, lowered for these inputs and ready to compile."""
    return traced_step(config, experiment, mesh, inputs).lower()


def device_bytes(tree: Any) -> int:
    """Bytes on each device of a tree of sharded arrays or shapes."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def memory_plan(compiled: Compiled) -> Memory:
    """XLA's plan of a device's memory. Temporary bytes differ between backends, as fusion does."""
    stats = compiled.memory_analysis()
    return Memory(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        temporary=stats.temp_size_in_bytes,
    )


def collectives(hlo_text: str) -> list[Collective]:
    """The collectives in `compiled.as_text()`, summed by kind and group size.

    Those in a loop count once per iteration if XLA knows the trip count. A conditional counts as
    its branch with most bytes. A pair of start and done is one collective.
    """
    entry, computations = parse_hlo(hlo_text)
    sizes = re.findall(r"(?:num_partitions|replica_count)=(\d+)", hlo_text.partition("\n")[0])
    found = collectives_in(entry, computations, math.prod(map(int, sizes)))
    order = list(SENT)
    return sorted(
        sum_alike(found), key=lambda c: (order.index(c.kind), c.devices, c.conditional, c.uncounted)
    )


def sum_alike(found: Iterable[Collective]) -> list[Collective]:
    """Collectives that differ only in count and bytes, summed."""
    totals: dict[Collective, tuple[int, int]] = {}
    for one in found:
        key = one._replace(count=0, bytes=0)
        count, size = totals.get(key, (0, 0))
        totals[key] = count + one.count, size + one.bytes
    return [key._replace(count=count, bytes=size) for key, (count, size) in totals.items()]


def parse_hlo(hlo_text: str) -> tuple[str, Computations]:
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


def collectives_in(name: str, computations: Computations, devices: int) -> list[Collective]:
    """The collectives of a computation and of those that it calls.

    devices: of the whole program.
    """
    instructions = computations[name]
    shapes = {instruction.name: instruction.shape for instruction in instructions}
    inside = lambda name: collectives_in(name, computations, devices)
    found: list[Collective] = []
    for instruction in instructions:
        opcode, rest = instruction.opcode, instruction.rest
        kind = opcode.removesuffix("-start")
        if kind in SENT:
            found.append(read_collective(kind, rest, shapes, devices))
        elif opcode == "while":
            found += [
                c for body in callees(rest, "body") for c in repeat_collectives(inside(body), rest)
            ]
        elif opcode == "conditional":
            branches = callees(rest, "branch_computations", "true_computation", "false_computation")
            largest = max(map(inside, branches), key=lambda cs: sum(c.bytes for c in cs))
            found += [c._replace(conditional=True) for c in largest]
        elif not opcode.endswith(("-done", "-update")):
            for other in callees(rest, "calls", "to_apply", "called_computations"):
                found += inside(other)
    return found


def callees(rest: str, *attributes: str) -> list[str]:
    """Names of the computations in an instruction's attributes, which hold one or several."""
    values = re.findall(rf"\b(?:{'|'.join(attributes)})=(\{{[^}}]*\}}|%[\w.-]+)", rest)
    return [name for value in values for name in re.findall(r"%([\w.-]+)", value)]


def repeat_collectives(found: Iterable[Collective], rest: str) -> list[Collective]:
    """The collectives of a loop, from those of its body."""
    times = trip_count(rest)
    if times is None:
        return [one._replace(uncounted=True) for one in found]
    return [one._replace(count=times * one.count, bytes=times * one.bytes) for one in found]


def trip_count(rest: str) -> int | None:
    """Iterations of a loop; None if XLA does not know."""
    trips = re.search(r"known_trip_count\W+n\W+(\d+)", rest)
    return int(trips[1]) if trips else None


def operand_names(rest: str) -> list[str]:
    """Names of an instruction's operands."""
    listed = re.split(r"\)(?:, \w+=|$)", rest, maxsplit=1)[0]
    return re.findall(r"%([\w.-]+)", listed)


def read_collective(kind: str, rest: str, shapes: Mapping[str, str], devices: int) -> Collective:
    """One collective, sized by its operands: results of a start differ between kinds."""
    size = sum(shape_bytes(shapes[name]) for name in operand_names(rest))
    group = 1 if kind == "collective-permute" else group_size(rest, devices)
    return Collective(kind, group, 1, size * group if kind == "all-gather" else size)


def shape_bytes(shape: str) -> int:
    """Bytes of a shape such as f32[2,3]{1,0}, or of all elements of a tuple."""
    total = 0
    for dtype, dimensions in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", shape):
        bits = 8 if dtype == "pred" else int((re.search(r"\d+", dtype) or "0")[0])
        total += -(-bits * math.prod(int(d) for d in dimensions.split(",") if d) // 8)
    return total


def group_size(rest: str, devices: int) -> int:
    """Devices per replica group, in any of the forms that XLA writes."""
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", rest):
        return int(iota[1])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(listed[1].split(","))
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        # XLA writes a part of an axis as 'x':(sizes before it)its size.
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return devices
