"""The request of a user: the values of the flags, with paths written out, and what they need."""

import os
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from fewstep import data
from fewstep.buckets import is_address
from fewstep.densities.table import KIND
from fewstep.densities.user_code import permit
from fewstep.eval.reference import STATISTICS
from fewstep.messages import differences
from fewstep.models.user_sampler import is_sampler_file
from fewstep.training.cluster.processes import gather
from fewstep.training.profile import Window
from fewstep.training.storage.code_version import code_version, describe_code
from fewstep.training.storage.fields import check_field_values
from fewstep.training.storage.identity import as_dict, flatten_fields

# Fields of a config that are paths, some after a prefix such as folder:.
PATHS = ("compilation_cache", "teacher", "data.name", "data.dir", "data.local_dir")
PATHS += ("codec.weights", "evaluate.weights", "evaluate.reference")
# Those that are a path and nothing else, and that a run records as they are.
RECORDED = ("data.dir", "codec.weights", "evaluate.weights")
# Flags that may differ between the processes of one job.
PER_HOST = (
    "config.data.dir",
    "config.data.local_dir",
    "config.codec.weights",
    "config.compilation_cache",
    "config.evaluate.weights",
)


class Request(NamedTuple):
    """The values of the command line, with defaults for flags that were not given.

    The flag --from has the field `from_`, since Python keeps the word for itself.

    given: dotted names of the config's fields that the user set; None if the config is final, and a
    student inherits nothing. fields: dotted name -> value of the fields of a recorded run that the
    user replaces. config_of_method: method -> its config in the file of --config, with the same
    overrides. teachers: method -> the method of its teacher. sweep: dotted name -> texts of the
    values of a field. cell: (index from 1, count) of the share of this process; () if not given.
    """

    config: ConfigDict | None = None
    workdir: Path | None = None
    given: tuple[str, ...] | None = None
    fields: Mapping[str, Any] = {}
    config_of_method: Callable[[str], ConfigDict] | None = None
    workdirs: tuple[Path, ...] = ()
    steps: int = 1
    seeds: tuple[int, ...] | None = None
    methods: tuple[str, ...] = ()
    teachers: Mapping[str, str] = {}
    metric: str = ""
    labels: tuple[int | str, ...] = ()
    grid: tuple[str, ...] = ()
    sweep: Mapping[str, tuple[str, ...]] = {}
    cell: tuple[int, ...] = ()
    guidance: float | None = None
    checkpoint: int | None = None
    network: str = ""
    solver: str = ""
    out: Path | None = None
    mesh: tuple[int, ...] = ()
    accelerator: str = ""
    mfu: tuple[float, ...] = ()
    price: float | None = None
    disk_speed: float | None = None
    profile: Window | None = None
    from_: str = ""
    weights: Path | None = None
    part: str = ""
    layout: str = ""
    format: str = ""
    runtime: Path | None = None
    samples: Path | None = None
    reference: str = ""
    split: str = "train"
    maps: bool = False
    teacher: str = ""
    beside: str = ""


def expand_home(text: str) -> str:
    """Expand ~ and ~USER, which shells do not expand in --flag=~/path.

    Raises ValueError for a user that does not exist.
    """

    def expand(path: str) -> str:
        if not path.startswith("~"):
            return path
        try:
            return str(Path(path).expanduser())
        except RuntimeError as error:
            user = path.partition("/")[0][1:]
            raise ValueError(f"{text}: the user {user} does not exist") from error

    return data.replace_paths(text, expand) if data.path_in_name(text) else expand(text)


def expand_paths(config: ConfigDict) -> ConfigDict:
    """Expand ~ in the path fields of a config, in place, and make them absolute.

    A run records them, and may be evaluated from any directory. Of a teacher, training records the
    folder. Raises ValueError.
    """
    for name in PATHS:
        group, _, field = name.rpartition(".")
        part = config[group] if group else config
        part[field] = expand_home(part[field])
        if part[field] and name in RECORDED:
            part[field] = absolute(part[field])
    config.data.name = data.replace_paths(config.data.name, absolute)
    fields = config.evaluate
    of_file = fields.reference.endswith(STATISTICS)
    fields.reference = (
        absolute(fields.reference) if of_file else data.replace_paths(fields.reference, absolute)
    )
    return config


def absolute(path: str) -> str:
    """The absolute form of a path; an address stays."""
    return path if is_address(path) else str(Path(path).absolute())


def checked(config: ConfigDict) -> ConfigDict:
    """Return the config with ~ expanded. Raises ValueError for a value out of range."""
    check_field_values(config)
    return expand_paths(config)


def permit_code(density: str, teacher: str = "") -> None:
    """Let Python files run, because the user has named them as data.name or as teacher."""
    if density.startswith(f"{KIND}:") and (path := data.path_in_name(density)):
        permit(expand_home(path))
    if is_sampler_file(teacher):
        permit(expand_home(teacher))


def check_same_flags(mode: str, request: Request) -> None:
    """Raises ValueError in all processes if their flags or their code differ; names what differs.

    Flags in PER_HOST may differ, since they name paths on the disk of each host.
    """
    values = request._asdict() | {"mode": mode, "config": None}
    values.update(dict.fromkeys(("config_of_method", "teachers", "given", "fields")))
    values.update({f"config.{name}": value for name, value in request.fields.items()})
    check_same_code()
    flags = {name.removesuffix("_"): str(value) for name, value in values.items()}
    if request.config is not None:
        flags |= flatten_fields({"config": as_dict(request.config)})
    commands = gather(flags)
    names = {d.field for command in commands for d in differences(commands[0], command)}
    found = [
        f"--{name} ({', '.join(dict.fromkeys(str(command.get(name)) for command in commands))})"
        for name in sorted(names - {*PER_HOST})
    ]
    if found:
        raise ValueError(
            f"the processes were started with different flags: {'; '.join(found)}; start all of "
            "them with the same command"
        )


def check_same_code() -> None:
    """Raises ValueError in all processes if their code or their JAX differs; names the versions.

    Processes with different code would compile different programs, and wait for each other forever.
    """
    packages = [f"{name} {metadata.version(name)}" for name in ("jax", "jaxlib")]
    versions = gather([describe_code(code_version()), code_version()["sources"], *packages])
    for index, version in enumerate(versions):
        if version[1:] != versions[0][1:]:
            others, first = (", ".join([own[0], *own[2:]]) for own in (version, versions[0]))
            raise ValueError(
                f"process {index} runs other code than process 0: {others} there, {first} here; "
                "install the same code on all hosts"
            )


def require_workdir(request: Request) -> Path:
    """Return --workdir. Raises ValueError if it is missing or cannot hold checkpoints.

    TensorStore cannot write to the address of a bucket or to a name that is not UTF-8.
    """
    if request.workdir is None:
        raise ValueError(
            "--workdir is missing; name the folder of the run, as in --workdir=runs/digits"
        )
    if is_address(request.workdir):
        raise ValueError(
            f"--workdir={request.workdir} is an address, not a folder; mount the bucket and "
            "name the folder of the mount (docs/clusters.md)"
        )
    try:
        os.fspath(request.workdir.absolute()).encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(request.workdir.absolute())
        raise ValueError(
            f"--workdir={shown} is not UTF-8 text; choose another name for the folder"
        ) from error
    return request.workdir


def require_config(request: Request) -> ConfigDict:
    """Return --config. Raises ValueError if it is missing or has an invalid field."""
    if request.config is None:
        raise ValueError(
            "--config is missing; name a config, as in --config=configs/digits.py:shortcut"
        )
    check_field_values(request.config)
    return request.config
