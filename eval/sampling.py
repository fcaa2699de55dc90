"""Samplers and diagnostics of an evaluation."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fewstep.eval.metrics import METRICS
from fewstep.objectives.base import Params
from fewstep.samplers.grids import named_steps
from fewstep.training.experiment import Experiment, check_guidance
from fewstep.training.generate import BatchSampler, batch_sampler, map_batches

# (parameters, sampling steps) -> numbers by name
Diagnose = Callable[[Params, int], Mapping[str, float]]


def check_sampling(experiment: Experiment, config: ConfigDict, mesh: Mesh) -> None:
    """Raises ValueError if an evaluation cannot make its samples or diagnostics."""
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
        with named_steps(f"evaluate.steps={tuple(fields.steps)}"):
            sampler = evaluation_sampler(experiment, config, mesh, steps)
            jax.eval_shape(sampler, shapes, rows, rows)
        if objective.diagnostics:
            make = evaluation_sampler(diagnostics_experiment(experiment), config, mesh, steps)
            check_row_counts(jax.eval_shape(make, shapes, rows, rows), mesh.size)


def check_row_counts(values: Mapping[str, Any], count: int) -> None:
    """Raises ValueError unless each array has `count` rows, one for each sample."""
    wrong = {name: value.shape for name, value in values.items() if value.shape[:1] != (count,)}
    if wrong:
        raise ValueError(
            f"diagnostics of {count} samples have the shapes {wrong}; give each sample a row"
        )


def guidance_scale(experiment: Experiment, config: ConfigDict) -> float:
    """evaluate.guidance_scale; if that is None, the objective's own scale."""
    scale = config.evaluate.guidance_scale
    return experiment.objective.guidance_scale if scale is None else scale


def evaluation_sampler(
    experiment: Experiment, config: ConfigDict, mesh: Mesh, steps: int
) -> BatchSampler:
    """The sampler of an evaluation; its noise depends on config.seed."""
    return batch_sampler(
        experiment.objective,
        experiment.space.shape,
        mesh,
        seed=config.seed,
        steps=steps,
        guidance_scale=guidance_scale(experiment, config),
    )


def diagnostics_experiment(experiment: Experiment) -> Experiment:
    """The experiment with the rows of its diagnostics in place of samples."""
    objective = experiment.objective
    return experiment._replace(objective=objective._replace(sample=objective.diagnostics.rows))


def diagnoser(
    experiment: Experiment, config: ConfigDict, mesh: Mesh, labels: np.ndarray
) -> Diagnose:
    """The function that computes an objective's diagnostics; {} for an objective without them.

    labels: [N], those of the samples; each row starts from the noise of its sample. The function
    raises ValueError for a diagnostic that has the name of a metric.
    """
    diagnostics = experiment.objective.diagnostics
    if diagnostics is None:
        return lambda params, steps: {}
    making = diagnostics_experiment(experiment)
    makers = {
        steps: evaluation_sampler(making, config, mesh, steps) for steps in config.evaluate.steps
    }

    def diagnose(params: Params, steps: int) -> dict[str, float]:
        size, description = config.evaluate.batch_size, f"{steps} steps, diagnostics"
        batches = map_batches(makers[steps], params, labels, size, description)
        rows = jax.tree.map(lambda *parts: np.concatenate(parts), *batches)
        numbers = {name: float(value) for name, value in diagnostics.numbers(rows).items()}
        if METRICS.keys() & numbers:
            raise ValueError(
                f"diagnostics have names of metrics: {', '.join(METRICS.keys() & numbers)}; "
                "rename them"
            )
        return numbers

    return diagnose
