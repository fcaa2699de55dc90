"""--mode=train: train from scratch, or go on from the newest checkpoint of the workdir."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fewstep import data
from fewstep.data import Dataset
from fewstep.eval.evaluate import Evaluate, check_evaluation, evaluator, samples_at, summary
from fewstep.eval.metrics import METRICS
from fewstep.eval.metrics.metric import LESS, NEITHER, logged_name, metric_of
from fewstep.messages import command
from fewstep.modes.describe import bytes_of
from fewstep.modes.mode import CONFIG, WORKDIR, Flag, Mode
from fewstep.modes.request import (
    Request,
    as_begun,
    decoded_as_begun,
    load_local_copy,
    required_config,
    required_workdir,
    resolve_with_data,
)
from fewstep.objectives.base import Params
from fewstep.progress import note
from fewstep.training import replay
from fewstep.training.cluster.preemption import Preemption
from fewstep.training.cluster.processes import first_process_says, is_first, say, warn
from fewstep.training.cluster.watchdog import Patience
from fewstep.training.cost.step_cost import least_seconds
from fewstep.training.experiment import Experiment, build_on
from fewstep.training.labels import known_counts, training_counts
from fewstep.training.loop import Schedule, abstract_state, compile_step
from fewstep.training.loop import train as train_network
from fewstep.training.profile import Window, check_window
from fewstep.training.report import NonFiniteError, evaluations
from fewstep.training.sharding import check_batch_size, make_mesh
from fewstep.training.sources import Supply, abstract_batch, open_sources, reads_data
from fewstep.training.storage import restore
from fewstep.training.storage.checkpoint import Retention
from fewstep.training.storage.identity import as_dict
from fewstep.training.storage.train_state import TrainState
from fewstep.training.storage.workdir import check_space, claimed, start_line, start_run
from fewstep.training.teacher import load_teacher, taught_by, teacher_identity


def train(request: Request) -> None:
    """Train to config.steps, evaluating and saving on the way."""
    path, config = required_workdir(request), required_config(request)
    with Preemption() as preemption:
        with preemption.at_once():
            job = checked(path, config, request.profile)
        with claimed(path):
            step = train_claimed(path, job, preemption)
    say(f"{path} is at step {step}; draw from it: {command('sample', workdir=path)}")


def window(flag: str, given: str) -> Window:
    """The steps of START:STOP. Raises ValueError."""
    ends = re.fullmatch(r"(\d+):(\d+)", given)
    if not ends:
        raise ValueError(
            f"--{flag}={given} must be START:STOP, two numbers of steps such as 100:103"
        )
    return Window(*map(int, ends.groups()))


class Job(NamedTuple):
    """What is trained.

    frozen: teachers. teacher: the identity of theirs that is read. state: its shapes.
    retention: which checkpoints stay. labels: counts of the classes, in whose shares labels are.
    window: the steps that are traced.
    """

    config: ConfigDict
    dataset: Dataset | None
    experiment: Experiment
    mesh: Mesh
    frozen: dict[str, Params]
    teacher: Mapping[str, Any] | None
    state: TrainState
    retention: Retention
    labels: tuple[int, ...]
    window: Window | None = None


def checked(path: Path, config: ConfigDict, window: Window | None = None) -> Job:
    """What a config says, all of it checked that can be before anything is computed or written."""
    mesh = make_mesh(**config.mesh)
    config, dataset = resolve_with_data(decoded_as_begun(config, path))
    if window is not None:
        check_profile(window, path, config)
    if config.data.local_dir:
        data.local_folder(config.data.local_dir, "data.local_dir")
    check_batch_size(config.batch_size, mesh, config.micro_batches)
    if config.steps_per_dispatch < 1:
        raise ValueError(f"steps_per_dispatch={config.steps_per_dispatch} must be 1 or more")
    experiment = build_on(config, mesh)
    check_evaluation(experiment, dataset, config, mesh)
    retention = retention_of(config, path)
    config = as_begun(config, path)
    if first_process_says(restore.has_checkpoint(path)):
        # It starts from that, and needs a teacher only to be taught.
        experiment = experiment._replace(objective=experiment.objective._replace(init_from={}))
    teacher = teacher_identity(config, experiment)
    frozen = load_teacher(config, experiment, mesh)
    state = check_step(experiment, config, mesh, frozen)
    labels = training_counts(config, dataset, path)
    return Job(config, dataset, experiment, mesh, frozen, teacher, state, retention, labels, window)


def check_profile(window: Window, path: Path, config: ConfigDict) -> None:
    """Raises ValueError for steps that the run does not make; warns if they cut dispatches."""
    done = restore.saved_step(path) if restore.has_checkpoint(path) else 0
    check_window(window, done, config.steps)
    dispatch = config.steps_per_dispatch
    if dispatch > 1 and any((end - done) % dispatch for end in window):
        warn(
            f"--profile={window} cuts dispatches of {dispatch} steps: around its ends steps are "
            f"dispatched one by one, by another program; multiples of {dispatch} avoid that"
        )


def train_claimed(path: Path, job: Job, preemption: Preemption) -> int:
    """Train in a folder that is this process's own; returns the step that the run is at then."""
    config, experiment = job.config, job.experiment
    with preemption.at_once():
        counts = known_counts(config, job.dataset)
        run = start_run(
            path,
            config,
            data_identity(job.dataset, experiment),
            job.teacher,
            counts or None,
            files_of(job.dataset),
        )
        check_space(path, bytes_of(job.state))
        if config.data.local_dir and reads_data(experiment.objective):
            job = job._replace(dataset=load_local_copy(config))
        evaluate = evaluation(path, job)
        stream = open_sources(supply_of(path, job, run.order))
    try:
        state = train_network(
            objective=experiment.objective,
            optimizers=experiment.optimizers,
            frozen=job.frozen,
            mesh=job.mesh,
            config=as_dict(config),
            run=run.stamp,
            seed=config.seed,
            schedule=Schedule(
                steps=config.steps,
                log=config.log.every,
                save=config.checkpoint.every,
                evaluate=config.evaluate.every,
                dispatch=config.steps_per_dispatch,
            ),
            batch_size=config.batch_size,
            micro_batches=config.micro_batches,
            batches=stream.batches,
            complete=stream.complete,
            evaluate=evaluate,
            workdir=path,
            retention=job.retention,
            patience=Patience(**config.watchdog),
            preemption=preemption,
            least_seconds=least_seconds(config, jax.devices()[0].device_kind, job.mesh.size),
            window=job.window,
            announce=lambda start: announce(path, start, config.steps),
        )
    except NonFiniteError as error:
        raise recorded(error, job, run.order, path) from error
    return int(state.step)


