"""What can be counted of a step without an accelerator, and without running it.

    python -m bench.count
    python -m bench.count --parts=steps --methods=flow_matching,sim --meshes=8x1,1x8

compiles production steps and samplers of a DiT for emulated CPU devices and reads FLOPs, memory and
collectives off the programs. XLA counts the body of a loop once; here loops count at every turn
(training/cost/arithmetic.py), so that blocks are compiled as a loop, which is sooner done. FLOPs
are those of all devices together. The figures depend on the version of XLA, not on the machine.
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

from bench.cases import CASES, config_of
from fewstep.files import write_json
from fewstep.training.cost.arithmetic import product_flops
from fewstep.training.cost.compiled import (
    FOR_INSPECTION,
    collectives,
    device_bytes,
    lowered_step,
    memory,
    step_inputs,
)
from fewstep.training.experiment import build, build_on
from fewstep.training.generate import batch_sampler
from fewstep.training.sharding import AXES
from fewstep.training.step import train_step
from fewstep.training.teacher import abstract_params

BASELINE = "flow_matching"
SAMPLING_STEPS = (1, 4, 128)
# Of one player and of two.
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
    """Print a row at a time; write all of them as JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.count", description="Counts of a step.")
    parser.add_argument("--parts", type=names, default=list(PARTS))
    parser.add_argument("--methods", type=names, default=list(CASES))
    parser.add_argument("--meshes", type=names, default=["1x1", "8x1", "32x1"], help="DATAxFSDP")
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
    emulate_devices(max(int(np.prod(sizes_of(mesh))) for mesh in asked.meshes))
    rows = []
    for part in asked.parts:
        for row in PARTS[part](asked):
            rows.append({"part": part, **row})
            print("  ".join(map(shown, rows[-1].items())), flush=True)
            record = {"jax": jax.__version__, "size": asked.size, "batch_size": asked.batch_size}
            write_json(asked.out, {**record, "rows": rows})


def names(text: str) -> list[str]:
    """A list of names with commas between."""
    return text.split(",")


def shown(item: tuple[str, Any]) -> str:
    """A figure as it is printed."""
    name, value = item
    return f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"


def sizes_of(mesh: str) -> tuple[int, int]:
    """Sizes of the axes data and fsdp, of a name such as 8x4."""
    data, fsdp = mesh.split("x")
    return int(data), int(fsdp)


def emulate_devices(count: int) -> None:
    """Let JAX see so many CPU devices at least, if it has not looked for any yet."""
    jax.config.update("jax_platforms", "cpu")
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # it has: its devices must do
        if len(jax.devices()) < count:
            raise


def mesh_of(data: int, fsdp: int) -> Mesh:
    """A mesh of the first devices."""
    return Mesh(np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp), AXES)


def steps(asked: argparse.Namespace) -> Iterator[Row]:
    """FLOPs, memory and collectives of every method's step on every mesh."""
    ordered = [BASELINE, *(method for method in asked.methods if method != BASELINE)]
    for mesh in asked.meshes:
        baseline = 0.0
        for method in ordered:
            row = step_row(method, sizes_of(mesh), asked.size, asked.batch_size)
            baseline = baseline or row["flops"]
            case = CASES[method]
            goal = {"least": case.least / CASES[BASELINE].least, "goal": case.goal}
            yield {"method": method, "mesh": mesh, "ratio": row["flops"] / baseline, **goal, **row}


def step_row(method: str, sizes: tuple[int, int], size: str, batch_size: int) -> Row:
    """The figures of one step."""
    config = config_of(CASES[method], size, batch_size, **{"model.scan": True})
    mesh = mesh_of(*sizes)
    experiment = build_on(config, mesh)
    inputs = step_inputs(config, experiment, mesh)
    lowered = lowered_step(config, experiment, mesh, inputs)
    compiled = lowered.compile(compiler_options=FOR_INSPECTION)
    text = compiled.as_text()
    needs, found = memory(compiled), collectives(text)
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


def memories(asked: argparse.Namespace) -> Iterator[Row]:
    """Memory beside the arguments, and seconds to compile, of steps in several layouts."""
    for method, (layout, (fields, donated)) in itertools.product(MEMORY_METHODS, LAYOUTS.items()):
        config = config_of(CASES[method], asked.size, asked.batch_size, **fields)
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
        needs = memory(compiled)
        yield {
            "method": method,
            "layout": layout,
            "compile_cpu_seconds": seconds,
            "added_bytes": needs.added,
            "temporary_bytes": needs.temporary,
            "flops": float(product_flops(compiled.as_text())),
        }


def sampling(asked: argparse.Namespace) -> Iterator[Row]:
    """FLOPs of samplers of flow matching over those of as many single steps."""
    config = config_of(CASES[BASELINE], asked.size, asked.batch_size, **{"model.scan": True})
    experiment, mesh = build(config), mesh_of(1, 1)
    params = abstract_params(experiment, mesh)
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
    "steps": steps,
    "memory": memories,
    "sampling": sampling,
}


if __name__ == "__main__":
    main()
