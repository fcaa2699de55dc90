"""What a run's folder says of itself, config.json and environment.json; and who may write to it."""

import fcntl
import json
import os
import platform
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from training import restore
from training.files import write_json
from training.sharding import first_process_says

CONFIG = "config.json"
ENVIRONMENT = "environment.json"
LOCK = "lock"
# Fields that may change when a run is continued; all others would make it another run.
CHANGEABLE = (
    "steps",
    "steps_per_dispatch",
    "compilation_cache",
    "log.",
    "evaluate.",
    "checkpoint.",
    "watchdog.",
    "mesh.",
    "model.attention",
    "ema.sample_with",
    "data.dir",
    "data.on_device",
)
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def start_run(workdir: Path, config: ConfigDict) -> None:
    """Make the folder and record the config and the environment, or check against the record.

    Raises ValueError if the folder holds a run whose config differs in more than `CHANGEABLE`.
    """
    if is_run(workdir):
        check_same_run(load_config(workdir), config, workdir)
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / CONFIG, as_dict(config))
        write_json(workdir / ENVIRONMENT, environment())


@contextmanager
def claimed(workdir: Path) -> Iterator[None]:
    """The folder, made, as this run's alone; given back at the end, and when the process dies.

    Raises ValueError if another process has it, OSError if it cannot be written to.
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
        file.seek(0)
        check_claimed(first_process_says(owned), workdir, file.read())
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.ctime()}")
        file.flush()
        yield


def check_claimed(owned: bool, workdir: Path, owner: str) -> None:
    """Raises ValueError that names the owner unless the folder is ours."""
    if not owned:
        raise ValueError(
            f"{workdir} is being trained in ({owner or 'by another process'}); wait for that, or "
            "choose another --workdir"
        )


def check_space(workdir: Path, size: int) -> None:
    """Raises OSError if the folder's disk has less free than a checkpoint's `size` in bytes."""
    free = shutil.disk_usage(workdir).free
    if free < size:
        raise OSError(
            f"{workdir} has {free / 2**30:.2f} GiB free, and a checkpoint of this run takes "
            f"{size / 2**30:.2f} GiB; free disk space or choose another --workdir"
        )


def is_run(workdir: Path) -> bool:
    """Whether the folder holds a run, its record or its checkpoints."""
    return (workdir / CONFIG).exists() or restore.has_checkpoint(workdir)


def load_config(workdir: Path) -> ConfigDict:
    """The config of a run, that of its newest checkpoint if it has lost its record.

    Raises ValueError if the folder holds none.
    """
    path = workdir / CONFIG
    if not path.exists() and restore.has_checkpoint(workdir):
        return ConfigDict(restore.read_record(workdir)["config"])
    if not path.exists():
        raise ValueError(f"{path} does not exist: {workdir} is no run; train there first")
    try:
        return ConfigDict(json.loads(path.read_text()))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); restore or delete it") from error


def as_dict(config: ConfigDict) -> dict[str, Any]:
    """The config as plain JSON values: tuples become lists."""
    return json.loads(json.dumps(config.to_dict()))


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by dotted name."""
    fields = {}
    for name, value in tree.items():
        fields |= (
            flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return fields


def check_same_run(saved: ConfigDict, config: ConfigDict, workdir: Path) -> None:
    """Raises ValueError that lists the fields in which a config differs from the run's own."""
    old, new = flat(as_dict(saved)), flat(as_dict(config))
    changeable = CHANGEABLE[1:] if depends_on_length(old) else CHANGEABLE
    differing = [
        f"{name} ({old.get(name)} there, {new.get(name)} now)"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not name.startswith(changeable)
    ]
    if differing:
        raise ValueError(
            f"{workdir} holds a run with another config: {'; '.join(differing)}. Choose another "
            "--workdir or the run's own config"
        )


def depends_on_length(fields: dict[str, Any]) -> bool:
    """Whether what a run does at a step depends on how many it has; fields by dotted name.

    So it is with a schedule that ends at the last step, and with an objective whose grid or gap
    changes over the run.
    """
    curriculum = fields.get("objective.curriculum.name", "constant")
    return (
        fields.get("optimizer.schedule") != "constant"
        or (curriculum != "constant" and fields.get("objective.curriculum.total_steps") is None)
        or fields.get("objective.total_steps", 0) is None
    )


def environment() -> dict[str, Any]:
    """Versions, devices and the command line."""
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "devices": [str(device) for device in jax.devices()],
        "processes": jax.process_count(),
    }
