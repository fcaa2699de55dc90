"""The config of a student: what it takes from its teacher, and which methods can learn from it."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from fewstep.messages import Difference
from fewstep.models.user_sampler import is_sampler_file
from fewstep.modes.job import started
from fewstep.modes.request import Request, expand_paths, require_config
from fewstep.training.cluster.processes import say
from fewstep.training.cost.choice import fill, open_fields
from fewstep.training.cost.hardware import present_hardware
from fewstep.training.experiment import build, effective_config, rebuild
from fewstep.training.inheritance import (
    check_given,
    check_own_path,
    describe_inherited,
    inherit,
    inherited_fields,
    is_set,
    with_scales,
)
from fewstep.training.location import (
    check_other_run,
    find_teacher,
    locate_teacher,
    missing_teacher_message,
    parse_location,
)
from fewstep.training.sharding import make_mesh
from fewstep.training.sources import reads_teacher
from fewstep.training.storage import restore, workdir
from fewstep.training.storage.fields import check_field_values
from fewstep.training.storage.identity import as_dict
from fewstep.training.teacher import load_teacher_config


class Student(NamedTuple):
    """A config after inheritance, and the fields that this changed; () without a teacher."""

    config: ConfigDict
    inherited: Collection[Difference] = ()


def read_student(request: Request) -> Student:
    """Return the config of a request, with what it inherits if it has a teacher.

    A student that has begun keeps the values of its own record, so that it goes on wherever its
    teacher is. Raises ValueError for a teacher that is missing or cannot teach, and for a field
    that the user sets to another value than the teacher's.
    """
    config = require_config(request)
    if request.given is None or not config.teacher or is_sampler_file(config.teacher):
        return Student(config)
    if student_goes_on(config, request.workdir):
        kept = keep_inherited(request, workdir.load_config(request.workdir))
        return Student(follow_teacher(kept, request.workdir))
    if request.workdir is not None:
        check_other_run(config, request.workdir)
    teacher = workdir.load_config(locate_teacher(config.teacher).folder)
    try:
        student = taught(config, teacher, request.given)
    except ValueError as error:
        able = able_methods(request, teacher)
        if not able:
            raise
        raise ValueError(refusal(config, teacher, str(error), able)) from error
    return Student(student, inherited_fields(config, student))


def refusal(config: ConfigDict, teacher: ConfigDict, reason: str, able: Collection[str]) -> str:
    """Return the error message for a method that cannot use a teacher which others can use."""
    named = f"teacher={config.teacher}"
    if not reason.startswith(named):
        reason = f"{named} is a {teacher.method} run, which {config.method} cannot use: {reason}"
    return f"{reason}. Methods that can use it: {', '.join(able)}"


def keep_inherited(request: Request, recorded: ConfigDict) -> ConfigDict:
    """Return the config of a request, with what the student of a record inherited."""
    if request.given is None or not recorded.teacher:
        return request.config
    config = inherit(request.config, recorded, request.given)
    return with_scales(config, recorded.teacher_scales, recorded, request.given)


def config_in_place_of(recorded: ConfigDict, request: Request) -> ConfigDict:
    """Return --config, else the config of a record, with the fields that the user replaces.

    --config of a student has what the student inherited. Raises ValueError for an invalid value.
    """
    config = recorded if request.config is None else keep_inherited(request, recorded)
    config = config.copy_and_resolve_references()
    with config.ignore_type():
        config.update_from_flattened_dict(request.fields)
    check_field_values(config)
    return expand_paths(config)


def announce_inherited(student: Student) -> None:
    """Print the fields in which a new student follows its teacher and not its config file."""
    found = [one for one in student.inherited if is_set(one.first)]
    if found:
        say(f"inherits from {student.config.teacher}: {describe_inherited(found)}")


def student_goes_on(config: ConfigDict, folder: Path | None) -> bool:
    """Whether a folder holds a student that goes on: by its checkpoint, or without its teacher."""
    if folder is None or not workdir.is_run(folder) or not workdir.load_config(folder).teacher:
        return False
    missing = not workdir.is_run(parse_location(config.teacher).folder)
    return missing or restore.has_checkpoint(folder)


def taught(config: ConfigDict, teacher: ConfigDict, given: Collection[str]) -> ConfigDict:
    """Return the config of a new student. Raises ValueError if the teacher cannot teach it."""
    student = inherit(config, teacher, given)
    check_given(student, teacher, given)
    planned = student
    if open_fields(student):  # any values will do: what must agree is inherited
        planned = fill(student, present_hardware(make_mesh(**student.mesh)), images=None)
    planned = effective_config(planned)
    experiment = build(planned)
    check_own_path(config, planned, experiment)
    load_teacher_config(planned, experiment)
    return student


def able_methods(request: Request, teacher: ConfigDict) -> list[str]:
    """Return the methods of the config file that can use the teacher; of equal ones, the first.

    For a method that needs no teacher this is the teacher's own method, which goes on from it.
    """
    student = request.config.method in request.teachers
    found: dict[str, str] = {}
    for method in request.teachers if student else [teacher.method]:
        try:
            config = taught(request.config_of_method(method), teacher, request.given)
        except ValueError:
            continue
        found.setdefault(json.dumps({**as_dict(config), "method": ""}), method)
    return [*found.values()]


def follow_teacher(config: ConfigDict, folder: Path) -> ConfigDict:
    """Return the config of a run that has begun, with the place where its teacher is now.

    Raises ValueError if the run needs its teacher and it is not found.
    """
    if not config.teacher or is_sampler_file(config.teacher):
        return config
    place = find_teacher(folder, config.teacher)
    if not workdir.is_run(place.folder):
        if needs_teacher(workdir.load_config(folder), folder):
            raise ValueError(missing_teacher_message(folder, config.teacher))
    elif place.folder != parse_location(config.teacher).folder:
        say(f"the teacher is no longer at {config.teacher}; {place} has its parameters")
        config = config.copy_and_resolve_references()
        config.teacher = str(place)
    return config


def needs_teacher(recorded: ConfigDict, folder: Path) -> bool:
    """Return whether a begun run reads its teacher: always, or to start if it has no checkpoint."""
    experiment = started(rebuild(recorded, str(folder)), restore.has_checkpoint(folder))
    return reads_teacher(experiment.objective)
