"""--mode=plan: what a training step needs on a mesh that one does not have.

The production step is compiled for emulated CPU devices and never run. What XLA decides before it
generates machine code, which is how arrays are split, what is exchanged and what is donated, is
decided as for accelerators; how operations are fused is not, so temporary memory is an estimate.
"""

import math
import sys
import time
from typing import NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from modes.describe import size
from modes.request import Request, required_config, resolve_where_open
from training.compiled import (
    FOR_INSPECTION,
    Collective,
    StepInputs,
    collectives,
    device_bytes,
    lowered_step,
    memory,
    step_inputs,
)
from training.construct import choose
from training.cost import forward_flops, step_flops
from training.experiment import Experiment, build_on
from training.sharding import AXES, check_batch_size, make_mesh

MIB, GIB = 2**20, 2**30


class Accelerator(NamedTuple):
    """gib: published memory of one JAX device, in GiB. usable: the share that a program gets."""

    gib: float
    usable: float


# JAX takes three quarters of a GPU at its start unless XLA_CLIENT_MEM_FRACTION says otherwise
# (docs.jax.dev, GPU memory allocation).
GPU = 0.75
# The TPU runtime keeps some: its errors speak of 15.75 of 16 GiB on v5e, of 30.75 of 32 on v4.
TPU = 0.95
# Sizes as Google Cloud (per chip) and NVIDIA (per GPU) publish them.
ACCELERATORS = {
    "v4": Accelerator(32, TPU),
    "v5e": Accelerator(16, TPU),
    "v5p": Accelerator(95, TPU),
    "v6e": Accelerator(32, TPU),
    "rtx-4090": Accelerator(24, GPU),
    "l4": Accelerator(24, GPU),
    "l40s": Accelerator(48, GPU),
    "a100-40": Accelerator(40, GPU),
    "a100-80": Accelerator(80, GPU),
    "h100": Accelerator(80, GPU),
    "h200": Accelerator(141, GPU),
}


def plan(request: Request) -> None:
    """Print a table; nothing is allocated on a device and the data set is read only if needed."""
    config = required_config(request)
    sizes = mesh_sizes(request.mesh, config)
    if request.accelerator:
        choose(ACCELERATORS, request.accelerator, "--accelerator")
    emulate_devices(math.prod(sizes))
    config = resolve_where_open(config)
    mesh = make_mesh(*sizes)
    experiment = build_on(config, mesh)
    check_batch_size(config.batch_size, mesh, config.micro_batches)
    for line in planned(config, experiment, mesh, request.accelerator):
        print(line, flush=True)


def mesh_sizes(mesh: tuple[int, ...], config: ConfigDict) -> tuple[int, int]:
    """Sizes of the axes data and fsdp: of --mesh, or of the config. Raises ValueError."""
    sizes = mesh or (config.mesh.data, config.mesh.fsdp)
    given = ",".join(map(str, sizes))
    if not mesh and min(sizes) == -1:
        raise ValueError(
            f"--mesh=DATA,FSDP is needed, such as --mesh=8,8: mesh.data={sizes[0]} and "
            f"mesh.fsdp={sizes[1]} take what devices are here, and a plan is for others"
        )
    if len(sizes) != len(AXES) or min(sizes) < 1:
        raise ValueError(f"--mesh={given} must be two sizes of 1 or more, such as --mesh=8,8")
    return sizes


