"""Evaluates a run: samples it at each number of steps, measures the samples, and shows the first.

For each number of steps this writes three files to WORKDIR/eval, named by the id of the protocol:
ID.json has the result, ID.npz the first samples, and ID.png a picture of them. One more picture
compares all numbers of steps.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fewstep.data import NONE, Dataset, data_root, short_hash
from fewstep.data.spaces.space import Space
from fewstep.densities.table import density_of
from fewstep.eval.corrections import check_rows, corrector, gradient_counts
from fewstep.eval.features import networks
from fewstep.eval.features.feature_network import check_dimension
from fewstep.eval.features.networks import check_feature_network, check_takes_samples
from fewstep.eval.measure import Measures, bias_warnings, load_measures, measure, real_image_metrics
from fewstep.eval.metrics.protocol import Protocol
from fewstep.eval.points import collapse_warnings
from fewstep.eval.reference import SPLITS, check_reference, measured_against
from fewstep.eval.report.evaluation import FOLDER, sample_source
from fewstep.eval.report.results import (
    ROWS,
    Result,
    is_usual_number,
    save_results,
    to_json_types,
)
from fewstep.eval.sampling import (
    Wanted,
    at_each_scale,
    check_sampling,
    diagnoser,
    evaluation_sampler,
    guidance_scale,
    wanted_samples,
)
from fewstep.eval.trajectory import trajectory
from fewstep.files import write_png, writing
from fewstep.objectives.base import Params
from fewstep.objectives.stages import allowed_sampling_steps, stage_ends
from fewstep.training.codec_weights import load_codec
from fewstep.training.experiment import Experiment
from fewstep.training.generate import finish_together, generate
from fewstep.training.sources import reads_data
from fewstep.training.storage.identity import Identity, as_dict, flatten_fields, read_identity
from fewstep.training.storage.seal import write_sealed

# Fields of an objective that decide how it samples.
SAMPLED_BY = ("solver", "spacing", "sample_times", "guided_channels")
GRID_COLUMNS = 10
FEWEST_SAMPLES = 5
CLASSIFIER = "classifier"

# (parameters of the network that samples, training step) -> one result for each number of sampling
# steps that the stage of this training step allows
Evaluate = Callable[[Params, int], list[Result]]


def check_evaluation(
    experiment: Experiment, dataset: Dataset | None, config: ConfigDict, mesh: Mesh
) -> None:
    """Raises an error, before any compute, if an evaluation by config.evaluate would fail."""
    fields = config.evaluate
    if not fields.steps:
        return
    repeated = [steps for steps, count in Counter(fields.steps).items() if count > 1]
    if repeated:
        raise ValueError(
            f"evaluate.steps={tuple(fields.steps)} has {repeated[0]} more than once; name each "
            "number of steps once, in one flag, since a second flag adds to the first"
        )
    check_takes_samples(fields.features, experiment.space)
    check_sampling(experiment, config, mesh)
    for name in ("num_samples", "final_samples"):
        if 0 < fields.get(name, 0) < FEWEST_SAMPLES:
            raise ValueError(
                f"evaluate.{name}={fields[name]} is too few; use {FEWEST_SAMPLES} or more"
            )
    if config.codec.name:
        load_codec(config)  # raises its errors
    check_pictures(experiment.space)
    check_rows(experiment, config)
    if not reason_to_skip(dataset, config):
        check_feature_network(fields.features, fields.weights)
        pictures, reference = measured_against(config, dataset)
        check_reference(reference, pictures, fields.features, experiment.space)
        check_pictures_to_learn(config, pictures)
        check_dimension(fields.features, experiment.space)
        check_agreement(experiment, config)


def check_pictures(space: Space) -> None:
    """Raises ValueError if samples have no picture, such as latents of four channels."""
    shape, dtype = space.example
    try:
        space.show(np.zeros((1, *shape), dtype), GRID_COLUMNS)
    except ValueError as error:
        raise ValueError(
            f"samples of this run have no picture ({error}); use evaluate.steps=() to train "
            "without evaluations"
        ) from error


def check_pictures_to_learn(config: ConfigDict, dataset: Dataset | None) -> None:
    """Raises ValueError if a classifier shall learn from a data set without pictures."""
    fields = config.evaluate
    if dataset is None or dataset.has_pictures:
        return
    for name, asked, instead in (
        ("features=classifier", fields.features == CLASSIFIER, "features=inception"),
        ("agreement=True", fields.agreement, "agreement=False"),
    ):
        if asked:
            raise ValueError(
                f"evaluate.{name} needs a classifier of pictures, and {dataset.name} has latents "
                f"alone; use evaluate.{instead}, or a folder of the pictures as evaluate.reference"
            )


def check_agreement(experiment: Experiment, config: ConfigDict) -> None:
    """Raises ValueError if the classifier for label agreement cannot take the samples."""
    space = experiment.space
    if config.evaluate.agreement and CLASSIFIER not in space.features:
        raise ValueError(
            f"evaluate.agreement=True needs the {CLASSIFIER}, which cannot take {space.name}; use "
            "evaluate.agreement=False"
        )


def reason_to_skip(dataset: Dataset | None, config: ConfigDict) -> str:
    """The reason why an evaluation measures nothing; "" if it measures."""
    if config.evaluate.features == networks.NONE:
        return f"metrics: evaluate.features={networks.NONE}"
    if dataset is None and config.evaluate.reference in SPLITS:
        if config.data.name == NONE:
            return "metrics: data.name=none has no real images"
        if density_of(config.data.name):
            return f"metrics against exact samples, which {config.data.name} does not have"
        return f"metrics: the data set {config.data.name} is not here (--mode=prepare fetches it)"
    return ""


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
            result["rows"] = correct(params, steps)
            for name, row in result["rows"].items():
                found = collapse_warnings(row, result["real"])
                result["warnings"] += [f"{ROWS[name]}: {warning}" for warning in found]
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


def save_evaluation(
    folder: Path, result: Result, space: Space, *, x: np.ndarray, **others: np.ndarray
) -> None:
    """Writes a result as JSON, and its first samples as arrays and as a picture.

    x: the samples [n, ...], finished. others: further arrays of the file.
    """
    path = folder / f"{result['id']}.json"
    write_sealed(path.with_suffix(".npz"), sample_source(to_json_types(result)), x=x, **others)
    write_png(path.with_suffix(".png"), space.show(x, GRID_COLUMNS))
    save_results(path, result)


def save_comparison(
    path: Path,
    samples: Mapping[int, np.ndarray],
    real: Mapping[str, np.ndarray],
    config: ConfigDict,
    space: Space,
) -> None:
    """Writes one picture of the first samples at each number of steps, and of real examples.

    All samples start from the same noise and labels. real: real examples by title, or {}.
    """
    rows = {
        f"{config.method}, {steps} step{'s' if steps > 1 else ''}": made[: space.compared]
        for steps, made in samples.items()
    }
    write_png(path, space.compare({**rows, **real}))


def originals(wanted: Wanted, dataset: Dataset | None, count: int) -> dict[str, np.ndarray]:
    """The first images that were reconstructed, else real examples of the samples' classes."""
    if wanted.images is not None:
        return {"original": wanted.images[:count]}
    return real_examples(dataset, wanted.labels[:count])


