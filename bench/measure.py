"""Make one measurement on this machine's device.

    python -m bench.measure '{"kind": "ceilings"}'
    python -m bench.measure '{"kind": "train", "case": "sim", "size": "B", "batch_size": 256}'

prints one line of JSON. Each measurement needs its own process: a device reports the peak of memory
since the process started, and memory that one measurement leaves would be missing for the next.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.stages import Lowered
from ml_collections import ConfigDict

from bench.cases import CASES, case_config, forward_flops_by_hand
from fewstep.training.compiled_step import compile_step, create_state
from fewstep.training.cost.compiled import step_inputs
from fewstep.training.experiment import build, build_on
from fewstep.training.generate import batch_sampler
from fewstep.training.sharding import make_mesh, put_batch
from fewstep.training.sources import abstract_batch
from fewstep.training.teacher import abstract_params

MATRIX = 8192  # side of the matrices in the product
COPIED = 2**30  # bytes of the copied array
WARMUP = 3  # runs before the timed ones
Row = dict[str, Any]


def ceilings(seconds: float = 3.0, matrix: int = MATRIX, copied: int = COPIED) -> Row:
    """The device's peak speeds, from a bfloat16 product of random matrices and a copy."""
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, (matrix, matrix), jnp.bfloat16) for key in keys)
    product = jax.jit(jnp.matmul)
    array = jnp.zeros(copied // 4, jnp.float32)
    copy = jax.jit(lambda x: x + 1.0)
    return {
        "matmul_flops": 2.0 * matrix**3 * runs_per_second(lambda: product(a, b), seconds),
        "copy_bytes": 2.0 * copied * runs_per_second(lambda: copy(array), seconds),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }


class Program(NamedTuple):
    """A compiled function that a measurement runs again and again.

    run: starts it once more and returns what is not ready yet. lower: the same for inspection.
    state: what it takes over from the run before and donates; () without.
    """

    run: Callable[[], Any]
    lower: Callable[[], Lowered]
    state: Any = ()


def training_program(config: ConfigDict) -> Program:
    """The training step of a config, on one batch of random data; its teacher is random, too."""
    mesh = make_mesh()
    experiment = build_on(config, mesh)
    objective = experiment.objective._replace(init_from={})
    abstract = abstract_params(experiment.model.network, mesh)
    init = experiment.model.network.init
    teacher = jax.jit(init, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract))
    frozen = {name: teacher(jax.random.key(1)) for name in objective.frozen}
    state = create_state(objective, experiment.optimizers, config.seed, frozen, mesh)
    step = compile_step(objective, experiment.optimizers, config.seed, mesh)
    shapes = abstract_batch(objective, config.batch_size, experiment.space.shape)
    batch = put_batch(jax.tree.map(random_like, shapes), mesh)
    inputs = step_inputs(config, experiment, mesh)

    def advance() -> Any:
        nonlocal state
        state, metrics = step(state, frozen, batch)
        return metrics

    return Program(advance, lambda: step.lower(*inputs), inputs.state)


def measure_training(
    case: str, size: str, batch_size: int, scan: bool, remat: bool = False, seconds: float = 5.0
) -> Row:
    """Images per second of a training step, and the method's least FLOP/s at that speed."""
    fields = {"model.scan": scan, "model.remat": remat, **CASES[case].fields}
    program = training_program(case_config(CASES[case], size, batch_size, **fields))
    speed = batch_size * runs_per_second(program.run, seconds)
    flops = CASES[case].least * forward_flops_by_hand(size) * speed
    return {"images_per_second": speed, "flops_per_second": flops, "peak_bytes": peak_bytes()}


def random_like(shape: jax.ShapeDtypeStruct) -> np.ndarray:
    """Random floats, or integers of 0 (labels of the first class)."""
    if jnp.issubdtype(shape.dtype, jnp.integer):
        return np.zeros(shape.shape, shape.dtype)
    return np.random.default_rng(0).standard_normal(shape.shape).astype(shape.dtype)


def sampling_program(config: ConfigDict, steps: int) -> Program:
    """A batch of samples in `steps` steps, copied to the host, from random parameters."""
    experiment, mesh = build(config), make_mesh()
    params = jax.jit(experiment.model.network.init)(jax.random.key(0))
    sampler = batch_sampler(
        experiment.objective,
        experiment.space.shape,
        mesh,
        seed=0,
        steps=steps,
        guidance_scale=1.0,
    )
    rows = np.arange(config.batch_size, dtype=np.int32)
    inputs = params, rows, 0 * rows
    return Program(lambda: jax.device_get(sampler(*inputs)), lambda: sampler.lower(*inputs))


def measure_sampling(size: str, batch_size: int, steps: int, seconds: float = 5.0) -> Row:
    """Latents per second of flow matching's sampler, copied to the host."""
    config = case_config(CASES["flow_matching"], size, batch_size, **{"model.scan": True})
    speed = batch_size * runs_per_second(sampling_program(config, steps).run, seconds)
    flops = steps * forward_flops_by_hand(size) * speed
    row = {"images_per_second": speed, "flops_per_second": flops, "peak_bytes": peak_bytes()}
    return {**row, "batch_size": batch_size}


def runs_per_second(run: Callable[[], Any], seconds: float) -> float:
    """Runs per second over about `seconds`, after WARMUP runs, which compile."""
    for _ in range(WARMUP):
        since = time.perf_counter()
        jax.block_until_ready(run())
    count = max(1, int(seconds / (time.perf_counter() - since)))
    since = time.perf_counter()
    for _ in range(count):
        last = run()
    jax.block_until_ready(last)
    return count / (time.perf_counter() - since)


def peak_bytes() -> int:
    """Peak bytes in use on the device since the process started; 0 if it does not report them."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use", 0)


KINDS: dict[str, Callable[..., Row]] = {
    "ceilings": ceilings,
    "train": measure_training,
    "sample": measure_sampling,
}


if __name__ == "__main__":
    fields = json.loads(sys.argv[1])
    print(json.dumps(KINDS[fields.pop("kind")](**fields)))