def emulate_devices(count: int) -> None:
    """Let JAX see so many CPU devices and no accelerator; only before it has looked for any."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)


def planned(config: ConfigDict, experiment: Experiment, mesh: Mesh, accelerator: str) -> list[str]:
    """The lines that `plan` prints."""
    since = time.perf_counter()
    print(f"compiling the step for {mesh.size} device(s) ...", file=sys.stderr, flush=True)
    inputs = step_inputs(config, experiment, mesh)
    lowered = lowered_step(config, experiment, mesh, inputs)
    compiled = lowered.compile(compiler_options=FOR_INSPECTION)
    needs = memory(compiled)
    found = collectives(compiled.as_text())
    print(f"compiled in {time.perf_counter() - since:.0f} s", file=sys.stderr, flush=True)
    parts = memory_parts(inputs)
    state = device_bytes(inputs.state)
    peak = sum(parts.values()) + needs.added
    return [
        *heading(config, experiment, inputs, mesh),
        "",
        "memory per device",
        *(amount(name, number) for name, number in parts.items()),
        amount("temporary", needs.temporary, "activations and gradients, as XLA lays them out"),
        f"{'':29}for CPUs; accelerators fuse otherwise",
        amount("peak", peak, "the sum"),
        amount("donated", needs.aliased, f"{needs.aliased / state:.1%} of the state"),
        *fits(peak, accelerator, remedies(config, mesh)),
        "",
        "compute per step, without optimizers",
        *compute(config, experiment, mesh),
        "",
        "collectives per device and step",
        *exchanges(found),
    ]


def heading(
    config: ConfigDict, experiment: Experiment, inputs: StepInputs, mesh: Mesh
) -> list[str]:
    """What is planned."""
    model, network = config.model, inputs.state.networks[experiment.objective.generator]
    shape = " x ".join(map(str, experiment.image_shape))
    axes = ", ".join(f"{name} {count}" for name, count in mesh.shape.items())
    return [
        f"config       {config.method}, {model.name} {model.size}/{model.patch_size} on {shape}, "
        f"{size(network)} parameters, dtype {model.dtype}, remat {model.remat}",
        f"mesh         {mesh.size} emulated device(s) ({axes})",
        f"batch        {config.batch_size}, {config.batch_size // mesh.size} per device",
    ]


def memory_parts(inputs: StepInputs) -> dict[str, int]:
    """Bytes on each device of what a step is given."""
    state = inputs.state
    parts = {}
    for name, params in state.networks.items():
        parts[f"player {name}"] = device_bytes(params)
        parts[f"optimizer of {name}"] = device_bytes(state.optimizers[name])
    parts |= {f"follower {name}": device_bytes(tree) for name, tree in state.followers.items()}
    parts |= {f"frozen {name}": device_bytes(tree) for name, tree in inputs.frozen.items()}
    return {**parts, "batch": device_bytes(inputs.batch)}


def fits(peak: int, accelerator: str, remedies: list[str]) -> list[str]:
    """Whether a program of that peak fits the accelerator, or which ones it fits."""
    if not accelerator:
        large = [name for name, a in ACCELERATORS.items() if peak <= a.usable * a.gib * GIB]
        return [f"fits         {', '.join(large) or 'no accelerator that is known here'}"]
    gib, usable = ACCELERATORS[accelerator]
    room = f"{peak / GIB:.2f} of {usable * gib:.2f} GiB, {usable:.0%} of its {gib:g}"
    if usable == GPU:
        room += " as JAX takes of a GPU unless XLA_CLIENT_MEM_FRACTION is set"
    if peak <= usable * gib * GIB:
        return [f"fits         {accelerator}: yes, {room}"]
    return [f"fits         {accelerator}: no, {room}", f"would help   {'; '.join(remedies)}"]


def remedies(config: ConfigDict, mesh: Mesh) -> list[str]:
    """The fields that would make a step smaller on each device."""
    model = config.model
    found = [f"a larger mesh.fsdp than {mesh.shape['fsdp']}, which splits the state further"]
    if not model.get("remat", True):
        found.append("model.remat=True, which keeps no activations inside of blocks")
    if model.get("dtype", "") == "float32":
        found.append("model.dtype=bfloat16, which halves activations")
    if config.batch_size > mesh.size * config.micro_batches:
        found.append(f"micro_batches={2 * config.micro_batches}, half of the activations at a time")
        found.append(f"a smaller batch_size than {config.batch_size}, or more devices")
    return found


def compute(config: ConfigDict, experiment: Experiment, mesh: Mesh) -> list[str]:
    """What a step computes."""
    flops = step_flops(config, experiment)
    passes = flops / forward_flops(config, experiment)
    return [
        f"all devices  {flops / 1e12:.3f} TFLOP, as much as {passes:.1f} forward passes",
        f"per device   {flops / mesh.size / 1e12:.3f} TFLOP",
        f"per image    {flops / config.batch_size / 1e9:.3f} GFLOP",
    ]


def exchanges(found: list[Collective]) -> list[str]:
    """A line on each kind of collectives."""
    lines = []
    for kind in dict.fromkeys(one.kind for one in found):
        same = [one for one in found if one.kind == kind]
        count, total = sum(one.count for one in same), sum(one.bytes for one in same)
        text = f"{kind:<19}{count:>6,} of {total / MIB:>10,.1f} MiB"
        text += f", {sum(one.sent for one in same) / MIB:,.1f} MiB sent"
        groups = sorted({one.devices for one in same if one.devices > 1})
        if groups:
            text += f" among {' or '.join(map(str, groups))} devices"
        if any(one.conditional for one in same):
            text += ", some not at every step"
        if any(one.uncounted for one in same):
            text += ", loops of unknown length counted once"
        lines.append(text)
    return lines or ["none"]


def amount(name: str, number: int, meaning: str = "") -> str:
    """A line on bytes."""
    return f"{name:<24}{number / MIB:>12,.1f} MiB  {meaning}".rstrip()
