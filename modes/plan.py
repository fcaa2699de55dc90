"""--mode=plan: memory, time and cost of a run on devices that are not here.

Compiles the training step for emulated CPU devices and never runs it. XLA splits arrays, exchanges
them between devices and donates buffers as for accelerators. It fuses operations differently, so
the printed temporary memory is an upper bound. Time follows from FLOPs and the share of the peak
that public codes reach.
"""

import math
import sys
import time

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fewstep.modes.budget import checkpoint_line, fixed_seconds, requested_target, time_lines
from fewstep.modes.job import resident_images
from fewstep.modes.mode import CONFIG, Flag, Mode, parse_integers, parse_number, parse_numbers
from fewstep.modes.request import Request, require_config
from fewstep.modes.resolve import resolve_open_fields
from fewstep.modes.student import read_student
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
from fewstep.training.cost.hardware import planned_hardware
from fewstep.training.cost.sizes import element_count, tree_bytes
from fewstep.training.cost.step_cost import forward_flops, step_flops
from fewstep.training.experiment import Experiment, build_on
from fewstep.training.networks import network_title
from fewstep.training.sharding import (
    AXES,
    check_batch_size,
    make_mesh,
    mesh_sizes,
    slice_mesh_sizes,
)

MIB = 2**20
UNCOUNTED = "images       not here, so not counted: each device keeps all of them (data.on_device)"


def plan_resources(request: Request) -> None:
    """Print a table. Allocates nothing on a device; reads the data set only if necessary."""
    aim = requested_target(request)
    sizes = plan_mesh_sizes(request.mesh, require_config(request), aim)
    emulate_devices(math.prod(sizes))
    mesh = make_mesh(*sizes)
    config = resolve_open_fields(read_student(request).config, planned_hardware(mesh, aim))
    check_batch_size(config.batch_size, mesh, config.micro_batches)
    for line in plan_lines(config, mesh, aim, request):
        print(line, flush=True)


