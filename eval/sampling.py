"""How an evaluation samples a network, and what the network's objective tells of it."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fewstep.eval.metrics import METRICS
from fewstep.objectives.base import Params
from fewstep.training.experiment import Experiment, check_guidance
from fewstep.training.generate import BatchSampler, batch_sampler, in_batches

# (parameters, sampling steps) -> numbers by name
Diagnose = Callable[[Params, int], Mapping[str, float]]


def check_sampling(experiment: Experiment, config: ConfigDict, mesh: Mesh) -> None:
    """Raises ValueError if the samples of an evaluation, or diagnostics, cannot be made."""
    fields = config.evaluate
    check_guidance(experiment, guidance_scale(experiment, config))
    if fields.batch_size < 1 or fields.batch_size % mesh.size:
        raise ValueError(
            f"evaluate.batch_size={fields.batch_size} is no multiple of the {mesh.size} devices"
        )
    objective = experiment.objective
    shapes = jax.eval_shape(objective.players[objective.generator].network.init, jax.random.key(0))
    rows = jax.ShapeDtypeStruct((mesh.size,), np.int32)
    for steps in fields.steps:
        jax.eval_shape(sampler_of(experiment, config, mesh, steps), shapes, rows, rows)
        if objective.diagnostics:
            make = sampler_of(diagnosing(experiment), config, mesh, steps)
            check_rows(jax.eval_shape(make, shapes, rows, rows), mesh.size)


def check_rows(values: Mapping[str, Any], count: int) -> None:
    """Raises ValueError unless each array has one row for each of `count` samples."""
    wrong = {name: value.shape for name, value in values.items() if value.shape[:1] != (count,)}
    if wrong:
        raise ValueError(f"diagnostics of {count} samples have the shapes {wrong}; give each a row")


def guidance_scale(experiment: Experiment, config: ConfigDict) -> float:
    """evaluate.guidance_scale, or the objective's own."""
    scale = config.evaluate.guidance_scale
    return experiment.objective.guidance_scale if scale is None else scale


def sampler_of(experiment: Experiment, config: ConfigDict, mesh: Mesh, steps: int) -> BatchSampler:
    """The sampler of an evaluation, whose noise is that of config.seed."""
    return batch_sampler(
        experiment.objective,
        experiment.space.shape,
        mesh,
        seed=config.seed,
        steps=steps,
        guidance_scale=guidance_scale(experiment, config),
    )


def diagnosing(experiment: Experiment) -> Experiment:
    """The experiment whose samples are the rows of its objective's diagnostics."""
    objective = experiment.objective
    return experiment._replace(objective=objective._replace(sample=objective.diagnostics.rows))


def diagnoser(
    experiment: Experiment, config: ConfigDict, mesh: Mesh, labels: np.ndarray
) -> Diagnose:
    """What tells the numbers of an objective's diagnostics; none if it has no diagnostics.

    labels: [N] of the samples, one row each, from the same noise. Raises ValueError for a number
    that has the name of a metric.
    """
    diagnostics = experiment.objective.diagnostics
    if diagnostics is None:
        return lambda params, steps: {}
    making = diagnosing(experiment)
    makers = {steps: sampler_of(making, config, mesh, steps) for steps in config.evaluate.steps}

    def diagnose(params: Params, steps: int) -> dict[str, float]:
        size, description = config.evaluate.batch_size, f"{steps} steps, diagnostics"
        batches = in_batches(makers[steps], params, labels, size, description)
        rows = jax.tree.map(lambda *parts: np.concatenate(parts), *batches)
        numbers = {name: float(value) for name, value in diagnostics.numbers(rows).items()}
        if METRICS.keys() & numbers:
            raise ValueError(
                f"diagnostics have names of metrics: {', '.join(METRICS.keys() & numbers)}"
            )
        return numbers

    return diagnose
