"""--mode=plan: what a run needs on devices that one does not have: memory, time and money.

The production step is compiled for emulated CPU devices and never run. What XLA decides before it
generates machine code, which is how arrays are split, what is exchanged and what is donated, is
decided as for accelerators; how operations are fused is not, so temporary memory is at most what is
printed. Time is counted from FLOPs, at a share of the peak that public codes reach.
"""

import math
import sys
import time

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fewstep.modes.budget import checkpoint_line, fixed_seconds, requested_target, time_lines
from fewstep.modes.mode import CONFIG, Flag, Mode, parse_integers, parse_number, parse_numbers
from fewstep.modes.request import Request, require_config, resolve_open_fields
from fewstep.training.cost.accelerators import ACCELERATORS, GIB, Target
from fewstep.training.cost.compiled import (
    FOR_INSPECTION,
    Collective,
    StepInputs,
    collectives,
    device_bytes,
    lowered_step,
    memory_plan,
    step_inputs,
)
from fewstep.training.cost.sizes import element_count, tree_bytes
from fewstep.training.cost.step_cost import forward_flops, step_flops
from fewstep.training.experiment import Experiment, build_on
from fewstep.training.networks import title
from fewstep.training.sharding import AXES, check_batch_size, make_mesh, mesh_sizes, sizes_in_slice

MIB = 2**20


def plan_resources(request: Request) -> None:
    """Print a table; nothing is allocated on a device and the data set is read only if needed."""
    config, aim = require_config(request), requested_target(request)
    sizes = plan_mesh_sizes(request.mesh, config, aim)
    emulate_devices(math.prod(sizes))
    config = resolve_open_fields(config)
    mesh = make_mesh(*sizes)
    check_batch_size(config.batch_size, mesh, config.micro_batches)
    for line in plan_lines(config, mesh, aim, request):
        print(line, flush=True)


