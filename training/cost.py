"""What training costs: counted from its program before it is compiled, or as it was logged."""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from training.experiment import Experiment
from training.loop import abstract_batch, abstract_state, compile_step
from training.teacher import abstract_params


def step_flops(config: ConfigDict, experiment: Experiment, mesh: Mesh) -> float:
    """Floating-point operations of one training step; teachers need not be there."""
    objective, optimizers = experiment.objective, experiment.optimizers
    frozen = {name: abstract_params(experiment, mesh) for name in objective.frozen}
    objective = objective._replace(init_from={})
    state = abstract_state(objective, optimizers, config.seed, frozen, mesh)
    batch = abstract_batch(objective, config.batch_size, experiment.image_shape)
    lowered = compile_step(objective, optimizers, config.seed, mesh).lower(state, frozen, batch)
    return lowered.cost_analysis()["flops"]


def forward_flops(config: ConfigDict, experiment: Experiment, mesh: Mesh) -> float:
    """Floating-point operations of the network on one batch, forwards alone."""
    rows = (config.batch_size,)
    x = jax.ShapeDtypeStruct((*rows, *experiment.image_shape), jnp.float32)
    time = jax.ShapeDtypeStruct(rows, jnp.float32)
    condition = {"label": jax.ShapeDtypeStruct(rows, jnp.int32), "guidance_scale": time}
    network = experiment.model.network
    params = abstract_params(experiment, mesh)
    return jax.jit(network.apply).lower(params, x, time, time, condition).cost_analysis()["flops"]


def network_evaluations(config: ConfigDict, experiment: Experiment, mesh: Mesh) -> float:
    """Forward passes of the network, per image of the batch, that a step costs as much as.

    A backward pass counts as about two; evaluations of teachers, targets and a fake score count.
    """
    step, forward = (count(config, experiment, mesh) for count in (step_flops, forward_flops))
    return step / forward


def training_seconds(
    rows: Iterable[Mapping[str, float]], last_step: int, batch_size: int
) -> float | None:
    """Seconds of training up to a step, without evaluations and saves; None if none were logged.

    Each row of the log has the speed since the row before.
    """
    seconds, before = 0.0, 0
    for row in rows:
        if "images_per_second" in row and row["step"] <= last_step:
            seconds += (row["step"] - before) * batch_size / row["images_per_second"]
            before = row["step"]
    return seconds if before else None
