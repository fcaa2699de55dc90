"""What a config leaves open: values chosen for its images and for the devices of the run.

A number that is None, or a text that is "auto", is open. The functions of CHOICES say what to take;
if a step of that does not fit, it takes more micro-batches, then a smaller network. A run records
what was chosen, so it goes on with that on other devices.
"""

import math
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from fewstep.training.cluster.processes import say
from fewstep.training.cost.accelerators import GIB
from fewstep.training.cost.hardware import Hardware
from fewstep.training.cost.memory import (
    SPARE,
    StepMemory,
    fits,
    more_micro_batches,
    planned_memory,
    smaller_batches,
    smaller_sizes,
    with_values,
)
from fewstep.training.cost.step_cost import least_seconds
from fewstep.training.networks import architecture, with_network_fields
from fewstep.training.spaces import build_space

AUTO = "auto"
# Tokens of an image: a step of 64 of them takes a fraction of a second on two CPU cores.
CPU_TOKENS, TOKENS = 64, 256
CPU_SIZE, SIZE, LARGE_SIZE = "mini", "S", "B"
LARGE_MEMORY = 40 * GIB  # of devices that are also fast enough for the large size
CPU_BATCH, BATCH = 32, 256
LEAST_STEPS, MOST_STEPS = 3000, 30_000
EPOCHS = 1000  # of a small data set, after which a network mostly repeats its images
# The rate of networks up to this width; wider ones take less, as in muP (Yang et al. 2022).
RATE, RATE_WIDTH = 1e-3, 192
RESIDENT_SHARE = 0.05  # of a device's memory that training images may take
# CPU time of the host for a dispatch, beside the work of the devices (docs/performance.md).
DISPATCH_SECONDS = 5e-3
MOST_STEPS_AT_ONCE = 10  # more save the host little, and delay a stop and the progress bar


class Choosing(NamedTuple):
    """What a value is chosen for.

    config: with the values chosen so far. images: number of training images, None if unknown.
    """

    config: ConfigDict
    hardware: Hardware
    images: int | None