def plan_mesh_sizes(
    mesh: tuple[int, ...], config: ConfigDict, aim: Target | None = None
) -> tuple[int, int]:
    """Return the sizes of the axes data and fsdp, from --mesh or from the config.

    If --accelerator gives the number of devices, they fill the mesh as in training. Raises
    ValueError.
    """
    sizes = tuple(mesh or (config.mesh.data, config.mesh.fsdp))
    counted = aim is not None and aim.devices is not None
    given = ",".join(map(str, sizes))
    if not mesh and min(sizes) == -1 and not counted:
        raise ValueError(
            f"--mesh is missing, and mesh.data={sizes[0]}, mesh.fsdp={sizes[1]} of the config give "
            "no number of devices; add --mesh=DATA,FSDP, such as --mesh=8,8, or "
            "--accelerator=8xh100"
        )
    if len(sizes) == len(AXES) and counted:
        sizes = mesh_sizes(*sizes, aim.devices)
        across = config.mesh.fsdp_across_slices
        slice_mesh_sizes(aim.devices // aim.slices, aim.slices, sizes[1], across)
    if len(sizes) != len(AXES) or min(sizes) < 1:
        raise ValueError(f"--mesh={given} must be two sizes of 1 or more, such as --mesh=8,8")
    return sizes


def emulate_devices(count: int) -> None:
    """Make JAX see `count` CPU devices and no accelerator. Call before JAX uses a device."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)


def plan_lines(config: ConfigDict, mesh: Mesh, aim: Target | None, request: Request) -> list[str]:
    """Return the lines that `plan_resources` prints."""
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
    kept = resident_images(config, experiment.space.shape)
    parts = memory_parts(inputs) | ({} if kept is None else {"images": kept})
    state, given = device_bytes(inputs.state), sum(parts.values())
    peak = given + needs.added
    flops, forward = step_flops(config, experiment), forward_flops(config, experiment)
    fixed = fixed_seconds(state, sum(one.sent for one in found), aim)
    return [
        *heading_lines(config, experiment, inputs, mesh, aim),
        "",
        "memory per device",
        *(memory_line(name, number) for name, number in parts.items()),
        *([UNCOUNTED] if kept is None and config.data.on_device else []),
        memory_line("temporary", needs.temporary, layout_note(fused)),
        memory_line("peak", peak, "the sum, at most"),
        memory_line("donated", needs.aliased, f"{needs.aliased / state:.1%} of the state"),
        *fit_lines(peak, given, aim, remedies(config, mesh, aim)),
        "",
        "compute per step, without optimizers",
        *flops_lines(flops, forward, config, mesh),
        "",
        "collectives per device and step",
        *collective_lines(found),
        "",
        f"time and cost of {config.steps:,} steps, without evaluations",
        *time_lines(config, mesh, flops, fixed, aim, request),
        checkpoint_line(config, tree_bytes(inputs.state), request.disk_speed),
    ]


def fuses_attention(config: ConfigDict, aim: Target | None) -> bool:
    """Whether the target computes attention by fused kernels, which keep no weights in memory."""
    model = config.model
    gpu = aim is not None and aim.accelerator.is_gpu
    asked = model.get("attention") == "cudnn" or (model.get("attention") == "auto" and gpu)
    return asked and (gpu or aim is None) and model.get("dtype") == "bfloat16"


def chunk_attention(config: ConfigDict) -> ConfigDict:
    """Return the config with attention in chunks, which also never holds all its weights."""
    config = config.copy_and_resolve_references()
    config.model.attention = "chunked"
    return config


def layout_note(fused: bool) -> str:
    """Return how temporary memory was counted."""
    attention = ", attention fused" if fused else ""
    return f"at most: activations and gradients as laid out for CPUs{attention}"


def heading_lines(
    config: ConfigDict,
    experiment: Experiment,
    inputs: StepInputs,
    mesh: Mesh,
    aim: Target | None,
) -> list[str]:
    """Return lines on config, devices, mesh and batch."""
    model, network = config.model, inputs.state.networks[experiment.objective.generator]
    shape = " x ".join(map(str, experiment.space.shape))
    axes = ", ".join(f"{name} {count}" for name, count in mesh.shape.items())
    return [
        f"config       {config.method}, {network_title(config)} on {shape}, "
        f"{element_count(network)} parameters"
        + "".join(f", {name} {model[name]}" for name in ("dtype", "remat") if name in model),
        *([] if aim is None or not aim.devices else [f"devices      {describe_hosts(aim)}"]),
        f"mesh         {mesh.size} emulated device(s) ({axes})",
        f"batch        {config.batch_size}, {config.batch_size // mesh.size} per device",
    ]


def describe_hosts(aim: Target) -> str:
    """Return the number of devices, hosts and processes as text."""
    processes = "per host or per GPU" if aim.accelerator.is_gpu else "per host"
    return f"{aim.devices} x {aim.name} on {aim.hosts} host(s), a process {processes}"


def memory_parts(inputs: StepInputs) -> dict[str, int]:
    """Return the bytes on each device of the arguments of a step, by name."""
    state = inputs.state
    parts = {}
    for name, params in state.networks.items():
        parts[f"player {name}"] = device_bytes(params)
        parts[f"optimizer of {name}"] = device_bytes(state.optimizers[name])
    parts |= {f"follower {name}": device_bytes(tree) for name, tree in state.followers.items()}
    parts |= {f"frozen {name}": device_bytes(tree) for name, tree in inputs.frozen.items()}
    return {**parts, "batch": device_bytes(inputs.batch)}


def fit_lines(peak: int, given: int, aim: Target | None, remedies: list[str]) -> list[str]:
    """Return whether a step fits the accelerator, or the accelerators that it fits.

    peak: upper bound of its bytes. given: bytes of state, teachers and batch, the same in any
    layout.
    """
    if aim is None:
        large = [name for name, a in ACCELERATORS.items() if peak <= a.room]
        return [f"fits         {', '.join(large) or 'none of the known accelerators'}"]
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
    """Return the changes of the config that would reduce memory per device."""
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


def flops_lines(flops: float, forward: float, config: ConfigDict, mesh: Mesh) -> list[str]:
    """Return lines on the FLOPs of a step. forward: FLOPs of the network on one batch."""
    return [
        f"all devices  {flops / 1e12:.3f} TFLOP, as much as {flops / forward:.1f} forward passes",
        f"per device   {flops / mesh.size / 1e12:.3f} TFLOP",
        f"per image    {flops / config.batch_size / 1e9:.3f} GFLOP",
    ]


def collective_lines(found: list[Collective]) -> list[str]:
    """Return one line for each kind of collective."""
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
    """Return a line with a name, MiB and a meaning."""
    return f"{name:<24}{number / MIB:>12,.1f} MiB  {meaning}".rstrip()


PLAN = Mode(
    plan_resources,
    "Print the memory, time and cost of a run on devices that are not here.",
    {
        **CONFIG,
        "mesh": Flag("Sizes of the axes data and fsdp, such as 8,8.", parse_integers),
        "accelerator": Flag("Devices, such as h100, 8xh100, or a TPU slice such as v4-32."),
        "mfu": Flag(
            "Share of the peak FLOP/s, one number or a range; default: 0.25,0.45.", parse_numbers
        ),
        "price": Flag("Price per device-hour in any currency.", parse_number),
        "disk_speed": Flag(
            "Speed at which all processes together write, in GB/s; default: 1.", parse_number
        ),
    },
)
