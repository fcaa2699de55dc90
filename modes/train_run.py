"""Trains a run from scratch or from its newest checkpoint, for the modes train and compare."""

from collections.abc import Callable
from pathlib import Path

import jax

from fewstep import data
from fewstep.eval.evaluate import Evaluate, evaluator, sample_count
from fewstep.eval.metrics.metric import logged_name
from fewstep.eval.summary import summary
from fewstep.messages import shell_flags
from fewstep.modes.draws import many_steps
from fewstep.modes.job import Job, data_identity, dataset_files, prepare_job, supply_of
from fewstep.modes.request import Request, require_workdir
from fewstep.modes.resolve import load_local_copy
from fewstep.modes.student import announce_inherited, read_student
from fewstep.progress import note
from fewstep.training import replay
from fewstep.training.cluster.preemption import Preemption
from fewstep.training.cluster.processes import is_first, say
from fewstep.training.cluster.watchdog import Patience
from fewstep.training.compiled_step import Training
from fewstep.training.cost.sizes import tree_bytes
from fewstep.training.cost.step_cost import least_seconds
from fewstep.training.labels import known_counts
from fewstep.training.loop import train as train_network
from fewstep.training.report import NonFiniteError
from fewstep.training.schedule import Schedule
from fewstep.training.session import Upkeep
from fewstep.training.sources import open_sources, reads_data
from fewstep.training.storage.environment import describe_start
from fewstep.training.storage.identity import Identity, as_dict
from fewstep.training.storage.lengths import describe_lengths
from fewstep.training.storage.train_state import TrainState
from fewstep.training.storage.workdir import check_space, claim_workdir, start_run


def train_run(request: Request) -> None:
    """Train up to config.steps; evaluate and save on the way."""
    path = require_workdir(request)
    with Preemption() as preemption:
        with preemption.at_once():
            student = read_student(request)
            job = prepare_job(path, student.config, request.profile, request.from_)
            announce_inherited(student)
        with claim_workdir(path):
            step = train_in_folder(path, job, preemption)
    say(f"{path} is at step {step}; {next_command(path, job)}")


def next_command(path: Path, job: Job) -> str:
    """Return what to do with a trained run."""
    objective, fewest = job.experiment.objective, min(job.config.evaluate.steps, default=1)
    if objective.reconstructs:
        return f"train on latents of its codec: --config.codec.weights={path}"
    steps = many_steps(objective) or fewest
    flags = {"workdir": path} | ({"steps": steps} if steps > 1 else {})
    return f"draw from it: {shell_flags('sample', **flags)}"


def train_in_folder(path: Path, job: Job, preemption: Preemption) -> int:
    """Train in a folder that this process has claimed; return the last training step."""
    config, experiment = job.config, job.experiment
    with preemption.at_once():
        counts = known_counts(config, job.dataset)
        run = start_run(
            path,
            config,
            data_identity(job.dataset, experiment),
            job.teacher,
            counts or None,
            dataset_files(job.dataset),
            job.started_from,
        )
        check_space(path, tree_bytes(job.state))
        if config.data.local_dir and reads_data(experiment.objective):
            job = job._replace(dataset=load_local_copy(config))
        evaluate = make_evaluate(path, job)
        stream = open_sources(supply_of(path, job, run.order))
    try:
        state = train_network(
            Training(
                objective=experiment.objective,
                optimizers=experiment.optimizers,
                frozen=job.frozen,
                mesh=job.mesh,
                seed=config.seed,
                batch_size=config.batch_size,
                micro_batches=config.micro_batches,
                step=job.step,
            ),
            stream,
            schedule_of(job),
            Upkeep(
                workdir=path,
                config=as_dict(config),
                run=run.stamp,
                retention=job.retention,
                patience=Patience(**config.watchdog),
                log_to=tuple(config.log.to),
            ),
            evaluate,
            preemption=preemption,
            least_seconds=least_seconds(config, jax.devices()[0].device_kind, job.mesh.size),
            announce=lambda start: announce(path, start, config.steps, run),
        )
    except NonFiniteError as error:
        raise record_failure(error, job, run.order, path) from error
    return int(state.step)


def schedule_of(job: Job) -> Schedule:
    """Return when a run logs, saves and evaluates."""
    config = job.config
    return Schedule(
        steps=config.steps,
        log=config.log.every,
        save=config.checkpoint.every,
        evaluate=config.evaluate.every,
        dispatch=config.steps_per_dispatch,
        window=job.window,
        kept=tuple(config.checkpoint.keep_steps),
    )


def announce(path: Path, step: int, steps: int, run: Identity) -> None:
    """Print whether a run starts or continues, where, on which devices, and at which rates."""
    if is_first():
        say(describe_start(path, step, steps))
        if run.lengths:
            say(f"learning rate: {describe_lengths(run.lengths)}")


def make_evaluate(path: Path, job: Job) -> Callable[[TrainState], dict[str, float]]:
    """Return a function that evaluates a state, prints a summary and returns numbers for the log.

    It also measures the state after the last step by evaluate.final_samples. The log leaves these
    numbers out, so that every point of its curve has evaluate.num_samples.
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

    usual, last = config.evaluate.num_samples, sample_count(config, config.steps)
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


def record_failure(error: NonFiniteError, job: Job, order: int, folder: Path) -> NonFiniteError:
    """Write the record of the step for --mode=replay; return the error with the path added."""
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
    return NonFiniteError(f"{error}. {path} records the step; --mode=replay shows where it broke")
