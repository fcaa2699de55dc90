"""Where teachers are: the place that a config names, and where one is that was moved."""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from fewstep.models.user_sampler import is_sampler_file
from fewstep.training.storage import restore, workdir
from fewstep.training.storage.checkpoint import FOLDER

# Folders around a student, and last parts of its teacher's old path, that a search joins.
DEPTH = 3


class Location(NamedTuple):
    """Where a teacher is: a run's folder and a step; None is the newest step."""

    folder: Path
    step: int | None

    def __str__(self) -> str:
        """WORKDIR[@STEP], as a config names it."""
        return f"{self.folder}" + ("" if self.step is None else f"@{self.step}")


def parse_location(field: str) -> Location:
    """The folder, made absolute, and the step in WORKDIR[@STEP]."""
    match = re.fullmatch(r"(.*?)(?:@(\d+))?", field)
    return Location(Path(match[1]).expanduser().absolute(), int(match[2]) if match[2] else None)


def locate_teacher(field: str) -> Location:
    """`parse_location` of a run that exists. Raises ValueError if the folder holds none."""
    location = parse_location(field)
    if not workdir.is_run(location.folder):
        raise ValueError(
            f"teacher={field}: {location.folder} is no run; set --config.teacher=WORKDIR or "
            "WORKDIR@STEP to the folder of one, its new place if it was moved"
        )
    return location


def has_step(run: Path, step: int | None) -> bool:
    """Whether a run has a checkpoint of that step."""
    return (run / FOLDER / str(step)).is_dir()


def pin_teacher(config: ConfigDict, run: Path) -> ConfigDict:
    """The config with the absolute folder and the step of its teacher, as a run records it.

    A resumed run keeps the step that it began with, unless the config names another. Raises
    ValueError if there is no such teacher or step, or the teacher is the run itself.
    """
    if not config.teacher:
        return config
    config = config.copy_and_resolve_references()
    asked = parse_location(config.teacher)
    if is_sampler_file(config.teacher):
        config.teacher = str(asked.folder)
        return config
    check_other_run(config, run)
    step = recorded_teacher_step(run, asked)
    if step is None:
        step = restore.saved_step(locate_teacher(config.teacher).folder, asked.step)
    # The teacher may still be training, so all processes use the step that process 0 sees.
    step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
    config.teacher = f"{asked.folder}@{step}"
    return config


def check_other_run(config: ConfigDict, run: Path) -> None:
    """Raises ValueError if a run's teacher is the run itself."""
    if config.teacher and parse_location(config.teacher).folder.resolve() == run.resolve():
        raise ValueError(
            f"teacher={config.teacher} is the run itself; choose another --workdir for the student"
        )


def recorded_teacher_step(run: Path, asked: Location) -> int | None:
    """The teacher's step that a run began with; None if `asked` is another step or teacher.

    None also for a run without a checkpoint, whose folder is free for any config.
    """
    if not restore.has_checkpoint(run):
        return None
    recorded = workdir.load_config(run).teacher
    folder, step = parse_location(recorded)
    if not recorded or asked.step not in (None, step):
        return None
    # Its parameters identify a teacher (teacher_identity): its folder may be moved, or a link.
    moved = workdir.is_run(folder) and folder.resolve() != asked.folder.resolve()
    return None if moved and not has_step(asked.folder, step) else step


def find_teacher(student: Path, asked: str) -> Location:
    """Where the teacher of a begun student is: the asked place if a run is there, else a new one.

    A moved teacher is known by its parameters. It is looked for beside the student and beside the
    asked place. Returns the asked place if no run there has these parameters.
    """
    location = parse_location(asked)
    identity = workdir.recorded_identity(student).teacher
    if workdir.is_run(location.folder) or not (identity and identity.get("fingerprint")):
        return location
    step = identity["step"]
    for folder in nearby_folders(student.absolute(), location.folder):
        other = folder.absolute() != student.absolute()
        if other and has_step(folder, step) and has_network(folder, identity):
            return Location(folder, step)
    return location


def has_network(run: Path, identity: Mapping[str, Any]) -> bool:
    """Whether a run's checkpoint has the step, network and fingerprint of a teacher's identity."""
    with suppress(ValueError):
        prints = restore.read_record(run, identity["step"])["fingerprints"]
        return prints.get(identity["network"]) == identity["fingerprint"]
    return False


def nearby_folders(student: Path, old: Path) -> Iterator[Path]:
    """Folders where a teacher may be that was at `old`: those of a tree that was moved first."""
    for above in student.parents[:DEPTH]:
        for count in range(1, min(DEPTH + 1, len(old.parts))):
            yield above.joinpath(*old.parts[-count:])
    for parent in (student.parent, old.parent):
        with suppress(OSError):
            yield from sorted(parent.iterdir())


def missing_teacher_message(student: Path, asked: str) -> str:
    """The error message for a begun student whose teacher is not found."""
    recorded = workdir.recorded_identity(student)
    was, identity = recorded.config["teacher"], recorded.teacher
    known = f" ({describe_identity(identity)})" if identity else ""
    return (
        f"teacher={asked}: no run is there, and none nearby is the teacher of {student}, which was "
        f"at {was}{known}; name its new place by --config.teacher=WORKDIR"
    )


def describe_identity(teacher: Mapping[str, Any]) -> str:
    """The identity of a teacher in words. Records of older versions lack the id of its run."""
    run = f"run {teacher['run']}, " if teacher.get("run") else ""
    return f"{run}{teacher['network']} with fingerprint {teacher['fingerprint']}"
