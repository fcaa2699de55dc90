"""What the user asked for, and the parts that several modes need of it."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

import data
from data import Dataset
from objectives.base import Params
from training import restore, workdir
from training.code_version import code_version, describe_code
from training.experiment import Experiment, build, debugged, rebuild
from training.fields import check_fields
from training.identity import as_dict, flat
from training.processes import gather
from training.sharding import everywhere, make_mesh
from training.teacher import abstract_params, check_taught, with_teachers_images

# Flags in which the processes of one job may differ.
PER_HOST = ("config.data.dir", "config.compilation_cache", "config.evaluate.weights")


class Request(NamedTuple):
    """The command line. Fields that were not given are None (paths), "" or their defaults.

    config_of_method: what --config's file has for another method, with the same overrides.
    teachers: the method whose runs teach a method.
    """

    config: ConfigDict | None
    workdir: Path | None
    config_of_method: Callable[[str], ConfigDict] | None = None
    workdirs: tuple[Path, ...] = ()
    steps: int = 1
    seeds: tuple[int, ...] | None = None
    methods: tuple[str, ...] = ()
    teachers: Mapping[str, str] = {}
    metric: str = ""
    labels: tuple[int, ...] = ()
    guidance: float | None = None
    checkpoint: int | None = None
    network: str = ""
    out: Path | None = None
    mesh: tuple[int, ...] = ()
    accelerator: str = ""
    mfu: tuple[float, ...] = ()
    price: float | None = None
    disk_speed: float | None = None


def check_started_alike(mode: str, request: Request) -> None:
    """Raises ValueError, in all processes, that names the flags or the code in which they differ.

    Flags in PER_HOST may differ: they say where something lies on a host's own disk.
    """
    values = request._asdict() | {"mode": mode, "config": None}
    values.update({"config_of_method": None, "teachers": None})
    check_same_code()
    flags = {name: str(value) for name, value in values.items()}
    if request.config is not None:
        flags |= flat({"config": as_dict(request.config)})
    differing = [
        f"--{name} ({', '.join(dict.fromkeys(str(own) for own in of_name))})"
        for name, of_name in by_flag(gather(flags)).items()
        if name not in PER_HOST and any(own != of_name[0] for own in of_name)
    ]
    if differing:
        raise ValueError(
            f"the processes were started with different flags: {'; '.join(differing)}. Start all "
            "of them with the same command"
        )


def check_same_code() -> None:
    """Raises ValueError, in all processes, that names the versions if they run different code.

    They would compile different programs, and wait in one for the others for ever.
    """
    packages = [f"{name} {metadata.version(name)}" for name in ("jax", "jaxlib")]
    versions = gather([describe_code(code_version()), code_version()["sources"], *packages])
    for index, version in enumerate(versions):
        if version[1:] != versions[0][1:]:
            others, first = (", ".join([own[0], *own[2:]]) for own in (version, versions[0]))
            raise ValueError(
                f"process {index} runs other code than process 0: {others} there, {first} here. "
                "Install the same on all hosts"
            )


def by_flag(commands: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The values of each flag in the processes' commands; None where one does not have it."""
    names = sorted({name for command in commands for name in command})
    return {name: [command.get(name) for command in commands] for name in names}


def required_workdir(request: Request) -> Path:
    """--workdir; raises ValueError if it was not given, or no checkpoint can be written there.

    That is the address of a bucket, or a name that is no UTF-8, which TensorStore does not take.
    """
    if request.workdir is None:
        raise ValueError("--workdir=DIR is needed: the folder of the run")
    if re.match(r"[a-z0-9]{2,}:/", str(request.workdir)):
        raise ValueError(
            f"--workdir={request.workdir} is an address, not a folder; mount the bucket and give "
            "the folder where it is mounted (docs/clusters.md)"
        )
    try:
        os.fspath(request.workdir.absolute()).encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(request.workdir.absolute())
        raise ValueError(
            f"--workdir={shown} is not UTF-8 text; choose another name for the folder"
        ) from error
    return request.workdir


def required_config(request: Request) -> ConfigDict:
    """--config; raises ValueError if it was not given, or for a field that cannot be."""
    if request.config is None:
        raise ValueError("--config=configs/FILE.py:METHOD is needed")
    check_fields(request.config)
    return request.config


