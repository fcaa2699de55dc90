"""The checks of `--mode=doctor`. Each returns what it found, or raises an error with a remedy."""

import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from fewstep.data import NONE, short_hash, verify
from fewstep.data.folders.class_names import join_names
from fewstep.eval.checks import check_evaluation, reason_to_skip
from fewstep.models.user_sampler import is_sampler_file
from fewstep.modes.job import Draft, check_begun
from fewstep.modes.next_job import NextJob
from fewstep.modes.recorded_run import fill_from_record
from fewstep.modes.request import (
    PER_HOST,
    read_dataset,
)
from fewstep.modes.student import read_student
from fewstep.objectives.stages import stage_ends
from fewstep.training.cluster.processes import VISIBLE, time_limit
from fewstep.training.compiled_step import abstract_state
from fewstep.training.cost.compiled import step_inputs
from fewstep.training.cost.memory import (
    check_memory,
    describe_need,
)
from fewstep.training.cost.sizes import element_count, tree_bytes
from fewstep.training.labels import training_counts
from fewstep.training.location import check_other_run, locate_teacher
from fewstep.training.sharding import (
    batch_sharding,
    check_batch_size,
    describe_topology,
    make_mesh,
    replicated_sharding,
)
from fewstep.training.sources import (
    Supply,
    open_sources,
    reads_data,
    reads_teacher,
    teacher_sources,
)
from fewstep.training.start import check_same_origin, describe_origin, find_origin
from fewstep.training.storage import restore, workdir
from fewstep.training.storage.code_version import code_version, describe_code
from fewstep.training.storage.environment import PACKAGES
from fewstep.training.storage.identity import as_dict, flatten_fields
from fewstep.training.teacher import (
    abstract_params,
    check_teacher_given,
    load_teacher,
    load_teacher_config,
)

ROOT = Path(__file__).parent.parent
TOGETHER_SECONDS = 300  # time limit of a check by all processes together
CLOCK_SECONDS = 60  # largest difference between clocks
GIB = 2**30


class Check(NamedTuple):
    """One check.

    run: returns what it found, or raises an error that names the remedy. needs: checks that must
    pass first. equal: whether all processes must find the same.
    """

    run: Callable[["NextJob"], str]
    needs: tuple[str, ...] = ()
    equal: bool = False


def inspect_versions(job: NextJob) -> str:
    """Return the versions of Python and of the packages that compute."""
    found = [f"{name} {metadata.version(name)}" for name in PACKAGES]
    return ", ".join([f"python {platform.python_version()}", *found])


def inspect_code(job: NextJob) -> str:
    """Return the commit, the installed version and a hash of the sources."""
    return describe_code(code_version())


def inspect_devices(job: NextJob) -> str:
    """Return the number, kind, memory and topology of the devices."""
    first = jax.local_devices()[0]
    memory = (first.memory_stats() or {}).get("bytes_limit")
    size = f" of {memory / GIB:.1f} GiB" if memory else ""
    return f"{jax.device_count()} x {first.device_kind}{size}: {describe_topology()}"


def inspect_computation(job: NextJob) -> str:
    """Check that each device of this process adds correctly."""
    for device in jax.local_devices():
        total = jax.jit(jnp.sum)(jax.device_put(jnp.ones((64, 64)), device))
        if total != 64 * 64:
            raise ValueError(
                f"{device} computes {total} instead of {64 * 64}; remove its host from the job"
            )
    return "every device computes"


def inspect_config(job: NextJob) -> str:
    """Return the method and a hash of the given config, without the paths that hosts may choose."""
    fields = flatten_fields({"config": as_dict(job.given)})
    shared = {name: value for name, value in fields.items() if name not in PER_HOST}
    return f"{job.given.method}, hash {short_hash(shared)}"


def inspect_data(job: NextJob) -> str:
    """Read and verify every image of the data set."""
    if job.dataset is None:
        if reads_data(job.experiment.objective):
            read_dataset(job.asked)  # raises an error that says how to get it
        where = (
            "no data set" if job.given.data.name == NONE else f"{job.given.data.name} is not here"
        )
        return f"{where}, and {job.given.method} trains without images"
    split, shape = job.dataset.train, " x ".join(map(str, job.dataset.image_shape))
    names = job.dataset.classes
    verify(job.dataset)
    classes = f", {job.dataset.num_classes} classes ({join_names(names)})" if names else ""
    # The name may be a folder that differs between hosts; the hash identifies the images.
    return f"{len(split.labels)} training images of {shape}, hash {job.dataset.digest}{classes}"


def inspect_network(job: NextJob) -> str:
    """Trace the networks and the training step, without computing."""
    params = abstract_params(job.experiment.model.network, job.mesh)
    assert job.need.total > 0  # raises the errors of the trace
    return f"{element_count(params)} parameters, a step can be traced"


