"""Prepares what training needs, and checks it before anything is computed or written."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fewstep import data
from fewstep.data import Dataset
from fewstep.data.encoded import latents_bytes
from fewstep.eval.checks import check_evaluation
from fewstep.eval.features.fixed import load_fixed
from fewstep.modes.recorded_run import fill_from_record
from fewstep.modes.resolve import fill_open_fields, read_dataset, resolve_and_load
from fewstep.modes.retention import retention_of
from fewstep.objectives.base import Params
from fewstep.objectives.stages import stage_ends
from fewstep.training.cluster.processes import (
    broadcast,
    decides,
    first_process_says,
    say,
    warn,
)
from fewstep.training.codec_weights import pin_codec
from fewstep.training.compiled_step import Advance, abstract_state
from fewstep.training.cost.compiled import StepInputs, production_step, sharded_batch
from fewstep.training.cost.hardware import present_hardware
from fewstep.training.cost.memory import check_memory, traced_memory
from fewstep.training.densities import density_identity
from fewstep.training.experiment import (
    Experiment,
    build_on,
    optimizer_fields,
)
from fewstep.training.fixed_networks import abstract_fixed
from fewstep.training.labels import training_counts
from fewstep.training.loggers import check_loggers
from fewstep.training.profile import Window, check_window
from fewstep.training.sharding import check_batch_size, make_mesh
from fewstep.training.sources import Supply, reads_data
from fewstep.training.start import (
    check_same_origin,
    describe_origin,
    find_origin,
    fitted_start,
    load_start,
    origin_identity,
)
from fewstep.training.storage import restore, workdir
from fewstep.training.storage.checkpoint import Retention
from fewstep.training.storage.train_state import TrainState
from fewstep.training.teacher import (
    build_source_teacher,
    check_teacher_given,
    load_teacher,
    teacher_identity,
)


class Draft(NamedTuple):
    """What to train, as far as it is known before the teacher exists."""

    config: ConfigDict
    dataset: Dataset | None
    experiment: Experiment
    mesh: Mesh


class Job(NamedTuple):
    """What to train.

    frozen: parameters of teachers, of networks that distances read (training/fixed_networks.py),
    and what the run starts from (state.START). teacher: identity
    of the teacher. state: shapes of the training state. step: the program that makes them.
    retention: which checkpoints to keep.
    labels: counts of the classes, from which labels are drawn. window: the steps to profile.
    started_from: identity of the run that --from names.
    """

    config: ConfigDict
    dataset: Dataset | None
    experiment: Experiment
    mesh: Mesh
    frozen: dict[str, Params]
    teacher: Mapping[str, Any] | None
    state: TrainState
    step: Advance
    retention: Retention
    labels: tuple[int, ...]
    window: Window | None = None
    started_from: Mapping[str, Any] | None = None


def prepare_job(
    path: Path, config: ConfigDict, window: Window | None = None, start: str = ""
) -> Job:
    """Return the job of a config after every check that needs no computation and no writing.

    start: RUN[@STEP] of --from, "" without it.
    """
    draft = draft_job(path, config, window)
    config = fill_from_record(draft.config, path)
    return assemble_job(path, config, draft.experiment, draft.dataset, draft.mesh, window, start)


def draft_job(path: Path, config: ConfigDict, window: Window | None = None) -> Draft:
    """Return the draft of a job after every check that needs no teacher either."""
    check_loggers(config.log.to)
    mesh = make_mesh(**config.mesh)
    config, dataset = resolve_and_load(pin_codec(fill_open_fields(config, path), path))
    check_steps_done(path, config)
    if window is not None:
        check_profile(window, path, config)
    if config.data.local_dir:
        data.local_folder(config.data.local_dir, "data.local_dir")
    check_batch_size(config.batch_size, mesh, config.micro_batches)
    experiment = build_on(config, mesh, workdir.planned_lengths(path, config))
    check_evaluation(experiment, dataset, config, mesh)
    check_teacher_given(config, experiment)
    warn_of_zero_rates(config, experiment)
    retention_of(config, path)
    return Draft(config, dataset, experiment, mesh)


def warn_of_zero_rates(config: ConfigDict, experiment: Experiment) -> None:
    """Warn of trained networks whose learning rate is 0."""
    players = experiment.objective.players
    still = [p for p in players if optimizer_fields(config, p)["learning_rate"] == 0.0]
    if still:
        warn(f"learning_rate=0 leaves {' and '.join(still)} as at the start")


def assemble_job(
    path: Path,
    config: ConfigDict,
    experiment: Experiment,
    dataset: Dataset | None,
    mesh: Mesh,
    window: Window | None = None,
    start: str = "",
) -> Job:
    """Return the job of the run in a folder; reads its teacher, state shapes and labels.

    start: the run whose networks it starts from, unless it has a checkpoint. Raises ValueError.
    """
    retention = retention_of(config, path)
    ends = stage_ends(experiment.objective.stages, config.steps)
    retention = retention._replace(steps=(*retention.steps, *ends))
    begun = first_process_says(restore.has_checkpoint(path))
    experiment = started(experiment, begun)
    if begun and start:
        check_same_origin(start, path)
    teacher = teacher_identity(config, experiment)
    frozen = load_teacher(config, experiment, mesh)
    shapes = frozen | abstract_fixed(experiment, mesh)
    state, step = check_step(experiment, config, mesh, shapes, dataset)
    frozen |= load_fixed(config, experiment.objective, dataset, mesh)
    job = Job(
        config=config,
        dataset=dataset,
        experiment=experiment,
        mesh=mesh,
        frozen=frozen,
        teacher=teacher,
        state=state,
        step=step,
        retention=retention,
        labels=training_counts(config, dataset, path),
        window=window,
    )
    if begun:
        return job
    return start_job_from(job, start, path) if start else fit_to_images(job)


def fit_to_images(job: Job) -> Job:
    """Return the job with what its networks fit to the training images."""
    images = None if job.dataset is None else job.dataset.train.images
    fitted = fitted_start(job.experiment.objective, images)
    # Hosts may round differently, and all must start alike.
    fitted = multihost_utils.broadcast_one_to_all(fitted) if fitted else {}
    return job._replace(frozen={**job.frozen, **fitted})


def start_job_from(job: Job, start: str, path: Path) -> Job:
    """Return the job with what it takes from another run; prints what fits. Raises ValueError."""
    origin = find_origin(start, job.config, job.experiment, job.mesh, path)
    for line in describe_origin(origin, job.state, job.config):
        say(line)
    frozen = {**job.frozen, **load_start(origin, job.state)}
    return job._replace(frozen=frozen, started_from=origin_identity(origin))


def started(experiment: Experiment, saved: bool) -> Experiment:
    """Return the experiment of a run that starts from its checkpoint, if it has saved one.

    It then needs a teacher only for its losses.
    """
    if not saved:
        return experiment
    return experiment._replace(objective=experiment.objective._replace(init_from={}))


def check_steps_done(path: Path, config: ConfigDict) -> None:
    """Raises ValueError if the run in the folder has done more steps than the config has.

    Process 0 looks, since others may see a checkpoint later.
    """
    done = 0
    if decides() and restore.has_checkpoint(path):
        with suppress(ValueError):  # a damaged checkpoint is told when it is read
            done = restore.saved_step(path)
    done = broadcast(done)
    if done > config.steps:
        raise ValueError(
            f"{path} is at step {done}, beyond steps={config.steps}; choose another --workdir or "
            "set as many --config.steps"
        )


def check_begun(path: Path, draft: Draft, has_teacher: bool = True) -> None:
    """Raises ValueError if the folder holds a run that is not this one.

    has_teacher: whether the run's teacher exists, so that it can be compared too.
    """
    config = fill_from_record(draft.config, path)
    data = data_identity(draft.dataset, draft.experiment)
    teacher = teacher_identity(config, draft.experiment) if has_teacher else None
    workdir.check_same_run(path, config, data, teacher, dataset_files(draft.dataset))


def check_profile(window: Window, path: Path, config: ConfigDict) -> None:
    """Raises ValueError for steps outside the run; warns if they split dispatches."""
    done = restore.saved_step(path) if restore.has_checkpoint(path) else 0
    check_window(window, done, config.steps)
    dispatch = config.steps_per_dispatch
    if dispatch > 1 and any((end - done) % dispatch for end in window):
        warn(
            f"--profile={window} splits dispatches of {dispatch} steps: another program makes the "
            f"steps around its ends one by one; use multiples of {dispatch}"
        )


def check_step(
    experiment: Experiment,
    config: ConfigDict,
    mesh: Mesh,
    frozen: Mapping[str, Params],
    dataset: Dataset | None = None,
) -> tuple[TrainState, Advance]:
    """Trace a step, which raises its errors before any computation.

    Returns the state's shapes and the step. Raises ValueError if a step needs far more memory than
    the devices have.
    """
    objective, optimizers = experiment.objective, experiment.optimizers
    state = abstract_state(objective, optimizers, config.seed, frozen, mesh)
    batch = sharded_batch(config, experiment, mesh)
    inputs, hardware = StepInputs(state, frozen, batch), present_hardware(mesh)
    step = production_step(config, experiment, mesh)
    traced = step.trace(*inputs)
    need = traced_memory(traced, experiment, inputs, hardware, resident_bytes(config, dataset))
    check_memory(need, config, hardware)
    return traced.out_info[0], step


def resident_bytes(config: ConfigDict, dataset: Dataset | None) -> int:
    """Return the bytes of the images that every device keeps in its memory."""
    if dataset is None or not config.data.on_device:
        return 0
    return (dataset.moments.array if dataset.moments else dataset.train.images).nbytes


def resident_images(config: ConfigDict, shape: tuple[int, ...]) -> int | None:
    """Return the bytes of images or latents that each device keeps.

    shape: what the network sees. None if they keep none, or if the data set is not here.
    """
    if not config.data.on_device:
        return None
    try:
        dataset = read_dataset(config)
    except FileNotFoundError:
        return None
    if config.codec.name and dataset.has_pictures:  # it may not be encoded yet
        return latents_bytes(len(dataset.train.labels), shape)
    return resident_bytes(config, dataset)


def data_identity(dataset: Dataset | None, experiment: Experiment) -> Mapping[str, Any] | None:
    """Return the identity of what training reads: a data set, or the file of a density, or None."""
    if reads_data(experiment.objective):
        return None if dataset is None else dataset.identity
    return density_identity(experiment.model.density)


def dataset_files(dataset: Dataset | None) -> Sequence[tuple[str, int, int]]:
    """Return the files of a data set; () without files."""
    return () if dataset is None else dataset.files


def supply_of(folder: Path, job: Job, order: int) -> Supply:
    """Return what the batches of a run are made from. order: version of the data order."""
    return Supply(
        job.config,
        job.experiment,
        job.dataset,
        job.labels,
        order,
        job.mesh,
        folder,
        build_source_teacher(job.config, job.experiment),
        job.frozen,
    )