def read_dataset(config: ConfigDict, writable: bool = True) -> Dataset:
    """The data set of a config, in this process. Raises FileNotFoundError if it is not here.

    writable: whether data.dir is this user's own choice, which a run's record of it may not be.
    """
    fields = config.data
    return data.load(
        fields.name,
        data_dir=fields.dir,
        image_size=fields.image_size,
        channels=fields.channels,
        writable=writable,
    )


def load_dataset(config: ConfigDict, writable: bool = True) -> Dataset:
    """The data set of a config. Raises FileNotFoundError if a process does not have it."""
    missing = None
    try:
        dataset = read_dataset(config, writable)
    except FileNotFoundError as error:
        missing = error
    # What is done without images must be done without them in all processes.
    if everywhere(missing is None):
        return dataset
    raise missing or FileNotFoundError(
        f"the data set {config.data.name} is there for some processes only; prepare it "
        "(--mode=prepare) on a disk that all see, or on that of each host"
    )


def resolve(config: ConfigDict, dataset: Dataset) -> ConfigDict:
    """The config as it will run: data fields from the data set, shrunk if `debug` is on.

    Raises ValueError if the config asks for other classes than the data set has.
    """
    height, _, channels = dataset.image_shape
    config = config.copy_and_resolve_references()
    config.data.image_size, config.data.channels = height, channels
    if config.data.num_classes == -1:
        config.data.num_classes = dataset.num_classes
    if config.data.num_classes not in (0, dataset.num_classes):
        raise ValueError(
            f"data.num_classes={config.data.num_classes}, but {dataset.name} has "
            f"{dataset.num_classes}; use -1 for all of them or 0 to train without labels"
        )
    return debugged(config) if config.debug else config


def resolve_with_data(config: ConfigDict) -> tuple[ConfigDict, Dataset | None]:
    """The config as it will run, and its data set.

    None for a data set that is not here and that training does not read: images are then what the
    teacher's are. Raises FileNotFoundError if it is needed, ValueError if a teacher is, or for a
    field that cannot be.
    """
    check_fields(config)
    try:
        dataset = load_dataset(config)
    except FileNotFoundError:
        if config.teacher:
            config = with_teachers_images(config)
        elif not config.data.image_size or config.data.num_classes < 0:
            raise  # images of unknown size or classes: nothing can be built
        config = debugged(config) if config.debug else config
        experiment = build(config)
        check_taught(config, experiment)
        if experiment.objective.reads_images:
            raise
        return config, None
    return resolve(config, dataset), dataset


def resolve_where_open(config: ConfigDict) -> ConfigDict:
    """The config as it will run; its data set is looked at only if the config leaves fields open.

    Raises FileNotFoundError and ValueError as `resolve_with_data` does.
    """
    if 0 in (config.data.image_size, config.data.channels) or config.data.num_classes == -1:
        return resolve_with_data(config)[0]
    return debugged(config) if config.debug else config


def dataset_if_here(
    config: ConfigDict, experiment: Experiment, writable: bool = True
) -> Dataset | None:
    """The data set of a run; None if it is not here and the run was trained without its images."""
    try:
        return load_dataset(config, writable)
    except FileNotFoundError:
        if experiment.objective.reads_images:
            raise
        return None


class Run(NamedTuple):
    """A trained network, ready to sample on all devices here, however it was trained."""

    config: ConfigDict
    experiment: Experiment
    mesh: Mesh
    params: Params
    step: int


def load_run(request: Request) -> Run:
    """The run in --workdir, at --checkpoint (the newest), with --network (the one that samples).

    Raises ValueError.
    """
    path = required_workdir(request)
    config = workdir.load_config(path, request.checkpoint)
    if request.network:
        config.update({"ema": {"sample_with": request.network}})
    experiment = rebuild(config, str(path))
    mesh = make_mesh()
    if config.evaluate.batch_size % mesh.size:
        config.evaluate.batch_size = -(-config.evaluate.batch_size // mesh.size) * mesh.size
    abstract = abstract_params(experiment, mesh)
    name = experiment.sample_with
    params, step = restore.restore_network(path, name, abstract, request.checkpoint)
    return Run(config, experiment, mesh, params, step)