def plan_mesh_sizes(
    mesh: tuple[int, ...], config: ConfigDict, aim: Target | None = None
) -> tuple[int, int]:
    """Sizes of the axes data and fsdp: of --mesh, or of the config. Raises ValueError.

    If the number of the target's devices is known they fill the mesh as they would in training.
    """
    sizes = tuple(mesh or (config.mesh.data, config.mesh.fsdp))
    counted = aim is not None and aim.devices is not None
    given = ",".join(map(str, sizes))
    if not mesh and min(sizes) == -1 and not counted:
        raise ValueError(
            f"--mesh=DATA,FSDP is needed, such as --mesh=8,8, or --accelerator with a number, such "
            f"as 8xh100: mesh.data={sizes[0]} and mesh.fsdp={sizes[1]} take what devices are here, "
            "and a plan is for others"
        )
    if len(sizes) == len(AXES) and counted:
        sizes = mesh_sizes(*sizes, aim.devices)
        across = config.mesh.fsdp_across_slices
        sizes_in_slice(aim.devices // aim.slices, aim.slices, sizes[1], across)
    if len(sizes) != len(AXES) or min(sizes) < 1:
        raise ValueError(f"--mesh={given} must be two sizes of 1 or more, such as --mesh=8,8")
    return sizes


def emulate_devices(count: int) -> None:
    """Let JAX see so many CPU devices and no accelerator; only before it has looked for any."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)


def plan_lines(config: ConfigDict, mesh: Mesh, aim: Target | None, request: Request) -> list[str]:
    """The lines that `plan` prints."""
    since = time.perf_counter()
    print(f"compiling the step for {mesh.size} device(s) ...", file=sys.stderr, flush=True)
    fused = fuses_attention(config, aim)
    config = chunk_attention(config) if fused else config
    experiment = build_on(config, mesh)
    inputs = step_inputs(config, experiment, mesh)
    lowered = lowered_step(config, experiment, mesh, inputs)
    compiled = lowered.compile(compiler_options=FOR_INSPECTION)
    needs = memory_plan(compiled)
    found = collectives(compiled.as_text())
    print(f"compiled in {time.perf_counter() - since:.0f} s", file=sys.stderr, flush=True)
    parts = memory_parts(inputs)
    state, given = device_bytes(inputs.state), sum(parts.values())
    peak = given + needs.added
    flops, forward = step_flops(config, experiment), forward_flops(config, experiment)
    fixed = fixed_seconds(state, sum(one.sent for one in found), aim)
    return [
        *heading_lines(config, experiment, inputs, mesh, aim),
        "",
        "memory per device",
        *(memory_line(name, number) for name, number in parts.items()),
        memory_line("temporary", needs.temporary, layout_note(fused)),
        memory_line("peak", peak, "the sum, at most"),
        memory_line("donated", needs.aliased, f"{needs.aliased / state:.1%} of the state"),
        *fit_lines(peak, given, aim, remedies(config, mesh, aim)),
        "",
        "compute per step, without optimizers",
        *compute_lines(flops, forward, config, mesh),
        "",
        "collectives per device and step",
        *collective_lines(found),
        "",
        f"time and cost of {config.steps:,} steps, without evaluations",
        *time_lines(config, mesh, flops, fixed, aim, request),
        checkpoint_line(config, tree_bytes(inputs.state), request.disk_speed),
    ]


def fuses_attention(config: ConfigDict, aim: Target | None) -> bool:
    """Whether attention will be fused kernels on the target, which keep no weights in memory."""
    model = config.model
    gpu = aim is not None and aim.accelerator.is_gpu
    asked = model.get("attention") == "cudnn" or (model.get("attention") == "auto" and gpu)
    return asked and (gpu or aim is None) and model.get("dtype") == "bfloat16"


def chunk_attention(config: ConfigDict) -> ConfigDict:
    """The config with attention in chunks, which like fused kernels never has all its weights."""
    config = config.copy_and_resolve_references()
    config.model.attention = "chunked"
    return config


def layout_note(fused: bool) -> str:
    """How temporary memory was counted."""
    attention = ", attention fused" if fused else ""
    return f"at most: activations and gradients as laid out for CPUs{attention}"


def heading_lines(
    config: ConfigDict,
    experiment: Experiment,
    inputs: StepInputs,
    mesh: Mesh,
    aim: Target | None,
) -> list[str]:
    """What is planned."""
    model, network = config.model, inputs.state.networks[experiment.objective.generator]
    shape = " x ".join(map(str, experiment.space.shape))
    axes = ", ".join(f"{name} {count}" for name, count in mesh.shape.items())
    return [
        f"config       {config.method}, {title(config)} on {shape}, "
        f"{element_count(network)} parameters"
        + "".join(f", {name} {model[name]}" for name in ("dtype", "remat") if name in model),
        *([] if aim is None or not aim.devices else [f"devices      {describe_hosts(aim)}"]),
        f"mesh         {mesh.size} emulated device(s) ({axes})",
        f"batch        {config.batch_size}, {config.batch_size // mesh.size} per device",
    ]


def describe_hosts(aim: Target) -> str:
    """Devices, hosts and processes."""
    processes = "per host or per GPU" if aim.accelerator.is_gpu else "per host"
    return f"{aim.devices} x {aim.name} on {aim.hosts} host(s), a process {processes}"


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


def fit_lines(peak: int, given: int, aim: Target | None, remedies: list[str]) -> list[str]:
    """Whether a program of that peak fits the accelerator, or which ones it fits.

    peak: at most. given: state, teachers and batch, which are there in any layout.
    """
    if aim is None:
        large = [name for name, a in ACCELERATORS.items() if peak <= a.room]
        return [f"fits         {', '.join(large) or 'no accelerator that is known here'}"]
    accelerator = aim.accelerator
    room = f"of {accelerator.room / GIB:.2f} GiB, {accelerator.usable:.0%} of its "
    room += f"{accelerator.gib:g}"
    if accelerator.is_gpu:
        room += " as JAX takes of a GPU unless XLA_CLIENT_MEM_FRACTION is set"
    if peak <= accelerator.room:
        return [f"fits         {aim.name}: yes, at most {peak / GIB:.2f} {room}"]
    help_ = f"would help   {'; '.join(remedies)}"
    if given > accelerator.room:
        text = f"no, {given / GIB:.2f} {room}, without activations"
    else:
        text = f"perhaps not, at most {peak / GIB:.2f} {room}; at least {given / GIB:.2f}"
    return [f"fits         {aim.name}: {text}", help_]


def remedies(config: ConfigDict, mesh: Mesh, aim: Target | None = None) -> list[str]:
    """The fields that would make a step smaller on each device."""
    model = config.model
    found = [f"a larger mesh.fsdp than {mesh.shape['fsdp']}, which splits the state further"]
    if not model.get("remat", True):
        found.append("model.remat=True, which keeps no activations inside of blocks")
    if model.get("attention") == "xla" and aim is not None and aim.accelerator.is_gpu:
        found.append("model.attention=auto, fused kernels that keep no weights of attention")
    if model.get("dtype", "") == "float32":
        found.append("model.dtype=bfloat16, which halves activations")
    if config.batch_size > mesh.size * config.micro_batches:
        found.append(f"micro_batches={2 * config.micro_batches}, half of the activations at a time")
        found.append(f"a smaller batch_size than {config.batch_size}, or more devices")
    return found


def compute_lines(flops: float, forward: float, config: ConfigDict, mesh: Mesh) -> list[str]:
    """What a step computes; forward: FLOPs of the network on one batch."""
    return [
        f"all devices  {flops / 1e12:.3f} TFLOP, as much as {flops / forward:.1f} forward passes",
        f"per device   {flops / mesh.size / 1e12:.3f} TFLOP",
        f"per image    {flops / config.batch_size / 1e9:.3f} GFLOP",
    ]


def collective_lines(found: list[Collective]) -> list[str]:
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


def memory_line(name: str, number: int, meaning: str = "") -> str:
    """A line on bytes."""
    return f"{name:<24}{number / MIB:>12,.1f} MiB  {meaning}".rstrip()


PLAN = Mode(
    plan_resources,
    "Print the memory, time and money that a run needs on devices that are not here.",
    {
        **CONFIG,
        "mesh": Flag("Sizes of the axes data and fsdp, such as 8,8.", parse_integers),
        "accelerator": Flag("Devices, such as h100, 8xh100, or the TPU slices v4-32, v5e-16."),
        "mfu": Flag("Share of the peak FLOP/s that is reached; default 0.25,0.45.", parse_numbers),
        "price": Flag("Price of a device for an hour, in any currency.", parse_number),
        "disk_speed": Flag("GB/s that all processes together write; default 1.", parse_number),
    },
)
