"""Evaluates a run: samples it at each number of steps, measures the samples, and shows the first.

For each number of steps this writes three files to WORKDIR/eval, named by the id of the protocol:
ID.json has the result, ID.npz the first samples, and ID.png a picture of them. One more picture
compares all numbers of steps.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fewstep.data import Dataset, data_root
from fewstep.eval.checks import reason_to_skip
from fewstep.eval.corrections import corrector, gradient_counts
from fewstep.eval.measure import Measures, load_measures, measure
from fewstep.eval.new_result import (
    add_numbers,
    add_rows,
    evaluation_protocol,
    new_result,
    training_data_digest,
)
from fewstep.eval.pictures import originals, save_comparison, save_evaluation
from fewstep.eval.points import collapse_warnings, modes_of_batches
from fewstep.eval.reference import measured_against
from fewstep.eval.report.evaluation import FOLDER
from fewstep.eval.report.results import Result
from fewstep.eval.sampling import (
    Wanted,
    at_each_scale,
    diagnoser,
    evaluation_sampler,
    guidance_scale,
    wanted_samples,
)
from fewstep.eval.trajectory import trajectory
from fewstep.files import writing
from fewstep.objectives.base import Params
from fewstep.objectives.stages import allowed_sampling_steps, stage_ends
from fewstep.training.experiment import Experiment
from fewstep.training.generate import finish_together, generate
from fewstep.training.storage.identity import read_identity

# (parameters of the network that samples, training step) -> one result for each number of sampling
# steps that the stage of this training step allows
Evaluate = Callable[[Params, int], list[Result]]


def prepare_measures(
    experiment: Experiment,
    dataset: Dataset | None,
    config: ConfigDict,
    mesh: Mesh,
    wanted: Wanted,
    writable: bool = True,
) -> Measures | None:
    """The measures of a config's evaluations, read from files or made now.

    Returns None if evaluations measure nothing: without a data set and without a file of
    statistics, an evaluation has pictures but no metrics. Writes what it makes to data.dir, or to
    the user's own data folder if data.dir is not writable.
    wanted: what is sampled.
    """
    if not config.evaluate.steps or reason_to_skip(dataset, config):
        return None
    pictures, reference = measured_against(config, dataset, writable)
    fields = config.evaluate.copy_and_resolve_references()
    fields.reference = reference
    foreign = is_foreign(pictures, dataset)
    fields.agreement = fields.agreement and not foreign
    measures = load_measures(
        fields,
        pictures,
        space=experiment.space,
        num_classes=experiment.num_classes,
        samples=len(wanted.labels),
        labels=wanted.rule,
        root=data_root(config.data.dir if writable else ""),
        read_only=None if writable else data_root(config.data.dir),
        mesh=mesh,
    )
    return without_training_images(measures) if foreign else measures


def is_foreign(pictures: Dataset | None, dataset: Dataset | None) -> bool:
    """Whether the pictures of the reference are others than those that the run learns.

    dataset: that of the run; one of latents has no pictures, and the reference has them.
    """
    if pictures is None or pictures is dataset:
        return False
    return dataset is None or (dataset.has_pictures and pictures.digest != dataset.digest)


def without_training_images(measures: Measures) -> Measures:
    """The measures without what looks for copies of training images."""
    none = measures.real.train[:0]
    return measures._replace(real=measures.real._replace(train=none, held_out=none))


def sample_count(config: ConfigDict, step: int) -> int:
    """The number of samples to measure after a training step; the last has a number of its own."""
    final = config.evaluate.final_samples
    return final if final and step >= config.steps else config.evaluate.num_samples


def evaluator(
    experiment: Experiment,
    dataset: Dataset | None,
    config: ConfigDict,
    mesh: Mesh,
    workdir: Path,
    writable: bool = True,
    **options: Any,
) -> Evaluate:
    """`scale_evaluator`, of each guidance scale in turn; returns the results of the first.

    The first scale comes last, so that its pictures stay and its results are the newest.
    """
    own = [
        scale_evaluator(experiment, dataset, each, mesh, workdir, writable, **options)
        for each in reversed(at_each_scale(config))
    ]
    return lambda params, step: [evaluate(params, step) for evaluate in own][-1]


def scale_evaluator(
    experiment: Experiment,
    dataset: Dataset | None,
    config: ConfigDict,
    mesh: Mesh,
    workdir: Path,
    writable: bool = True,
    *,
    samples: int | None = None,
    out: Path | None = None,
    show: Callable[[Sequence[Result]], None] = lambda results: None,
) -> Evaluate:
    """The function that evaluates parameters at one guidance scale. Makes its measures first.

    writable: whether measures may be written to data.dir. samples: their number, by default
    evaluate.num_samples. out: folder of the results, by default WORKDIR/eval. show: called with the
    results before they are written, since writing may fail.
    """
    fields = config.evaluate
    samples = fields.num_samples if samples is None else samples
    wanted = wanted_samples(experiment, config, dataset, workdir, samples)
    measures = prepare_measures(experiment, dataset, config, mesh, wanted, writable)
    evaluate_in = steps_evaluator(experiment, dataset, config, mesh, workdir, wanted, measures)
    save = saver(experiment, dataset, config, wanted, out or workdir / FOLDER)

    def evaluate(params: Params, step: int) -> list[Result]:
        allowed = allowed_sampling_steps(experiment.objective.stages, step, fields.steps)
        found = {steps: evaluate_in(steps, params, step) for steps in allowed}
        results = [each.result for each in found.values()]
        if jax.process_index() == 0 and results:
            show(results)
            save(params, step, found)
        return results

    return evaluate


class Evaluated(NamedTuple):
    """The result for one number of sampling steps, and the first samples, finished: [n, ...]."""

    result: Result
    x: np.ndarray


def steps_evaluator(
    experiment: Experiment,
    dataset: Dataset | None,
    config: ConfigDict,
    mesh: Mesh,
    workdir: Path,
    wanted: Wanted,
    measures: Measures | None,
) -> Callable[[int, Params, int], Evaluated]:
    """The function (sampling steps, parameters, training step) -> result and first samples."""
    fields, space, labels = config.evaluate, experiment.space, wanted.labels
    samplers = {
        steps: evaluation_sampler(experiment, config, mesh, steps, wanted.images)
        for steps in fields.steps
    }
    diagnose = diagnoser(experiment, config, mesh, wanted)
    correct = corrector(experiment, config, mesh, wanted, measures)
    gradients = gradient_counts(experiment, config)
    run = read_identity(workdir)
    data = training_data_digest(experiment, dataset, run)

    def evaluate_in(steps: int, params: Params, step: int) -> Evaluated:
        made = generate(samplers[steps], params, labels, fields.batch_size, f"{steps} steps")
        first: list[np.ndarray] = []
        finished = map(partial(finish_together, space.finish), made)
        batches = keep_first(finished, first, space.shown)
        protocol = evaluation_protocol(experiment, config, step, steps, measures, data, len(labels))
        result = new_result(config, protocol, measures, run.id if run else "")
        if measures is None:
            result["skipped"] = reason_to_skip(dataset, config)
            add_numbers(result, modes_of_batches(batches, experiment.model.density))
        else:
            add_numbers(result, measure(batches, labels, measures))
            result["warnings"] += collapse_warnings(result["metrics"], result["real"])
        add_numbers(result, {**diagnose(params, steps), **gradients.get(steps, {})})
        add_rows(result, correct(params, steps))
        return Evaluated(result, np.concatenate(first)[: space.shown])

    return evaluate_in


def saver(
    experiment: Experiment,
    dataset: Dataset | None,
    config: ConfigDict,
    wanted: Wanted,
    folder: Path,
) -> Callable[[Params, int, Mapping[int, Evaluated]], None]:
    """The function (parameters, training step, {sampling steps: evaluated}) that writes files."""
    space, labels, stages = experiment.space, wanted.labels, experiment.objective.stages
    ends = (*stage_ends(stages, config.steps), config.steps)
    measured = (allowed_sampling_steps(stages, end, config.evaluate.steps) for end in ends)
    trajectories = {
        steps: image_trajectory(experiment, config, steps, int(labels[0]))
        for steps in {max(allowed) for allowed in measured if allowed}
    }

    def save(params: Params, step: int, found: Mapping[int, Evaluated]) -> None:
        with writing(folder):
            folder.mkdir(exist_ok=True, parents=True)
        trace = trajectories[max(found)]
        way = trace(params) if trace else ()
        for result, x in found.values():
            save_evaluation(folder, result, space, x=x, y=labels[: space.shown], way=way)
        real = originals(wanted, dataset, space.compared)
        shown = {steps: each.x for steps, each in found.items()}
        save_comparison(folder / f"step_{step:08d}.png", shown, real, config, space)

    return save


def keep_first(
    batches: Iterable[np.ndarray], first: list[np.ndarray], count: int
) -> Iterator[np.ndarray]:
    """Yields the batches, and appends those with the first `count` samples to `first`."""
    for samples in batches:
        if sum(map(len, first)) < count:
            first.append(samples)
        yield samples


def image_trajectory(
    experiment: Experiment, config: ConfigDict, steps: int, label: int
) -> Callable[[Params], np.ndarray] | None:
    """The function that computes the first sample's trajectory in `steps` sampling steps.

    None if several processes sample, if a single sample has no picture, or without noise.
    """
    unseen = experiment.space.image is None or experiment.objective.reconstructs
    if jax.process_count() > 1 or unseen:
        return None
    return trajectory(
        config,
        steps=steps,
        guidance_scale=guidance_scale(experiment, config),
        label=label,
    )
