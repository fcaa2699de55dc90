"""A run's folder: what it records when training starts, and which process may write to it.

run.json          the run's identity, sealed (training/storage/identity.py)
config.json       the same config, for readers
environment.json  one entry for each start: command, versions, code, devices
unsaved/N         what runs left that ended before their first checkpoint
"""

import errno
import fcntl
import itertools
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from fewstep.data import NEWEST_ORDER
from fewstep.files import write_json
from fewstep.messages import did_you_mean, nearest_name
from fewstep.training.cluster.channel import process_names
from fewstep.training.cluster.processes import (
    blind_processes,
    broadcast,
    first_process_says,
    warn,
    warn_once,
)
from fewstep.training.storage import identity, restore
from fewstep.training.storage.checkpoint import run_in_record
from fewstep.training.storage.environment import ENVIRONMENT, record_environment
from fewstep.training.storage.identity import Identity, Plain, as_dict
from fewstep.training.storage.lengths import Length, next_lengths
from fewstep.training.storage.listing import LISTING, File, write_listing
from fewstep.training.storage.record import read_config_file

CONFIG = "config.json"
LOCK = "lock"
NEARBY = 5  # most runs that a message names
UNSAVED = "unsaved"
# What a run leaves in its folder beside checkpoints: what another run there would mistake for its
# own. `lock` and `heartbeat` belong to the folder.
LEFT = (identity.RUN, CONFIG, ENVIRONMENT, LISTING, "metrics.jsonl", "metrics.dropped.jsonl")
LEFT += ("tensorboard", "metrics.csv", "wandb", "eval", "report.html", "pairs", "pairs.npz")
LEFT += ("profile", "replay", "stacks")
# Errors of file systems without locks, such as NFS without its lock service.
UNLOCKED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


def start_run(
    workdir: Path,
    config: ConfigDict,
    data: Plain | None = None,
    teacher: Plain | None = None,
    class_counts: Sequence[int] | None = None,
    files: Sequence[File] = (),
    started_from: Plain | None = None,
    imported: Plain | None = None,
) -> Identity:
    """Record a new run, or check a resumed one against its record; returns its identity.

    data, teacher, class_counts, started_from, imported: as in `Identity`. files: the data's files
    (training.storage.listing). Raises ValueError, in all processes, if the folder holds a run with
    other data, another teacher, or a config that differs in more than `identity.CHANGEABLE`. A run
    that has saved nothing gives way to another: UNSAVED keeps what it left.
    """
    record: dict[str, Any] = {}
    counts = None if class_counts is None else list(class_counts)
    now = Identity(identity.new_id(), as_dict(config), data, teacher, NEWEST_ORDER, counts)
    if jax.process_index() == 0:
        try:
            now = now._replace(started_from=started_from, imported=imported)
            begun = record_start(workdir, now, files)
            record["run"] = begun._asdict()
        except ValueError as error:
            record["error"] = str(error)
    record = broadcast(record)
    if "error" in record:
        raise ValueError(record["error"])
    run = identity.identity_of(record["run"])
    check_shared(workdir, run.id)
    # Other processes may read their data and teacher from other disks than the first.
    identity.check_same_sources(run, data, teacher, workdir)
    return run


def check_shared(workdir: Path, id: str) -> None:
    """Raises ValueError, in all processes, unless all of them see the record of the run `id`."""

    def sees_it() -> bool:
        with suppress(ValueError):  # the file may not have arrived completely
            run = identity.read_identity(workdir)
            return run is not None and run.id == id
        return False

    others = blind_processes(sees_it)
    if others:
        raise ValueError(
            f"{workdir} is another folder for {process_names(others)} than for process 0; put "
            "--workdir on a disk that all hosts see"
        )