def announce(path: Path, step: int, steps: int) -> None:
    """Say whether a run starts or goes on, where, and on what."""
    if is_first():
        say(start_line(path, step, steps))


def data_identity(dataset: Dataset | None, experiment: Experiment) -> Mapping[str, Any] | None:
    """What the data set is, None if training does not read its images."""
    return dataset.identity if dataset is not None and reads_data(experiment.objective) else None


def files_of(dataset: Dataset | None) -> Sequence[tuple[str, int, int]]:
    """The files that a data set is read from, () if there are none."""
    return () if dataset is None else dataset.files


def evaluation(path: Path, job: Job) -> Callable[[TrainState], dict[str, float]]:
    """What evaluates a state: prints a summary, and returns numbers for the log.

    The state after the last step is also measured by evaluate.final_samples. These numbers are not
    for the log, whose curve has all its points by evaluate.num_samples.
    """
    config, experiment = job.config, job.experiment

    def by(samples: int) -> Evaluate:
        return evaluator(
            experiment,
            job.dataset,
            config,
            job.mesh,
            path,
            samples=samples,
            show=lambda results: note(summary(results)),
        )

    usual, last = config.evaluate.num_samples, samples_at(config, config.steps)
    evaluate_network = by(usual)
    final = by(last) if last != usual else None

    def evaluate(state: TrainState) -> dict[str, float]:
        if not config.evaluate.steps:
            return {}
        params, step = (
            {**state.networks, **state.followers}[experiment.sample_with],
            int(state.step),
        )
        results = evaluate_network(params, step)
        if final and step >= config.steps:
            final(params, step)
        return {
            logged_name(metric, result["protocol"]["sampling"]["steps"]): value
            for result in results
            for metric, value in result["metrics"].items()
        }

    return evaluate


def recorded(error: NonFiniteError, job: Job, order: int, folder: Path) -> NonFiniteError:
    """The error with the file that says which step it was, written."""
    if error.step is None:
        return error
    config, indices = job.config, None
    if reads_data(job.experiment.objective):
        indices = data.batch_indices(
            len(job.dataset.train.labels),
            batch_size=config.batch_size,
            seed=config.seed,
            step=error.step - 1,
            order=order,
        )
    path = folder / replay.FOLDER / f"{error.step}.json"
    try:
        if jax.process_index() == 0:
            replay.write_record(folder, error, seed=config.seed, indices=indices)
    except OSError as unwritten:
        return NonFiniteError(f"{error}. {unwritten}")
    return NonFiniteError(f"{error}. {path} has the step; --mode=replay shows where it broke")


def retention_of(config: ConfigDict, folder: Path) -> Retention:
    """Which checkpoints stay. Raises ValueError for a best one that no evaluation tells."""
    fields, best = config.checkpoint, config.checkpoint.keep_best
    metric, steps = metric_of(best)
    ranked = {name: own.better for name, own in METRICS.items() if own.better != NEITHER}
    known = steps in map(str, config.evaluate.steps) and config.evaluate.every > 0
    if best and not (metric in ranked and known):
        raise ValueError(
            f"checkpoint.keep_best={best} must be one of {', '.join(ranked)}, an underscore and "
            "one of evaluate.steps, such as frechet_1, with evaluate.every above 0"
        )

    def scores() -> dict[int, float]:
        measured = evaluations(folder).items() if best else ()
        sign = 1 if ranked.get(metric) == LESS else -1
        return {step: sign * values[best] for step, values in measured if best in values}

    return Retention(fields.keep, fields.keep_hours, tuple(fields.keep_steps), scores)


def supply_of(folder: Path, job: Job, order: int) -> Supply:
    """What the batches of a run are drawn from; order: in which it reads its data."""
    return Supply(
        job.config,
        job.experiment,
        job.dataset,
        job.labels,
        order,
        job.mesh,
        folder,
        taught_by(job.config, job.experiment),
        job.frozen,
    )


def check_step(
    experiment: Experiment, config: ConfigDict, mesh: Mesh, frozen: Mapping[str, Params]
) -> TrainState:
    """The state's shapes. Traces a step, so that what it refuses is refused before any compute."""
    objective, optimizers = experiment.objective, experiment.optimizers
    state = abstract_state(objective, optimizers, config.seed, frozen, mesh)
    batch = abstract_batch(objective, config.batch_size, experiment.image_shape)
    step = compile_step(objective, optimizers, config.seed, mesh, config.micro_batches)
    return jax.eval_shape(step, state, frozen, batch)[0]


TRAIN = Mode(
    train,
    "Train, or go on from the newest checkpoint; evaluate and save on the way.",
    {
        **CONFIG,
        **WORKDIR,
        "profile": Flag("START:STOP, the steps of which a trace is kept, such as 100:103.", window),
    },
    together=True,
    trains=True,
)
