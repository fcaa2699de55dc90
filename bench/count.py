"""Count the cost of a step without an accelerator and without running it.

    python -m bench.count
    python -m bench.count --parts=steps --methods=flow_matching,sim --meshes=8x1,1x8

compiles production steps and samplers of a DiT for emulated CPU devices, and reads FLOPs, memory
and collectives from the programs. Every iteration of a loop counts (training/cost/arithmetic.py),
so the network's blocks can be compiled as a loop, which is faster. FLOPs are those of all devices
together. The figures depend on the version of XLA, not on the machine.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bench.cases import CASES, case_config
from fewstep.files import write_json
from fewstep.training.cost.arithmetic import product_flops
from fewstep.training.cost.compiled import (
    FOR_INSPECTION,
    collectives,
    device_bytes,
    lowered_step,
    memory_plan,
    step_inputs,
)
from fewstep.training.experiment import build, build_on
from fewstep.training.generate import batch_sampler
from fewstep.training.sharding import AXES
from fewstep.training.step import train_step
from fewstep.training.teacher import abstract_params

BASELINE = "flow_matching"
SAMPLING_STEPS = (1, 4, 128)
# A method with one player, and one with two.
MEMORY_METHODS = (BASELINE, "sim")
# Name -> fields, and whether the state is donated.
LAYOUTS = {
    "straightforward": ({}, False),
    "donated, scan": ({"model.scan": True}, True),
    "donated, scan, remat": ({"model.scan": True, "model.remat": True}, True),
    "donated, scan, remat, 4 micro-batches": (
        {"model.scan": True, "model.remat": True, "micro_batches": 4},
        True,
    ),
}
Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Print each row, and write all of them as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.count", description="Count a step's cost."
    )
    parser.add_argument("--parts", type=parse_names, default=list(PARTS))
    parser.add_argument("--methods", type=parse_names, default=list(CASES))
    parser.add_argument(
        "--meshes", type=parse_names, default=["1x1", "8x1", "32x1"], help="DATAxFSDP"
    )
    parser.add_argument("--size", default="B")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/count.json"))
    asked = parser.parse_args(argv)
    for part in asked.parts:
        if part not in PARTS:
            parser.error(f"--parts={part} is not one of {', '.join(PARTS)}")
    for method in asked.methods:
        if method not in CASES:
            parser.error(f"--methods={method} is not one of {', '.join(CASES)}")
    require_cpu_devices(max(int(np.prod(parse_mesh(mesh))) for mesh in asked.meshes))
    rows = []
    for part in asked.parts:
        for row in PARTS[part](asked):
            rows.append({"part": part, **row})
            print("  ".join(map(format_figure, rows[-1].items())), flush=True)
            record = {"jax": jax.__version__, "size": asked.size, "batch_size": asked.batch_size}
            write_json(asked.out, {**record, "rows": rows})


def parse_names(text: str) -> list[str]:
    """The names in a list with commas."""
    return text.split(",")


def format_figure(item: tuple[str, Any]) -> str:
    """A named figure as text."""
    name, value = item
    return f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"


def parse_mesh(mesh: str) -> tuple[int, int]:
    """Sizes of the axes data and fsdp, from a name such as 8x4."""
    data, fsdp = mesh.split("x")
    return int(data), int(fsdp)


def require_cpu_devices(count: int) -> None:
    """Make JAX emulate `count` CPU devices. Raises RuntimeError if it has fewer already."""
    jax.config.update("jax_platforms", "cpu")
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # JAX has its devices already
        if len(jax.devices()) < count:
            raise


def mesh_of(data: int, fsdp: int) -> Mesh:
    """A mesh of the first devices."""
    return Mesh(np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp), AXES)


def step_rows(asked: argparse.Namespace) -> Iterator[Row]:
    """Rows with FLOPs, memory and collectives of every method's step on every mesh."""
    ordered = [BASELINE, *(method for method in asked.methods if method != BASELINE)]
    for mesh in asked.meshes:
        baseline = 0.0
        for method in ordered:
            row = step_row(method, parse_mesh(mesh), asked.size, asked.batch_size)
            baseline = baseline or row["flops"]
            case = CASES[method]
            goal = {"least": case.least / CASES[BASELINE].least, "goal": case.goal}
            yield {"method": method, "mesh": mesh, "ratio": row["flops"] / baseline, **goal, **row}