def record_start(workdir: Path, now: Identity, files: Sequence[File]) -> Identity:
    """`start_run` in one process; `now` is what a new run would record."""
    before = recorded_identity(workdir) if is_run(workdir) else None
    if before is not None and gives_way(before, now, workdir, files):
        set_unsaved_aside(workdir)
    elif before is not None:
        if not before.id:
            warn(
                f"{workdir} was made by a version that recorded no run id; it gets one now, with a "
                "record of its present data and teacher"
            )
        warn_of_measures(workdir, before.config, now.config)
        now = before._replace(
            id=before.id or now.id,
            config=now.config,
            data=before.data or now.data,
            teacher=before.teacher or now.teacher,
            lengths=lengths_after(workdir, before, now),
        )
    workdir.mkdir(parents=True, exist_ok=True)
    identity.write_identity(workdir, now)
    if now.data is not None:
        write_listing(workdir, files)
    write_json(workdir / CONFIG, now.config)
    record_environment(workdir)
    return now


def warn_of_measures(workdir: Path, before: Plain, now: Plain) -> None:
    """Warn if the evaluations of a run's curve were measured otherwise than those to come."""
    changed = identity.changed_measures(before, now)
    if changed and restore.has_checkpoint(workdir):
        warn(
            f"{workdir} goes on with {'; '.join(changed)}: its curves, and checkpoint.keep_best, "
            "compare evaluations that are not alike. Keep the old values, and use --mode=evaluate "
            "for other measurements"
        )


def gives_way(before: Identity, now: Identity, workdir: Path, files: Sequence[File] = ()) -> bool:
    """Whether the run in a folder has saved nothing, and `now` is another one.

    Raises ValueError if it is another one, and the one in the folder has a checkpoint.
    """
    try:
        identity.check_same_identity(before, now, workdir, files)
    except ValueError:
        if restore.has_checkpoint(workdir):
            raise
        return True
    other_start = (before.started_from, before.imported) != (now.started_from, now.imported)
    return other_start and not restore.has_checkpoint(workdir)


def goes_on(workdir: Path, config: ConfigDict) -> bool:
    """Whether the run in a folder goes on if one of this config is started there."""
    if not is_run(workdir):
        return False
    begun = recorded_identity(workdir)
    return restore.has_checkpoint(workdir) or not identity.config_changes(
        begun.config, as_dict(config)
    )


def lengths_after(workdir: Path, before: Identity, now: Identity) -> list[Length]:
    """The lengths of the run in a folder if it goes on with the config of `now`."""
    done = restore.saved_step(workdir) if restore.has_checkpoint(workdir) else 0
    return next_lengths(before.lengths, before.fields, now.fields, done)


def planned_lengths(workdir: Path, config: ConfigDict) -> list[Length]:
    """The lengths that a run of this config has in a folder. Raises ValueError."""
    now = Identity("", as_dict(config))
    if not first_process_says(restore.has_checkpoint(workdir)):
        return []
    return lengths_after(workdir, recorded_identity(workdir), now)


def set_unsaved_aside(workdir: Path) -> None:
    """Move what a run left that has saved nothing to WORKDIR/unsaved/N; deletes nothing."""
    number = next(n for n in itertools.count() if not (workdir / UNSAVED / str(n)).exists())
    aside = workdir / UNSAVED / str(number)
    aside.mkdir(parents=True)
    for name in LEFT:
        if (workdir / name).exists():
            os.replace(workdir / name, aside / name)
    warn(
        f"{workdir} held a run of another config that ended before its first checkpoint; a new run "
        f"begins, and {aside} keeps what that one left"
    )


def recorded_identity(workdir: Path, step: int | None = None) -> Identity:
    """The identity of the run in a folder; its id is "" if an older version made it.

    Reads run.json, else the checkpoint of `step` (the newest by default), else config.json. Raises
    ValueError if the folder holds no run, or its record cannot be read.
    """
    run = identity.read_identity(workdir)
    if run is not None:
        return run
    if not restore.has_checkpoint(workdir):
        return Identity("", as_dict(read_config_file(workdir / CONFIG)))
    return run_in_record(restore.read_record(workdir, step))


def data_order(workdir: Path) -> int:
    """The order in which a folder's run reads its data; the newest order if it holds no run."""
    return recorded_identity(workdir).order if is_run(workdir) else NEWEST_ORDER


def check_same_run(
    workdir: Path,
    config: ConfigDict,
    data: Plain | None = None,
    teacher: Plain | None = None,
    files: Sequence[File] = (),
) -> None:
    """Raises ValueError if `start_run` would; for a folder that holds a run."""
    now = Identity("", as_dict(config), data, teacher)
    gives_way(recorded_identity(workdir), now, workdir, files)


