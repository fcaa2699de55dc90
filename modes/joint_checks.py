"""The checks of `--mode=doctor` by all processes together, after those of each (checks.py)."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from fewstep.modes.checks import Check, inspect_earlier_run, inspect_start
from fewstep.modes.next_job import NextJob
from fewstep.modes.recorded_run import fill_from_record
from fewstep.training.cluster.processes import VISIBLE, time_limit
from fewstep.training.cost.sizes import element_count
from fewstep.training.labels import training_counts
from fewstep.training.sharding import batch_sharding, make_mesh, replicated_sharding
from fewstep.training.sources import (
    Supply,
    open_sources,
    reads_data,
    reads_teacher,
    teacher_sources,
)
from fewstep.training.storage import workdir
from fewstep.training.teacher import load_teacher

TOGETHER_SECONDS = 300  # time limit of a check by all processes together
CLOCK_SECONDS = 60  # largest difference between clocks


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


TOGETHER: dict[str, Check] = {
    "collective": Check(limit_time("collective", inspect_collective), ("computation",)),
    "clocks": Check(limit_time("clocks", inspect_clocks)),
    "workdir": Check(limit_time("workdir", inspect_shared_folder)),
    "start": Check(limit_time("start", inspect_start), ("network",), equal=True),
    "run": Check(limit_time("run", inspect_earlier_run), ("teacher",), equal=True),
    "first batch": Check(limit_time("first batch", inspect_first_batch), ("batch", "network")),
    "parameters": Check(limit_time("parameters", inspect_teacher_parameters), ("teacher",)),
}
