"""The cost of training, counted from the losses before compilation or read from the log."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Jaxpr, jaxpr_as_fun
from ml_collections import ConfigDict

from fewstep.models.network import GUIDANCE
from fewstep.objectives.base import SHARED
from fewstep.training.cost.accelerators import accelerator_of
from fewstep.training.cost.traced import programs_in
from fewstep.training.experiment import Experiment, build
from fewstep.training.fixed_networks import fixed_shapes
from fewstep.training.sources import abstract_batch

# Model FLOPs utilisation that public code reports, of bfloat16 peaks; docs/planning.md lists it.
# The low end is DiT-XL/2 on an A100, the high end transformers on H100 and TPU v6e.
MEASURED_MFU = (0.25, 0.45)

# Fields of a network, and their values that have XLA count all of it.
UNROLLED = {"scan": False, "attention": "xla"}

# Shapes of parameters.
Shapes = Any


def step_flops(config: ConfigDict, experiment: Experiment) -> float:
    """FLOPs of a step's gradients, averaged over many steps.

    What `model.remat` computes again counts. A player that is updated every k-th step counts 1 / k
    times. Optimizers, a few operations per parameter, do not count. A loop of known length counts
    in full, such as that of a path; one whose length depends on the step counts as one iteration.
    Reads no teacher.
    """
    experiment = unroll(config, experiment)
    objective = experiment.objective
    players, networks = objective.players, network_shapes(experiment)
    batch = abstract_batch(objective, config.batch_size, experiment.space.shape)
    key, step = jax.eval_shape(lambda: (jax.random.key(0), jnp.int32(0)))
    trained = {name: networks[name] for name in players}
    share = objective.share or (lambda networks, batch, key: {})
    shared = count_flops(share, trained, batch, key) if objective.share else 0.0

    def gradient_flops(name: str) -> float:
        def gradient(own: Shapes, networks: Shapes, batch: Any, key: Array, step: Array) -> Shapes:
            player = players[name]

            def mean_loss(part: Shapes, shared: Any) -> tuple[Array, Any]:
                params, rows = player.whole(own, part), {**batch, SHARED: shared}
                loss, metrics = player.loss(params, networks, rows, key, step)
                return jnp.mean(loss), metrics

            values, pullback = jax.vjp(lambda own: share({**networks, name: own}, batch, key), own)
            grads, _ = jax.grad(mean_loss, (0, 1), has_aux=True)(player.part(own), values)
            return grads[0], pullback(grads[1])

        return count_flops(gradient, networks[name], networks, batch, key, step) - shared

    # In micro-batches each player evaluates the shared arrays again.
    parts = config.micro_batches > 1
    total = shared * (sum(1.0 / player.every for player in players.values()) if parts else 1.0)
    return total + sum(gradient_flops(name) / player.every for name, player in players.items())


def forward_flops(config: ConfigDict, experiment: Experiment) -> float:
    """FLOPs of the network's forward pass on one batch."""
    experiment = unroll(config, experiment)
    rows = (config.batch_size,)
    x = jax.ShapeDtypeStruct((*rows, *experiment.space.shape), jnp.float32)
    time = jax.ShapeDtypeStruct(rows, jnp.float32)
    condition = {"label": jax.ShapeDtypeStruct(rows, jnp.int32), **dict.fromkeys(GUIDANCE, time)}
    condition["score"] = x
    params = network_shapes(experiment)[experiment.objective.generator]
    return count_flops(experiment.model.network.apply, params, x, time, time, condition)


def unroll(config: ConfigDict, experiment: Experiment) -> Experiment:
    """The same experiment with plain attention and without a loop over the network's blocks.

    XLA counts a loop's body only once, and a cuDNN kernel not at all.
    """
    if all(config.model.get(name) in (None, value) for name, value in UNROLLED.items()):
        return experiment
    config = config.copy_and_resolve_references()
    config.model.update({name: UNROLLED[name] for name in UNROLLED if name in config.model})
    return build(config)


def network_evaluations(config: ConfigDict, experiment: Experiment) -> float:
    """The cost of a step in forward passes of the network per image.

    A backward pass costs about two. Passes of teachers, targets and a fake score count too.
    """
    return step_flops(config, experiment) / forward_flops(config, experiment)


def network_shapes(experiment: Experiment) -> dict[str, Shapes]:
    """Parameter shapes of every network that a loss reads, by name."""
    objective = experiment.objective
    networks = {name: player.network for name, player in objective.players.items()}
    networks |= dict.fromkeys(objective.frozen, experiment.model.network)
    found = {name: jax.eval_shape(n.init, jax.random.key(0)) for name, n in networks.items()}
    found |= fixed_shapes(experiment)
    for name, follower in objective.followers.items():
        found[name] = found[follower.source]
    return found


class NoCpuError(ValueError):
    """JAX was started without the CPU backend."""


def count_flops(function: Callable[..., Any], *inputs: Any) -> float:
    """FLOPs of a function of arrays with these shapes, with every iteration of its loops.

    Counted for a CPU on any machine, because XLA counts before compilation only for CPUs. Raises
    ValueError if JAX has none.
    """
    try:
        (cpu, *_) = jax.local_devices(backend="cpu")
    except RuntimeError as error:
        raise NoCpuError(
            "FLOPs are counted for a CPU, and JAX was started without one; unset JAX_PLATFORMS, or "
            "add cpu to it"
        ) from error
    with jax.default_device(cpu):
        traced = jax.jit(function).trace(*inputs)
        return traced.lower().cost_analysis()["flops"] + further_flops(traced.jaxpr.jaxpr)


def further_flops(program: Jaxpr) -> float:
    """FLOPs of all iterations but one of a program's loops: XLA counts the body of a loop once.

    Of branches, the most costly one counts.
    """
    total = 0.0
    for each in program.eqns:
        inside = [further_flops(part) for part in programs_in(each.params.values())]
        if each.primitive.name == "scan":
            body, length = each.params["jaxpr"], each.params["length"]
            once = jax.jit(jaxpr_as_fun(body)).lower(*body.in_avals).cost_analysis()["flops"]
            total += (length - 1) * once + length * sum(inside)
        else:
            total += max(inside) if each.primitive.name == "cond" else sum(inside)
    return total


def least_seconds(config: ConfigDict, kind: str, devices: int) -> float | None:
    """Seconds of a training step at the peak FLOP/s of `devices` devices.

    Divided by the measured seconds, this is the model FLOPs utilisation, so what `model.remat`
    computes again does not count. kind: as in `accelerator_of`. None if the peak is unknown, or if
    JAX has no CPU backend to count FLOPs with.
    """
    accelerator = accelerator_of(kind)
    if accelerator is None:
        return None
    config = without_remat(config)
    try:
        count = step_flops(config, build(config))
    except NoCpuError:
        return None
    return count / (devices * accelerator.peak_flops(config.model.get("dtype", "float32")))


def without_remat(config: ConfigDict) -> ConfigDict:
    """The config of a network that keeps its activations."""
    if not config.model.get("remat"):
        return config
    config = config.copy_and_resolve_references()
    config.model.remat = False
    return config


def training_seconds(
    rows: Iterable[Mapping[str, float]], last_step: int, batch_size: int
) -> float | None:
    """Seconds of training up to a step, without evaluations and saves; None if not logged.

    Each row of the log has the speed since the row before.
    """
    seconds, before = 0.0, 0
    for row in rows:
        speed = row.get("images_per_second", 0.0)
        if speed > 0.0 and before < row["step"] <= last_step:
            seconds += (row["step"] - before) * batch_size / speed
            before = row["step"]
    return seconds if before else None