def real_examples(dataset: Dataset | None, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Real examples of the classes `labels` [N], by title; {} if a class has too few."""
    if dataset is None or not dataset.has_pictures:
        return {}
    own = dataset.train.labels if np.any(labels >= 0) else np.full(len(dataset.train.labels), -1)
    members = {c: np.flatnonzero(own == c).tolist() for c in set(labels.tolist())}
    if any(len(members[c]) < np.count_nonzero(labels == c) for c in members):
        return {}
    return {"real": dataset.train.images[np.array([members[c].pop(0) for c in labels.tolist()])]}


def summary(results: Sequence[Result]) -> str:
    """The results of one evaluation as a table in plain text."""
    first = results[0]
    sampling, measured = first["protocol"]["sampling"], first["protocol"]["measurement"]
    lines = [
        f"{sampling['method']} on {first['data']}, step {sampling['step']}, "
        f"{sampling['network']}, guidance {sampling['guidance_scale']:g}"
    ]
    if first["metrics"]:
        lines[0] += f"; {first['metric']} against {measured['reference']}" if measured else ""
        names = list(first["metrics"])
        lines.append("  ".join([f"{'steps':>7}", *(f"{name:>7}" for name in names)]))
        for result in results:
            values = [f"{result['metrics'][name]:{max(7, len(name))}.3f}" for name in names]
            lines.append("  ".join([f"{result['protocol']['sampling']['steps']:>7}", *values]))
    real = ", ".join(f"{name} {value:.3f}" for name, value in first["real"].items())
    lines += [f"  real images instead of samples: {real}"] if real else []
    prior = ", ".join(f"{name} {value:.3f}" for name, value in first.get("prior", {}).items())
    lines += [f"  the prior instead of samples: {prior}"] if prior else []
    for result in results:
        for name, row in result.get("rows", {}).items():
            found = ", ".join(f"{key} {value:.3f}" for key, value in row.items())
            lines.append(
                f"  {ROWS[name]}, {result['protocol']['sampling']['steps']} steps: {found}"
            )
    lines += [f"  skipped {first['skipped']}"] if "skipped" in first else []
    return "\n".join(lines + [f"  warning: {warning}" for warning in first["warnings"]])
