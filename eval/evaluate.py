"""Evaluates a run: samples it at each number of steps, measures the samples, and shows the first.

For each number of steps this writes three files to WORKDIR/eval, named by the id of the protocol:
ID.json has the result, ID.npz the first samples, and ID.png a picture of them. One more picture
compares all numbers of steps.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fewstep.data import Dataset, data_root, short_hash
from fewstep.eval.checks import reason_to_skip
from fewstep.eval.corrections import corrector, gradient_counts
from fewstep.eval.measure import Measures, bias_warnings, load_measures, measure, real_image_metrics
from fewstep.eval.metrics.protocol import Protocol
from fewstep.eval.pictures import originals, save_comparison, save_evaluation
from fewstep.eval.points import collapse_warnings
from fewstep.eval.reference import measured_against
from fewstep.eval.report.evaluation import FOLDER
from fewstep.eval.report.results import (
    ROWS,
    Result,
    is_usual_number,
)
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
from fewstep.training.sources import reads_data
from fewstep.training.storage.identity import Identity, as_dict, flatten_fields, read_identity

# Fields of an objective that decide how it samples.
SAMPLED_BY = ("solver", "spacing", "sample_times", "guided_channels")

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
    pictures, reference = measured_against(config, dataset)
    fields = config.evaluate.copy_and_resolve_references()
    fields.reference = reference
    return load_measures(
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
    fields, space = config.evaluate, experiment.space
    samples = fields.num_samples if samples is None else samples
    wanted = wanted_samples(experiment, config, dataset, workdir, samples)
    labels, samples = wanted.labels, len(wanted.labels)
    samplers = {
        steps: evaluation_sampler(experiment, config, mesh, steps, wanted.images)
        for steps in fields.steps
    }
    diagnose = diagnoser(experiment, config, mesh, wanted)
    measures = prepare_measures(experiment, dataset, config, mesh, wanted, writable)
    correct = corrector(experiment, config, mesh, wanted, measures)
    gradients = gradient_counts(experiment, config)
    run = read_identity(workdir)
    data = training_data_digest(experiment, dataset, run)
    stages = experiment.objective.stages
    ends = (*stage_ends(stages, config.steps), config.steps)
    measured = (allowed_sampling_steps(stages, end, fields.steps) for end in ends)
    largest = {max(steps) for steps in measured if steps}
    trajectories = {
        steps: image_trajectory(experiment, config, steps, int(labels[0])) for steps in largest
    }

    def evaluate(params: Params, step: int) -> list[Result]:
        results, shown = [], {}
        for steps in allowed_sampling_steps(stages, step, fields.steps):
            sampler = samplers[steps]
            description = f"{steps} steps"
            made = generate(sampler, params, labels, fields.batch_size, description)
            first: list[np.ndarray] = []
            finished = map(partial(finish_together, space.finish), made)
            batches = keep_first(finished, first, space.shown)
            protocol = evaluation_protocol(experiment, config, step, steps, measures, data, samples)
            result = result_without_metrics(config, protocol, measures, run.id if run else "")
            if measures is None:
                deque(batches, maxlen=0)
                result["skipped"] = reason_to_skip(dataset, config)
            else:
                result["metrics"] = measure(batches, labels, measures)
                result["warnings"] += collapse_warnings(result["metrics"], result["real"])
            add_diagnostics(result, {**diagnose(params, steps), **gradients.get(steps, {})})
            add_rows(result, correct(params, steps))
            results.append(result)
            shown[steps] = np.concatenate(first)[: space.shown]
        if jax.process_index() == 0 and results:
            show(results)
            folder = out or workdir / FOLDER
            with writing(folder):
                folder.mkdir(exist_ok=True, parents=out is not None)
            trace = trajectories[max(shown)]
            way = trace(params) if trace else ()
            for result, x in zip(results, shown.values(), strict=True):
                save_evaluation(folder, result, space, x=x, y=labels[: space.shown], way=way)
            real = originals(wanted, dataset, space.compared)
            save_comparison(folder / f"step_{step:08d}.png", shown, real, config, space)
        return results

    return evaluate


def add_diagnostics(result: dict[str, Any], numbers: Mapping[str, float]) -> None:
    """Add diagnostics to the metrics of a result. Warn of those not finite, or too large."""
    finite = {name: value for name, value in numbers.items() if is_usual_number(value)}
    result["metrics"] |= finite
    odd = [name for name in numbers if name not in finite]
    result["warnings"] += [f"{name} is not finite, or too large" for name in odd]


def add_rows(result: dict[str, Any], rows: Mapping[str, Mapping[str, float]]) -> None:
    """Add corrected rows to a result. Warn of those that collapsed."""
    result["rows"] = rows
    for name, row in rows.items():
        found = collapse_warnings(row, result["real"])
        result["warnings"] += [f"{ROWS[name]}: {warning}" for warning in found]


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


def training_data_digest(
    experiment: Experiment, dataset: Dataset | None, run: Identity | None
) -> str:
    """Digest of the data that a run trains on: the recorded one, else that of the data set.

    "" if the run reads no images, or if neither is known.
    """
    if not reads_data(experiment.objective):
        return ""
    if run is not None and run.data is not None:
        return short_hash(run.data)
    return "" if dataset is None else dataset.digest


def evaluation_protocol(
    experiment: Experiment,
    config: ConfigDict,
    step: int,
    steps: int,
    measures: Measures | None,
    training_data: str = "",
    samples: int = 0,
) -> Protocol:
    """The protocol of samples in `steps` sampling steps, after training step `step`.

    training_data: digest of the data that the network was trained on, "" if unknown. samples: their
    number, on which the diagnostics of an objective depend.
    """
    solver = config.objective.get("solver", {"name": config.objective.name})
    details = {name: config.objective[name] for name in SAMPLED_BY if name in config.objective}
    return Protocol(
        measurement={} if measures is None else measures.measurement,
        sampling={
            "method": config.method,
            "network": experiment.sample_with,
            "step": step,
            "sampler": solver["name"],
            "sampler_fields": fields_with_values(ConfigDict(details)),
            "steps": steps,
            "guidance_scale": guidance_scale(experiment, config),
            "seed": config.seed,
            **({"training_data": training_data} if training_data else {}),
            **({"diagnosed": samples} if experiment.objective.diagnostics else {}),
        },
    )


def result_without_metrics(
    config: ConfigDict, protocol: Protocol, measures: Measures | None, run: str
) -> dict[str, Any]:
    """A result whose metrics are still empty. run: id of the run, "" if it is not known."""
    return {
        "id": protocol.id,
        "metric": protocol.metric,
        "data": config.data.name,
        "images_seen": protocol.sampling["step"] * config.batch_size,
        "protocol": protocol._asdict(),
        "metrics": {},
        "real": {} if measures is None else real_image_metrics(measures),
        "prior": {} if measures is None else {**measures.known.get("prior", {})},
        "warnings": [] if measures is None else bias_warnings(measures),
        "run": run,
    }


def fields_with_values(config: ConfigDict) -> dict[str, Any]:
    """The fields that are not None, by dotted name, without the names of parts."""
    fields = flatten_fields(as_dict(config))
    return {k: v for k, v in fields.items() if v is not None and not k.endswith("name")}