def inspect_memory(job: NextJob) -> str:
    """Check that a step fits into the memory of the devices, by an estimate."""
    check_memory(job.need, job.config, job.hardware)
    return describe_need(job.need, job.hardware)


def inspect_mesh(job: NextJob) -> str:
    """Check that the devices fill the mesh."""
    return ", ".join(f"{axis} {count}" for axis, count in job.mesh.shape.items())


def inspect_batch(job: NextJob) -> str:
    """Check that the devices can share the batch."""
    check_batch_size(job.config.batch_size, job.mesh, job.config.micro_batches)
    return f"{job.config.batch_size}, {job.config.batch_size // job.mesh.size} on each device"


def inspect_teacher(job: NextJob) -> str:
    """Check that the teacher fits the config and has the checkpoint."""
    check_other_run(job.config, job.workdir)
    check_teacher_given(job.config, job.experiment)
    read_student(job.request)
    if not reads_teacher(job.experiment.objective):
        return "none is used"
    teacher = load_teacher_config(job.config, job.experiment)
    if is_sampler_file(job.config.teacher):
        return f"a sampler in {job.config.teacher}"
    if teacher is None:
        return "none is used"
    location = locate_teacher(job.config.teacher)
    return f"{location.folder} at step {restore.saved_step(location.folder, location.step)}"


def inspect_start(job: NextJob) -> str:
    """Check that the new run can start from the one that --from names."""
    if not job.start:
        return "from no other run"
    if restore.has_checkpoint(job.workdir):
        check_same_origin(job.start, job.workdir)
        return "from its own checkpoint"
    origin = find_origin(job.start, job.config, job.experiment, job.mesh, job.workdir)
    state = step_inputs(job.config, job.experiment, job.mesh).state
    return "; ".join(describe_origin(origin, state, job.config))


def inspect_evaluation(job: NextJob) -> str:
    """Check feature network, real images and sampling steps of the evaluation."""
    check_evaluation(job.experiment, job.dataset, job.config, job.mesh)
    fields = job.config.evaluate
    if not fields.steps:
        return "none: evaluate.steps=()"
    return (
        reason_to_skip(job.dataset, job.config)
        or f"on {fields.features} against {fields.reference}"
    )


def inspect_earlier_run(job: NextJob) -> str:
    """Check that the folder is free or holds this run."""
    if not workdir.is_run(job.workdir):
        return "starts anew"
    check_begun(job.workdir, Draft(job.config, job.dataset, job.experiment, job.mesh))
    if not restore.has_checkpoint(job.workdir):
        return "starts again: nothing was saved"
    return f"goes on from step {restore.saved_step(job.workdir)}"