def patch_size(given: Choosing) -> int:
    """The divisor of the image that makes nearly as many tokens as the devices should have."""
    side = build_space(given.config).shape[0]
    tokens = TOKENS if given.hardware.accelerated else CPU_TOKENS
    divisors = [patch for patch in range(1, side + 1) if side % patch == 0]
    return min(divisors, key=lambda patch: abs(math.log((side // patch) ** 2 / tokens)))


def size(given: Choosing) -> str:
    """The size of the network, by kind and memory of the devices."""
    hardware = given.hardware
    if not hardware.accelerated:
        return CPU_SIZE
    return LARGE_SIZE if hardware.room and hardware.room >= LARGE_MEMORY else SIZE


def dtype(given: Choosing) -> str:
    """bfloat16 on accelerators."""
    return "bfloat16" if given.hardware.accelerated else "float32"


def batch_size(given: Choosing) -> int:
    """The usual number of images, or the next that devices and micro-batches can share."""
    usual = BATCH if given.hardware.accelerated else CPU_BATCH
    shares = given.hardware.mesh.size * (given.config.micro_batches or 1)
    return math.ceil(usual / shares) * shares


def micro_batches(given: Choosing) -> int:
    """The whole batch at once."""
    return 1


def evaluation_batch(given: Choosing) -> int:
    """The images of a micro-batch; to sample them takes less memory than to train on them."""
    return given.config.batch_size // given.config.micro_batches


def steps(given: Choosing) -> int:
    """EPOCHS of the images, in full hundreds, between the fewest and the most steps."""
    most = MOST_STEPS if given.hardware.accelerated else LEAST_STEPS
    epochs = EPOCHS * (given.images or 0) / given.config.batch_size
    return int(min(max(round(epochs, -2), LEAST_STEPS), most))


def learning_rate(given: Choosing) -> float:
    """RATE, or less for wide networks."""
    width = architecture(given.config).widths.get(given.config.model.get("size"), RATE_WIDTH)
    return RATE * min(1.0, RATE_WIDTH / width)


def on_device(given: Choosing) -> bool:
    """Whether accelerators keep all images: where these are known to take little memory."""
    hardware, space = given.hardware, build_space(given.config)
    if not (hardware.accelerated and hardware.room and given.images and space.image):
        return False
    shape, dtype = space.example
    size = given.images * math.prod(shape) * np.dtype(dtype).itemsize
    return size <= RESIDENT_SHARE * hardware.room


def steps_per_dispatch(given: Choosing) -> int:
    """So many steps that the devices have work while the host prepares the next dispatch.

    The work of a step is its time at the devices' peak, which small steps do not reach. A divisor
    of the periods of saves and evaluations, since other programs make the steps before these.
    """
    config, hardware = given.config, given.hardware
    # Without a known peak, as on CPUs, one: host and devices share the cores of a CPU.
    seconds = least_seconds(with_network_fields(config), hardware.kind, hardware.mesh.size)
    needed = 1 if seconds is None else math.ceil(DISPATCH_SECONDS / seconds)
    period = math.gcd(config.checkpoint.every, config.evaluate.every)
    counts = [n for n in range(1, MOST_STEPS_AT_ONCE + 1) if period % n == 0]
    return next((n for n in counts if n >= needed), counts[-1])


# By field, in the order of choosing: later ones depend on earlier ones.
CHOICES: dict[str, Callable[[Choosing], Any]] = {
    "model.patch_size": patch_size,
    "model.size": size,
    "model.dtype": dtype,
    "batch_size": batch_size,
    "micro_batches": micro_batches,
    "evaluate.batch_size": evaluation_batch,
    "steps": steps,
    "optimizer.learning_rate": learning_rate,
    "data.on_device": on_device,
    "steps_per_dispatch": steps_per_dispatch,
}
# Fields that depend on the whole step, and that decide whether it fits.
LAST = ("data.on_device", "steps_per_dispatch")
# Choices that need no word: a run does so unless something else is chosen.
USUAL = (("data.on_device", False), ("steps_per_dispatch", 1))
SIZING = ("model.size", "batch_size", "micro_batches")


def open_fields(config: ConfigDict) -> list[str]:
    """The fields of CHOICES that a config leaves open; of a network only those that it has."""
    own = {f"model.{name}" for name in architecture(config).fields}
    return [
        field
        for field in CHOICES
        if (field in own or not field.startswith("model.")) and is_open(config, field)
    ]


def is_open(config: ConfigDict, field: str) -> bool:
    """Whether a field has no value yet."""
    return field_value(config, field) in (None, AUTO)


def field_value(config: ConfigDict, field: str) -> Any:
    """A field by dotted name; None if it is missing."""
    group, _, name = field.rpartition(".")
    return (config[group] if group else config).get(name)


def choose(config: ConfigDict, hardware: Hardware, images: int | None = None) -> ConfigDict:
    """The config with values for its open fields; says in one line what they are.

    images: number of training images, None if unknown. Expects resolved data fields.
    """
    fields = open_fields(config)
    if not fields:
        return config
    measured = hardware.room is not None and not config.debug and set(SIZING) & set(fields)
    sized = (fit if measured else fill)(config, hardware, images)
    chosen = fill(sized, hardware, images, LAST)
    found = {field: field_value(chosen, field) for field in fields}
    words = [f"{name}={value}" for name, value in found.items() if (name, value) not in USUAL]
    if words:
        say(f"chosen for {hardware.describe()}: {', '.join(words)}", sys.stderr)
    return chosen


def fill(
    config: ConfigDict,
    hardware: Hardware,
    images: int | None,
    fields: Collection[str] = tuple(field for field in CHOICES if field not in LAST),
) -> ConfigDict:
    """The config with those of `fields` that are open as in CHOICES, whether or not a step fits."""
    for field in open_fields(config):
        if field not in fields:
            continue
        value = CHOICES[field](Choosing(config, hardware, images))
        config = with_values(config, {field: value})
    return config


def fit(config: ConfigDict, hardware: Hardware, images: int | None) -> ConfigDict:
    """`fill` with so many micro-batches, or so small a batch or network, that a step fits.

    If none fits, the smallest.
    """
    fields = open_fields(config)
    chosen = fill(config, hardware, images)
    sizes = [*smaller_sizes(chosen)] if "model.size" in fields else []
    for values in ({}, *({"model.size": size} for size in sizes)):
        sized = with_values(config, values)
        chosen = fill(sized, hardware, images)
        need = planned_memory(chosen, hardware)
        if need.total <= SPARE * hardware.room:
            break
        for smaller in smaller_parts(chosen, need, hardware, fields):
            chosen = fill(with_values(sized, smaller), hardware, images)
            if fits(chosen, hardware):
                return chosen
    return chosen


def smaller_parts(
    chosen: ConfigDict, need: StepMemory, hardware: Hardware, fields: Sequence[str]
) -> Iterator[dict[str, int]]:
    """More micro-batches, or else smaller batches, if they are open, that may fit."""
    if "micro_batches" in fields:
        yield from ({"micro_batches": n} for n in more_micro_batches(chosen, need, hardware))
    elif "batch_size" in fields:
        yield from ({"batch_size": n} for n in smaller_batches(chosen, need, hardware))
