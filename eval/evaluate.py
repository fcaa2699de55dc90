"""One evaluation of a run: samples at each number of steps, measured against real images, shown.

Writes WORKDIR/eval/step_STEP.json and PNG grids beside it. Features are pixels here, which suits
small images; where an image has too many of them only the grids are made, and the result says so.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data import Dataset
from eval.agreement import Predict, fit_classifier, label_agreement
from eval.features import FEATURES
from eval.frechet import Statistics, frechet_distance, statistics
from eval.generate import BatchSampler, batch_sampler, cycle_labels, generate
from eval.grid import save_comparison, save_grid
from eval.kernel import kernel_distance
from eval.memorisation import fewest_held_out, memorisation
from eval.neighbours import manifold_metrics
from eval.results import save_results
from objectives.base import Params
from training.experiment import Experiment, check_guidance

FEATURE = "pixels"
FLOOR = "as many real images as samples, at most half of them, against the others"
# A Frechet distance on more dimensions takes minutes. Where there are fewer samples than dimensions
# it is biased, and comparable only with values of the same number of samples.
LARGEST_DIMENSION = 4096
# Real images for precision and recall, whose cost is a product of counts.
LARGEST_NEIGHBOURHOOD = 5_000
GRID_COLUMNS, GRID_IMAGES, COMPARED_IMAGES = 10, 100, 10
SEED = 0

# (parameters of the sampled network, step) -> results
Evaluate = Callable[[Params, int], dict[str, Any]]


class Reference(NamedTuple):
    """What samples are measured against. predict is None for data without classes.

    statistics: of all images. neighbourhood: features of some of them. train, held_out: features of
    the splits, held_out None if it is missing or too small to compare with.
    """

    statistics: Statistics
    neighbourhood: np.ndarray
    train: np.ndarray
    held_out: np.ndarray | None
    floor: float
    predict: Predict | None
    accuracy: float | None


def reference(dataset: Dataset, num_classes: int, num_samples: int) -> Reference:
    """Statistics of all real images, the distance of some of them from the others, a classifier.

    That distance, the floor, is of num_samples real images (at most half of all) in the place of
    samples, so that it has the same bias. The classifier is fitted on the training split; its
    accuracy is that on the held-out split.
    """
    splits = [dataset.train] + ([dataset.test] if dataset.test is not None else [])
    of_splits = [FEATURES[FEATURE](split.images) for split in splits]
    order = np.random.default_rng(SEED).permutation(sum(map(len, of_splits)))
    features = np.concatenate(of_splits)[order]
    cut, fewest = min(num_samples, len(features) // 2), fewest_held_out()
    predict = accuracy = None
    if num_classes > 1:
        predict = fit_classifier(dataset.train.images, dataset.train.labels)
        if dataset.test is not None:
            accuracy = label_agreement(predict, dataset.test.images, dataset.test.labels)
    return Reference(
        statistics=statistics(features),
        neighbourhood=features[:LARGEST_NEIGHBOURHOOD],
        train=of_splits[0],
        held_out=of_splits[1] if len(of_splits[-1]) >= fewest and len(splits) > 1 else None,
        floor=frechet_distance(statistics(features[:cut]), statistics(features[cut:])),
        predict=predict,
        accuracy=accuracy,
    )


def measure(images: np.ndarray, labels: np.ndarray, real: Reference) -> dict[str, float]:
    """Every metric of samples uint8 [N, H, W, C] with the labels they were made for."""
    features = FEATURES[FEATURE](images)
    kernel = kernel_distance(real.neighbourhood, features)
    metrics = {
        "frechet": frechet_distance(statistics(features), real.statistics),
        "kernel": kernel.value,
        "kernel_error": kernel.standard_error,
    }
    if real.predict is not None:
        metrics["agreement"] = label_agreement(real.predict, images, labels)
    metrics |= manifold_metrics(real.neighbourhood, features)._asdict()
    if real.held_out is not None:
        metrics["closer"] = memorisation(features, real.train, real.held_out).share_closer
    return metrics


def check_sampling(experiment: Experiment, config: ConfigDict, mesh: Mesh) -> None:
    """Raises ValueError, before any compute, if config.evaluate cannot be carried out."""
    fields = config.evaluate
    check_guidance(experiment, guidance_scale(experiment, config))
    if fields.batch_size % mesh.size:
        raise ValueError(
            f"evaluate.batch_size={fields.batch_size} is not divisible by the {mesh.size} devices"
        )
    if fields.num_samples < 5:
        raise ValueError(f"evaluate.num_samples={fields.num_samples} is too few to measure")
    objective = experiment.objective
    shapes = jax.eval_shape(objective.players[objective.generator].init, jax.random.key(0))
    rows = jax.ShapeDtypeStruct((mesh.size,), np.int32)
    for steps in fields.steps:
        jax.eval_shape(sampler_of(experiment, config, mesh, steps), shapes, rows, rows)


def guidance_scale(experiment: Experiment, config: ConfigDict) -> float:
    """evaluate.guidance_scale, or the objective's own."""
    scale = config.evaluate.guidance_scale
    return experiment.objective.guidance_scale if scale is None else scale