def inspect_disk(job: NextJob) -> str:
    """Check that the disk has room for the kept checkpoints and one more during a save."""
    objective = job.experiment.objective
    teacher = abstract_params(job.experiment.model.network, job.mesh)
    frozen = dict.fromkeys(objective.frozen, teacher)
    state = abstract_state(
        objective._replace(init_from={}), job.experiment.optimizers, 0, frozen, job.mesh
    )
    fields = job.config.checkpoint
    saves = -(-job.config.steps // fields.every) if fields.every else 1
    ends = len(stage_ends(objective.stages, job.config.steps))
    count = min(saves, fields.keep or saves) + ends + 1
    needed, free = count * tree_bytes(state), shutil.disk_usage(job.disk).free
    text = f"{free / GIB:.2f} GiB free, {count} checkpoints need {needed / GIB:.2f} GiB"
    if free < needed:
        raise ValueError(f"{text}; free some space, lower checkpoint.keep or use another --workdir")
    return text


def inspect_collective(job: NextJob) -> str:
    """Check that all devices together add correctly."""
    everything = make_mesh()
    add = jax.jit(jnp.sum, out_shardings=replicated_sharding(everything))
    ones = np.ones((jax.local_device_count(), 2**18), np.float32)
    array = jax.make_array_from_process_local_data(batch_sharding(everything), ones)
    jax.block_until_ready(add(array))
    start = time.perf_counter()
    total = float(add(array))
    seconds = time.perf_counter() - start
    if total != jax.device_count() * 2**18:
        raise ValueError(
            f"the devices together compute {total} instead of {jax.device_count() * 2**18}; "
            "run --mode=doctor on each host alone to find the broken one"
        )
    return f"{jax.device_count()} devices compute together, 1 MiB of each in {1e3 * seconds:.1f} ms"


def inspect_shared_folder(job: NextJob) -> str:
    """Check that each process can write to the workdir and sees the files of the others."""
    own = job.workdir / f".doctor.{jax.process_index()}"
    with temporary_file(own, job.missing) as failure:
        multihost_utils.sync_global_devices("doctor: written")
        expected = {f".doctor.{index}" for index in range(jax.process_count())}
        deadline = time.monotonic() + VISIBLE
        while not failure and expected - file_names(job.workdir) and time.monotonic() < deadline:
            time.sleep(0.1)
        unseen = expected - file_names(job.workdir)
        multihost_utils.sync_global_devices("doctor: seen")
    if failure:
        raise ValueError(f"{job.workdir} cannot be written to: {failure[0]}; use another --workdir")
    if unseen:
        raise ValueError(
            f"{job.workdir} does not show the files of process(es) "
            f"{', '.join(sorted(name.rpartition('.')[2] for name in unseen))}; "
            "use a --workdir on a disk that all hosts share"
        )
    return f"{job.workdir} is written and seen by every process"


def file_names(folder: Path) -> set[str]:
    """Return the names of the files in a folder; empty if it does not exist."""
    try:
        return {path.name for path in folder.iterdir()}
    except OSError:
        return set()


@contextmanager
def temporary_file(path: Path, folders: Sequence[Path]) -> Iterator[list[OSError]]:
    """Write a file for the length of the block; then remove it and the folders that it needed.

    Yields a list that holds the error if the file could not be written.
    """
    failure: list[OSError] = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("Written by --mode=doctor, which removes it.\n")
    except OSError as error:
        failure.append(error)
    yield failure
    with suppress(OSError):
        path.unlink()
    multihost_utils.sync_global_devices("doctor: removed")
    for folder in folders:  # the innermost first; another process may have removed it
        with suppress(OSError):
            folder.rmdir()


def inspect_teacher_parameters(job: NextJob) -> str:
    """Read the parameters of the teacher."""
    if not (job.config.teacher and reads_teacher(job.experiment.objective)):
        return "none are needed"
    found = load_teacher(job.config, job.experiment, job.mesh)
    return f"{element_count(found)} are read"


def inspect_first_batch(job: NextJob) -> str:
    """Read the first batch on the host, also if training keeps the images on the devices."""
    made = teacher_sources(job.experiment.objective)
    if made:
        return f"{', '.join(made)} are made when training starts"
    images = job.dataset if reads_data(job.experiment.objective) else None
    if job.config.codec.name and images is not None and images.moments is None:
        return "training encodes the images first; --mode=prepare does it before"
    order = workdir.data_order(job.workdir)
    config = fill_from_record(job.config, job.workdir).copy_and_resolve_references()
    config.data.on_device = False  # one batch does not need all images on the devices
    labels = training_counts(config, job.dataset, job.workdir)
    supply = Supply(config, job.experiment, job.dataset, labels, order, job.mesh, job.workdir)
    rows = jax.tree.leaves(next(open_sources(supply).batches(0)))
    return f"{len(rows[0])} rows in each process"


def inspect_clocks(job: NextJob) -> str:
    """Check that the clocks of the hosts agree."""
    multihost_utils.sync_global_devices("doctor: now")
    # Splits the time into two parts that float32 holds exactly enough.
    minutes, seconds = divmod(time.time(), 60)
    now = multihost_utils.process_allgather(np.array([minutes % 1e5, seconds], np.float32))
    times = np.reshape(now, (-1, 2)) @ np.array([60.0, 1.0])
    apart = float(np.ptp(times))
    if apart > CLOCK_SECONDS:
        raise ValueError(f"the clocks of the hosts are {apart:.0f} s apart; run NTP on the hosts")
    return f"within {max(1, round(apart))} s"


def limit_time(name: str, run: Callable[[NextJob], str]) -> Callable[[NextJob], str]:
    """Wrap a check of all processes: it ends them if one of them does not take part in time."""

    def check(job: NextJob) -> str:
        with time_limit(TOGETHER_SECONDS, f"the check {name!r} of all processes did not end"):
            return run(job)

    return check


ALONE: dict[str, Check] = {
    "versions": Check(inspect_versions, equal=True),
    "code": Check(inspect_code, equal=True),
    "devices": Check(inspect_devices, equal=True),
    "computation": Check(inspect_computation),
    "config": Check(inspect_config, equal=True),
    "data": Check(inspect_data, equal=True),
    "mesh": Check(inspect_mesh, ("data",)),
    "batch": Check(inspect_batch, ("mesh",)),
    "network": Check(inspect_network, ("data", "mesh"), equal=True),
    "memory": Check(inspect_memory, ("network",)),
    "teacher": Check(inspect_teacher, ("network",), equal=True),
    "start": Check(inspect_start, ("network",), equal=True),
    "evaluation": Check(inspect_evaluation, ("network",)),
    "run": Check(inspect_earlier_run, ("teacher",), equal=True),
    "disk": Check(inspect_disk, ("network",)),
}
TOGETHER: dict[str, Check] = {
    "collective": Check(limit_time("collective", inspect_collective), ("computation",)),
    "clocks": Check(limit_time("clocks", inspect_clocks)),
    "workdir": Check(limit_time("workdir", inspect_shared_folder)),
    "first batch": Check(limit_time("first batch", inspect_first_batch), ("batch", "network")),
    "parameters": Check(limit_time("parameters", inspect_teacher_parameters), ("teacher",)),
}