def step_row(method: str, sizes: tuple[int, int], size: str, batch_size: int) -> Row:
    """The figures of one step."""
    fields = {"model.scan": True, **CASES[method].fields}
    config = case_config(CASES[method], size, batch_size, **fields)
    mesh = mesh_of(*sizes)
    experiment = build_on(config, mesh)
    inputs = step_inputs(config, experiment, mesh)
    lowered = lowered_step(config, experiment, mesh, inputs)
    compiled = lowered.compile(compiler_options=FOR_INSPECTION)
    text = compiled.as_text()
    needs, found = memory_plan(compiled), collectives(text)
    return {
        "flops": float(product_flops(text) * mesh.size),
        "temporary_bytes": needs.temporary,
        "state_bytes": device_bytes(inputs.state),
        "aliased": needs.aliased / device_bytes(inputs.state),
        "collectives": {
            kind: {
                "count": sum(c.count for c in found if c.kind == kind),
                "bytes": sum(c.bytes for c in found if c.kind == kind),
                "sent": sum(c.sent for c in found if c.kind == kind),
            }
            for kind in dict.fromkeys(c.kind for c in found)
        },
    }


def memory_rows(asked: argparse.Namespace) -> Iterator[Row]:
    """Rows with added memory and compilation time of steps in several layouts."""
    for method, (layout, (fields, donated)) in itertools.product(MEMORY_METHODS, LAYOUTS.items()):
        config = case_config(CASES[method], asked.size, asked.batch_size, **fields)
        experiment, mesh = build(config), mesh_of(1, 1)
        inputs = step_inputs(config, experiment, mesh)
        since = time.process_time()
        if donated:
            lowered = lowered_step(config, experiment, mesh, inputs)
        else:
            step = train_step(experiment.objective, experiment.optimizers, config.seed)
            lowered = jax.jit(step).lower(*inputs)
        compiled = lowered.compile(compiler_options=FOR_INSPECTION)
        seconds = time.process_time() - since
        needs = memory_plan(compiled)
        yield {
            "method": method,
            "layout": layout,
            "compile_cpu_seconds": seconds,
            "added_bytes": needs.added,
            "temporary_bytes": needs.temporary,
            "flops": float(product_flops(compiled.as_text())),
        }


def sampling_rows(asked: argparse.Namespace) -> Iterator[Row]:
    """Rows with FLOPs of flow matching's sampler, relative to as many single steps."""
    config = case_config(CASES[BASELINE], asked.size, asked.batch_size, **{"model.scan": True})
    experiment, mesh = build(config), mesh_of(1, 1)
    params = abstract_params(experiment.model.network, mesh)
    rows = jax.ShapeDtypeStruct((asked.batch_size,), jnp.int32)
    single = 0.0
    for count in SAMPLING_STEPS:
        sampler = batch_sampler(
            experiment.objective,
            experiment.space.shape,
            mesh,
            seed=config.seed,
            steps=count,
            guidance_scale=1.0,
        )
        since = time.process_time()
        compiled = sampler.lower(params, rows, rows).compile(compiler_options=FOR_INSPECTION)
        seconds, text = time.process_time() - since, compiled.as_text()
        flops = float(product_flops(text))
        single = single or flops
        yield {
            "steps": count,
            "flops": flops,
            "ratio": flops / (count * single),
            "goal": 1.02,
            "compile_cpu_seconds": seconds,
            "program_bytes": len(text),
        }


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "steps": step_rows,
    "memory": memory_rows,
    "sampling": sampling_rows,
}


if __name__ == "__main__":
    main()
