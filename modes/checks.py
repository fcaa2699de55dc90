"""The checks of `--mode=doctor` in each process: each returns a finding, or raises the remedy."""

import platform
import shutil
from collections.abc import Callable
from importlib import metadata
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fewstep.data import NONE, short_hash, verify
from fewstep.data.folders.class_names import join_names
from fewstep.eval.checks import check_evaluation, reason_to_skip
from fewstep.models.user_sampler import is_sampler_file
from fewstep.modes.job import Draft, check_begun, check_profile, check_steps_done
from fewstep.modes.next_job import NextJob
from fewstep.modes.request import PER_HOST
from fewstep.modes.resolve import read_dataset
from fewstep.modes.student import read_student
from fewstep.objectives.stages import stage_ends
from fewstep.training.compiled_step import abstract_state
from fewstep.training.cost.compiled import step_inputs
from fewstep.training.cost.memory import check_memory, describe_need
from fewstep.training.cost.sizes import element_count, tree_bytes
from fewstep.training.location import check_other_run, locate_teacher
from fewstep.training.sharding import check_batch_size, describe_topology
from fewstep.training.sources import reads_data, reads_teacher
from fewstep.training.start import check_same_origin, describe_origin, find_origin
from fewstep.training.storage import restore, workdir
from fewstep.training.storage.code_version import code_version, describe_code
from fewstep.training.storage.environment import PACKAGES
from fewstep.training.storage.identity import as_dict, flatten_fields
from fewstep.training.teacher import abstract_params, check_teacher_given, load_teacher_config

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
    """Read and verify every image of the data set, unless the run has begun."""
    if job.dataset is None:
        if reads_data(job.experiment.objective):
            read_dataset(job.asked)  # raises an error that says how to get it
        where = (
            "no data set" if job.given.data.name == NONE else f"{job.given.data.name} is not here"
        )
        return f"{where}, and {job.given.method} trains without images"
    split, shape = job.dataset.train, " x ".join(map(str, job.dataset.image_shape))
    names = job.dataset.classes
    begun = restore.has_checkpoint(job.workdir)
    if not begun:  # else each restart of a job would read all images once more
        verify(job.dataset)
    classes = f", {job.dataset.num_classes} classes ({join_names(names)})" if names else ""
    # The name may be a folder that differs between hosts; the hash identifies the images.
    read = " (not read again: the run has begun)" if begun else ""
    return (
        f"{len(split.labels)} training images of {shape}, hash {job.dataset.digest}{read}{classes}"
    )


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
    if job.request.profile:
        check_profile(job.request.profile, job.workdir, job.config)
    if not workdir.is_run(job.workdir):
        return "starts anew"
    check_begun(job.workdir, Draft(job.config, job.dataset, job.experiment, job.mesh))
    if not restore.has_checkpoint(job.workdir):
        return "starts again: nothing was saved"
    check_steps_done(job.workdir, job.config)
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
    ends = len({*stage_ends(objective.stages, job.config.steps), *fields.keep_steps})
    count = min(saves, fields.keep or saves) + ends + 1
    needed, free = count * tree_bytes(state), shutil.disk_usage(job.disk).free
    text = f"{free / GIB:.2f} GiB free, {count} checkpoints need {needed / GIB:.2f} GiB"
    if free < needed:
        raise ValueError(f"{text}; free some space, lower checkpoint.keep or use another --workdir")
    return text


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
    "evaluation": Check(inspect_evaluation, ("network",)),
    "disk": Check(inspect_disk, ("network",)),
}