def sampler_of(experiment: Experiment, config: ConfigDict, mesh: Mesh, steps: int) -> BatchSampler:
    """The sampler of an evaluation, whose noise is that of config.seed."""
    return batch_sampler(
        experiment.objective,
        experiment.image_shape,
        mesh,
        seed=config.seed,
        steps=steps,
        guidance_scale=guidance_scale(experiment, config),
    )


def evaluator(
    experiment: Experiment, dataset: Dataset | None, config: ConfigDict, mesh: Mesh, workdir: Path
) -> Evaluate:
    """The function that evaluates parameters; real images are measured once, at its first call.

    Without a data set there are grids and no metrics.
    """
    fields = config.evaluate
    choices = np.arange(experiment.num_classes) if experiment.num_classes else np.array([-1])
    labels = cycle_labels(choices, fields.num_samples)
    samplers = {steps: sampler_of(experiment, config, mesh, steps) for steps in fields.steps}
    skipped = ""
    if dataset is None:
        skipped = f"the data set {config.data.name} is not here (--mode=prepare fetches it)"
    elif np.prod(experiment.image_shape) > LARGEST_DIMENSION:
        skipped = "too many pixels for pixel features"
    real = cache(lambda: reference(dataset, experiment.num_classes, fields.num_samples))

    def evaluate(params: Params, step: int) -> dict[str, Any]:
        images = {
            steps: generate(
                sampler, params, labels, batch_size=fields.batch_size, description=f"{steps} steps"
            )
            for steps, sampler in samplers.items()
        }
        results = {**facts(experiment, config, step), "by_steps": {}}
        if skipped:
            results["by_steps"] = {str(steps): {} for steps in images}
            results["skipped"] = f"metrics: {skipped}"
        elif jax.process_index() == 0:
            results |= measurements(images, labels, real())
        if jax.process_index() == 0:
            save(workdir / "eval", f"step_{step:08d}", results, images, dataset, config)
        return results

    return evaluate


def facts(experiment: Experiment, config: ConfigDict, step: int) -> dict[str, Any]:
    """How the samples of an evaluation are made."""
    return {
        "name": config.method,
        "data": config.data.name,
        "step": step,
        "images_seen": step * config.batch_size,
        "network": experiment.sample_with,
        "samples": config.evaluate.num_samples,
        "guidance_scale": guidance_scale(experiment, config),
        "seed": config.seed,
    }


def measurements(
    images: dict[int, np.ndarray], labels: np.ndarray, real: Reference
) -> dict[str, Any]:
    """Metrics by number of steps, and the same of real images."""
    results = {
        "feature": FEATURE,
        "floor": {"frechet": real.floor, "what": FLOOR},
        "by_steps": {str(steps): measure(made, labels, real) for steps, made in images.items()},
    }
    if real.accuracy is not None:
        results["classifier_accuracy"] = real.accuracy
    return results


def save(
    folder: Path,
    name: str,
    results: dict[str, Any],
    images: dict[int, np.ndarray],
    dataset: Dataset | None,
    config: ConfigDict,
) -> None:
    """The results as JSON, a grid per number of steps, and all of them beside real images."""
    save_results(folder / f"{name}.json", results)
    for steps, made in images.items():
        save_grid(folder / f"{name}_{steps}_steps.png", made[:GRID_IMAGES], columns=GRID_COLUMNS)
    rows = {
        f"{config.method}, {steps} step{'s' if steps > 1 else ''}": made[:COMPARED_IMAGES]
        for steps, made in images.items()
    }
    count = min(len(made) for made in rows.values())
    rows = {title: made[:count] for title, made in rows.items()}
    save_comparison(folder / f"{name}_comparison.png", rows | real_row(dataset, count))


def real_row(dataset: Dataset | None, count: int) -> dict[str, np.ndarray]:
    """Real images with the classes in turn, as the samples are; {} if there are too few."""
    if dataset is None:
        return {}
    labels = dataset.train.labels if dataset.num_classes else np.zeros(len(dataset.train.labels))
    classes = max(dataset.num_classes, 1)
    members = [np.flatnonzero(labels == c) for c in range(classes)]
    if min(map(len, members)) < -(-count // classes):
        return {}
    chosen = [members[i % classes][i // classes] for i in range(count)]
    return {"real": dataset.train.images[np.array(chosen)]}


def summary(results: dict[str, Any]) -> str:
    """Results as a table in plain text."""
    lines = [
        f"{results['name']} on {results['data']}, step {results['step']}, {results['network']}, "
        f"{results['samples']} samples, guidance {results['guidance_scale']:g}"
    ]
    names = list(next(iter(results["by_steps"].values()), ()))
    lines.append("  ".join([f"{'steps':>7}", *(f"{name:>7}" for name in names)]))
    for steps, metrics in results["by_steps"].items():
        numbers = [f"{metrics[name]:{max(7, len(name))}.3f}" for name in names]
        lines.append("  ".join([f"{steps:>7}", *numbers]))
    if "floor" in results:
        lines.append(f"  real images in their place: frechet {results['floor']['frechet']:.3f}")
    if "classifier_accuracy" in results:
        lines.append(f"  the classifier on held-out ones: {results['classifier_accuracy']:.3f}")
    if "skipped" in results:
        lines.append(f"  skipped {results['skipped']}")
    return "\n".join(lines)
