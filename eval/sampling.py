"""What an evaluation samples, and its samplers and diagnostics."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fewstep.data import Dataset, proportional_labels
from fewstep.eval.metrics import METRICS
from fewstep.eval.reference import SEED
from fewstep.objectives.base import Params
from fewstep.samplers.grids import named_steps
from fewstep.training.experiment import Experiment, check_guidance
from fewstep.training.generate import BatchSampler, batch_sampler, image_sampler, map_batches
from fewstep.training.labels import describe_label_shares, label_counts

# (parameters, sampling steps) -> numbers by name
Diagnose = Callable[[Params, int], Mapping[str, float]]


class Wanted(NamedTuple):
    """What an evaluation samples.

    labels: [N], of the samples. rule: how they get their labels, in words. images: those to
    reconstruct, as stored [N, ...]; None for samples from noise.
    """

    labels: np.ndarray
    rule: str
    images: np.ndarray | None = None


def wanted_samples(
    experiment: Experiment, config: ConfigDict, dataset: Dataset | None, run: Path, samples: int
) -> Wanted:
    """What an evaluation of that many samples makes; at most all held-out images, if it
    reconstructs, in random order.

    run: its folder. Raises ValueError if there are no images to reconstruct.
    """
    if not experiment.objective.reconstructs:
        counts = label_counts(config, dataset, run)
        return Wanted(proportional_labels(counts, samples), describe_label_shares(counts))
    if dataset is None:
        raise ValueError(
            f"{config.method} is evaluated on images, and the data set {config.data.name} is not "
            "here; prepare it (--mode=prepare)"
        )
    name, split = ("train", dataset.train) if dataset.test is None else ("test", dataset.test)
    total = len(split.labels)
    # Images of folders come in the order of their classes.
    rows = np.random.default_rng(SEED).permutation(total)[:samples]
    which = f"a random part of the {name} images" if samples < total else f"the {name} images"
    labels = np.asarray(split.labels[rows])
    return Wanted(labels, f"of {which}, reconstructed", split.images[rows])


def check_sampling(experiment: Experiment, config: ConfigDict, mesh: Mesh) -> None:
    """Raises ValueError if an evaluation cannot make its samples or diagnostics."""
    scales = guidance_scales(experiment, config)
    if len(set(scales)) < len(scales):
        raise ValueError(f"evaluate.guidance_scale={scales} has a scale twice; name each once")
    for own in at_each_scale(config):
        check_one_scale(experiment, own, mesh)


def check_one_scale(experiment: Experiment, config: ConfigDict, mesh: Mesh) -> None:
    """`check_sampling` for one guidance scale."""
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


def guidance_scales(experiment: Experiment, config: ConfigDict) -> tuple[float, ...]:
    """evaluate.guidance_scale, one or several; if that is None, the objective's own scale."""
    asked = config.evaluate.guidance_scale
    if asked is None:
        return (experiment.objective.guidance_scale,)
    return tuple(map(float, asked if isinstance(asked, list | tuple) else (asked,)))


def guidance_scale(experiment: Experiment, config: ConfigDict) -> float:
    """The first of `guidance_scales`."""
    return guidance_scales(experiment, config)[0]


def at_each_scale(config: ConfigDict) -> list[ConfigDict]:
    """The config with each of its guidance scales alone, in their order; [config] for one."""
    asked = config.evaluate.guidance_scale
    if not isinstance(asked, list | tuple):
        return [config]
    configs = [config.copy_and_resolve_references() for _ in asked]
    for own, scale in zip(configs, asked, strict=True):
        with own.ignore_type():
            own.evaluate.guidance_scale = scale
    return configs


def evaluation_sampler(
    experiment: Experiment,
    config: ConfigDict,
    mesh: Mesh,
    steps: int,
    images: np.ndarray | None = None,
) -> BatchSampler:
    """The sampler of an evaluation; its noise depends on config.seed.

    images: those to reconstruct, as stored [N, ...]; None samples from noise.
    """
    if images is not None:
        return image_sampler(experiment.objective, experiment.space, images, mesh, steps=steps)
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


def diagnoser(experiment: Experiment, config: ConfigDict, mesh: Mesh, wanted: Wanted) -> Diagnose:
    """The function that computes an objective's diagnostics; {} for an objective without them.

    wanted: what is sampled; each row starts from the noise or the image of its sample. The function
    raises ValueError for a diagnostic that has the name of a metric.
    """
    diagnostics = experiment.objective.diagnostics
    if diagnostics is None:
        return lambda params, steps: {}
    making = diagnostics_experiment(experiment)
    makers = {
        steps: evaluation_sampler(making, config, mesh, steps, wanted.images)
        for steps in config.evaluate.steps
    }

    def diagnose(params: Params, steps: int) -> dict[str, float]:
        size, description = config.evaluate.batch_size, f"{steps} steps, diagnostics"
        batches = map_batches(makers[steps], params, wanted.labels, size, description)
        rows = jax.tree.map(lambda *parts: np.concatenate(parts), *batches)
        numbers = {name: float(value) for name, value in diagnostics.numbers(rows).items()}
        if METRICS.keys() & numbers:
            raise ValueError(
                f"diagnostics have names of metrics: {', '.join(METRICS.keys() & numbers)}; "
                "rename them"
            )
        return numbers

    return diagnose
