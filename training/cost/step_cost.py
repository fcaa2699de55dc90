"""What training costs: counted from the losses before anything is compiled, or as it was logged."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from ml_collections import ConfigDict

from fewstep.objectives.base import SHARED
from fewstep.training.cost.accelerators import accelerator_of
from fewstep.training.experiment import Experiment, build
from fewstep.training.sources import abstract_batch

# Model FLOPs utilisation that public codes report, of bfloat16 peaks; docs/planning.md has each.
# The low end is DiT-XL/2 on an A100, the high end transformers of any size on H100 and TPU v6e.
MEASURED_MFU = (0.25, 0.45)

# Shapes of parameters.
Shapes = Any


def step_flops(config: ConfigDict, experiment: Experiment) -> float:
    """Floating-point operations of the gradients of a step, as a mean over many steps.

    A player that is updated at every k-th step counts 1 / k times. The optimizers, a few operations
    per parameter, are not counted. Loops are counted once, but those of model.scan and of attention
    in chunks count as what they stand for. Teachers need not be there.
    """
    experiment = unrolled(config, experiment)
    objective = experiment.objective
    players, networks = objective.players, shapes(experiment)
    batch = abstract_batch(objective, config.batch_size, experiment.image_shape)
    key, step = jax.eval_shape(lambda: (jax.random.key(0), jnp.int32(0)))
    trained = {name: networks[name] for name in players}
    share = objective.share or (lambda networks, batch, key: {})
    shared = flops(share, trained, batch, key) if objective.share else 0.0

    def gradient_flops(name: str) -> float:
        def gradient(own: Shapes, networks: Shapes, batch: Any, key: Array, step: Array) -> Shapes:
            def mean_loss(params: Shapes, shared: Any) -> tuple[Array, Any]:
                rows = {**batch, SHARED: shared}
                loss, metrics = players[name].loss(params, networks, rows, key, step)
                return jnp.mean(loss), metrics

            values, pullback = jax.vjp(lambda own: share({**networks, name: own}, batch, key), own)
            slopes, _ = jax.grad(mean_loss, (0, 1), has_aux=True)(own, values)
            return slopes[0], pullback(slopes[1])

        return flops(gradient, networks[name], networks, batch, key, step) - shared

    # In micro-batches each player evaluates again what is shared.
    parts = config.micro_batches > 1
    total = shared * (sum(1.0 / player.every for player in players.values()) if parts else 1.0)
    return total + sum(gradient_flops(name) / player.every for name, player in players.items())


def forward_flops(config: ConfigDict, experiment: Experiment) -> float:
    """Floating-point operations of the network on one batch, forwards alone."""
    experiment = unrolled(config, experiment)
    rows = (config.batch_size,)
    x = jax.ShapeDtypeStruct((*rows, *experiment.image_shape), jnp.float32)
    time = jax.ShapeDtypeStruct(rows, jnp.float32)
    condition = {"label": jax.ShapeDtypeStruct(rows, jnp.int32), "guidance_scale": time}
    params = shapes(experiment)[experiment.objective.generator]
    return flops(experiment.model.network.apply, params, x, time, time, condition)


def unrolled(config: ConfigDict, experiment: Experiment) -> Experiment:
    """The same experiment without a loop over the network's blocks, or attention that XLA fuses.

    XLA counts a loop's body once, and nothing of a kernel of cuDNN.
    """
    model = config.model
    if not model.get("scan", False) and model.get("attention", "xla") == "xla":
        return experiment
    config = config.copy_and_resolve_references()
    config.model.scan = False
    config.model.attention = "xla"
    return build(config)


def network_evaluations(config: ConfigDict, experiment: Experiment) -> float:
    """Forward passes of the network, per image of the batch, that a step costs as much as.

    A backward pass counts as about two; evaluations of teachers, targets and a fake score count.
    """
    return step_flops(config, experiment) / forward_flops(config, experiment)


def shapes(experiment: Experiment) -> dict[str, Shapes]:
    """Shapes of every network that a loss reads, by name."""
    objective = experiment.objective
    players = {name: player.init for name, player in objective.players.items()}
    generator = players[objective.generator]
    found = {name: jax.eval_shape(init, jax.random.key(0)) for name, init in players.items()}
    found |= dict.fromkeys(objective.frozen, jax.eval_shape(generator, jax.random.key(0)))
    for name, follower in objective.followers.items():
        found[name] = found[follower.source]
    return found


def flops(function: Callable[..., Any], *inputs: Any) -> float:
    """Floating-point operations of a function of arrays of these shapes.

    They are counted as for a CPU, on any machine: XLA counts before compilation for CPUs alone.
    """
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        return jax.jit(function).lower(*inputs).cost_analysis()["flops"]


def least_seconds(config: ConfigDict, kind: str, devices: int) -> float | None:
    """Seconds of a training step at the peak FLOP/s of so many devices of a kind (device_kind).

    Divided by the seconds that a step takes it is the model FLOPs utilisation. None if the peak is
    not known, or if JAX was started without CPUs, on which FLOPs are counted.
    """
    accelerator = accelerator_of(kind)
    if accelerator is None:
        return None
    try:
        count = step_flops(config, build(config))
    except RuntimeError:  # JAX's, for a backend that it was not started with
        return None
    return count / (devices * accelerator.peak_flops(config.model.get("dtype", "float32")))


def training_seconds(
    rows: Iterable[Mapping[str, float]], last_step: int, batch_size: int
) -> float | None:
    """Seconds of training up to a step, without evaluations and saves; None if none were logged.

    Each row of the log has the speed since the row before.
    """
    seconds, before = 0.0, 0
    for row in rows:
        speed = row.get("images_per_second", 0.0)
        if speed > 0.0 and before < row["step"] <= last_step:
            seconds += (row["step"] - before) * batch_size / speed
            before = row["step"]
    return seconds if before else None
