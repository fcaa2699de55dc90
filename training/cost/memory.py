"""The memory that a training step needs on each device, before it is compiled, and what would fit.

The arguments of a step are known exactly; its temporary arrays are estimated from its trace
(training/cost/traced.py). Evaluations are not estimated. They keep nothing for a gradient, so
sampling needs less for as many rows. A codec needs memory of its own: training/codecs.py says how
many pictures it computes at once.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
from jax.stages import Traced
from ml_collections import ConfigDict

from fewstep.training.cluster.processes import warn
from fewstep.training.codecs import EXHAUSTED
from fewstep.training.cost.accelerators import GIB
from fewstep.training.cost.compiled import StepInputs, device_bytes, step_inputs, traced_step
from fewstep.training.cost.hardware import Hardware
from fewstep.training.cost.sizes import tree_bytes
from fewstep.training.cost.traced import temporary_bytes
from fewstep.training.experiment import Experiment, build_on
from fewstep.training.networks import architecture

# A run is refused if it needs so many times the memory. For CPUs the estimate is within 25 % of
# XLA's own figure (docs/planning.md); for other devices XLA may fuse more.
CPU_MARGIN, MARGIN = 1.25, 2.0
SPARE = 0.8  # share of the memory that a step may need for a value to be recommended or chosen
FLOAT32_BYTES = 4  # CPUs compute products of bfloat16 in float32


class StepMemory(NamedTuple):
    """Bytes on each device. given: arguments of the step. temporary: an estimate."""

    given: float
    temporary: float

    @property
    def total(self) -> float:
        """Bytes of the step."""
        return self.given + self.temporary

    def in_parts(self, times: float) -> float:
        """Bytes of the step if it computes the batch in so many times more parts, at least."""
        return self.given + self.temporary / times


def planned_memory(config: ConfigDict, hardware: Hardware, resident: int = 0) -> StepMemory:
    """The memory of a config's step, as `traced_memory`. Builds and traces it. Raises ValueError.

    Expects resolved fields. Reads no teacher.
    """
    mesh = hardware.mesh
    experiment = build_on(config, mesh)
    inputs = step_inputs(config, experiment, mesh)
    traced = traced_step(config, experiment, mesh, inputs)
    return traced_memory(traced, experiment, inputs, hardware, resident)


def traced_memory(
    traced: Traced,
    experiment: Experiment,
    inputs: StepInputs,
    hardware: Hardware,
    resident: int = 0,
) -> StepMemory:
    """The memory of a traced step. resident: bytes on each device that are no arguments.

    The trace has the arrays of all devices. Each has its part of them, but gradients are split
    only as parameters are.
    """
    devices, state = hardware.mesh.size, inputs.state
    frozen = {name: inputs.frozen[name] for name in experiment.objective.read_only}
    given = device_bytes(state) + device_bytes(frozen) + tree_bytes(inputs.batch) / devices
    least = 1 if hardware.accelerated else FLOAT32_BYTES
    temporary = temporary_bytes(traced.jaxpr.jaxpr, least) / devices
    gradients = max(map(device_bytes, state.networks.values()))
    return StepMemory(resident + given, temporary + (1 - 1 / devices) * gradients)


def check_memory(need: StepMemory, config: ConfigDict, hardware: Hardware) -> None:
    """Raises ValueError, with values that would fit, if a step clearly does not fit.

    Warns if it needs more memory than there is, but less than that times the margin. Does nothing
    if the memory is unknown.
    """
    if hardware.room is None or need.total <= hardware.room:
        return
    text = f"{describe_need(need, hardware)}; {describe_remedies(need, config, hardware)}"
    margin = MARGIN if hardware.accelerated else CPU_MARGIN
    if need.total > margin * hardware.room:
        raise ValueError(text)
    warn(text)


def describe_need(need: StepMemory, hardware: Hardware) -> str:
    """The memory that a step needs and that there is, in words."""
    text = f"a training step needs about {need.total / GIB:.1f} GiB of memory"
    if hardware.room is None:
        return text
    where = f"a device ({hardware.kind})" if hardware.accelerated else "this machine"
    return f"{text}, and {where} has {hardware.room / GIB:.1f} GiB"


def exhausted_message(error: Exception) -> str:
    """The message for an error of XLA if the memory was not enough; "" for another error."""
    text = str(error)
    if EXHAUSTED not in text:
        return ""
    return (
        f"the memory of the devices is not enough ({text.splitlines()[0]}); set more "
        "micro_batches, a smaller batch_size, evaluate.batch_size or model.size"
    )


@contextmanager
def memory_errors_in_words() -> Iterator[None]:
    """Raises ValueError with the remedy in place of XLA's error if the memory was not enough."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not exhausted_message(error):
            raise
        raise ValueError(exhausted_message(error)) from error


def describe_remedies(need: StepMemory, config: ConfigDict, hardware: Hardware) -> str:
    """Changes that would each make a step fit, in words."""
    found = fitting_values(need, config, hardware)
    if not found:
        return (
            "no smaller batch_size or model.size and no more micro_batches would fit alone; set "
            "several of them, or data.image_size"
        )
    words = [f"--config.{field}={value}" for field, value in found.items()]
    return f"this would fit: {' or '.join(words)}"


def fitting_values(
    need: StepMemory, config: ConfigDict, hardware: Hardware
) -> dict[str, int | str]:
    """By field, the value nearest to the config's with which a step fits; only fields that help."""
    found = {}
    for field, values in (
        ("micro_batches", more_micro_batches(config, need, hardware)),
        ("batch_size", smaller_batches(config, need, hardware)),
        ("model.size", smaller_sizes(config)),
    ):
        fitting = (v for v in values if fits(with_values(config, {field: v}), hardware))
        value = next(fitting, None)
        if value is not None:
            found[field] = value
    return found


def fits(config: ConfigDict, hardware: Hardware) -> bool:
    """Whether a config's step surely fits; False for a config that cannot be built."""
    try:
        return planned_memory(config, hardware).total <= SPARE * hardware.room
    except ValueError:
        return False


def more_micro_batches(config: ConfigDict, need: StepMemory, hardware: Hardware) -> Iterator[int]:
    """Larger numbers of micro-batches that may fit and divide the batch, the smallest first."""
    now, rows = config.micro_batches, config.batch_size // hardware.mesh.size
    for parts in range(now + 1, rows + 1):
        if rows % parts == 0 and need.in_parts(parts / now) <= SPARE * hardware.room:
            yield parts


def smaller_batches(config: ConfigDict, need: StepMemory, hardware: Hardware) -> Iterator[int]:
    """Smaller batches that may fit, halved each time, the largest first."""
    shares = hardware.mesh.size * config.micro_batches
    for halvings in range(1, int(math.log2(config.batch_size)) + 1):
        rows, rest = divmod(config.batch_size, 2**halvings)
        if not rest and rows % shares == 0 and need.in_parts(2**halvings) <= SPARE * hardware.room:
            yield rows


def smaller_sizes(config: ConfigDict) -> Iterator[str]:
    """Smaller sizes of the config's network, the largest first; none if it has no sizes."""
    sizes = [*architecture(config).widths]
    if config.model.get("size") in sizes:
        yield from reversed(sizes[: sizes.index(config.model.size)])


def with_values(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    """The config with these values by dotted name."""
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(dict(values))
    return config