@contextmanager
def claim_workdir(workdir: Path) -> Iterator[None]:
    """Create the folder and lock it for this run; unlocked at the end, or when the process dies.

    Raises ValueError if another process holds the lock, OSError if the folder cannot be written to.
    """
    if jax.process_index() > 0:
        check_claimed(first_process_says(False), workdir, "")
        yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / LOCK).open("a+")
    except OSError as error:
        raise OSError(
            f"{workdir} cannot be written to ({error.strerror}); choose another --workdir"
        ) from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            owned = True
        except BlockingIOError:
            owned = False
        except OSError as error:  # a file system without locks
            if error.errno not in UNLOCKED:
                raise
            warn(f"{workdir} has no locks ({error.strerror}): start no second run in it")
            owned = True
        file.seek(0)
        check_claimed(first_process_says(owned), workdir, file.read())
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.ctime()}")
        file.flush()
        yield


def check_claimed(owned: bool, workdir: Path, owner: str) -> None:
    """Raises ValueError that names the owner unless this run owns the folder."""
    if not owned:
        raise ValueError(
            f"{workdir} is being trained in ({owner or 'by another process'}); wait until that "
            "ends, or choose another --workdir"
        )


def check_space(workdir: Path, size: int) -> None:
    """Raises OSError if the folder's disk has less than `size` bytes, a checkpoint's, free."""
    free = shutil.disk_usage(workdir).free
    if free < size:
        raise OSError(
            f"{workdir} has {free / 2**30:.2f} GiB free, and a checkpoint of this run takes "
            f"{size / 2**30:.2f} GiB; free disk space or choose another --workdir"
        )


def is_run(workdir: Path) -> bool:
    """Whether the folder holds a run: its record or a checkpoint."""
    records = (workdir / identity.RUN, workdir / CONFIG)
    return any(path.exists() for path in records) or restore.has_checkpoint(workdir)


def nearby_runs(folder: Path) -> str:
    """Which runs were meant by a folder that is none, as the end of a message; "" if none is near.

    Those inside the folder, the one that it lies in, or that of the nearest name beside it.
    """
    inside = [path for path in list_folder(folder) if is_run(path)]
    if inside:
        return f"; the runs in it are {', '.join(map(str, inside[:NEARBY]))}"
    around = next((path for path in folder.parents if is_run(path)), None)
    beside = {path.name: path for path in list_folder(folder.parent) if is_run(path)}
    meant = around or beside.get(nearest_name(folder.name, beside), "")
    return did_you_mean(str(meant), "{}")


def list_folder(folder: Path) -> list[Path]:
    """What lies in a folder, in order; [] for one that cannot be read."""
    with suppress(OSError):
        return sorted(folder.iterdir())
    return []


def load_config(workdir: Path, step: int | None = None) -> ConfigDict:
    """The sealed config of a run, from run.json or a checkpoint (the newest by default).

    It has all fields of this version; one that was not recorded stands for what runs do without it.
    Warns if config.json differs. Raises ValueError if the folder holds no run.
    """
    if not is_run(workdir):
        raise ValueError(
            f"{workdir / CONFIG} does not exist: {workdir} is no run"
            f"{nearby_runs(workdir) or '; train there first'}"
        )
    recorded = recorded_identity(workdir, step).config
    if (workdir / CONFIG).exists():
        warn_if_edited(workdir / CONFIG, recorded)
    return identity.with_all_fields(recorded)


def warn_if_edited(path: Path, config: Plain) -> None:
    """Warn once of the fields in which a config.json differs from the sealed config."""
    try:
        shown = as_dict(read_config_file(path))
    except ValueError as error:
        warn_once(f"{error}; the sealed config of the run is used")
        return
    found = identity.differing_fields(
        identity.flatten_fields(config), identity.flatten_fields(shown)
    )
    if found:
        warn_once(
            f"{path} is not the config that the run was trained with: {'; '.join(found)}. The "
            "run's own values are used"
        )
