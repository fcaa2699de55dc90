"""What the user asked for, and the parts that several modes need of it."""

import os
import re
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from fewstep import data
from fewstep.data import NEWEST_DECODING, Dataset
from fewstep.messages import differences
from fewstep.objectives.base import Params
from fewstep.training.cluster.processes import gather, true_everywhere
from fewstep.training.experiment import Experiment, as_it_runs, build, rebuild, with_sampled
from fewstep.training.labels import with_recorded_rule
from fewstep.training.profile import Window
from fewstep.training.sharding import make_mesh
from fewstep.training.sources import reads_data
from fewstep.training.storage import restore, workdir
from fewstep.training.storage.code_version import code_version, describe_code
from fewstep.training.storage.fields import check_fields
from fewstep.training.storage.identity import as_dict, check_same_sources, flat
from fewstep.training.teacher import (
    abstract_params,
    check_network_of_teacher,
    check_taught,
    parse,
    pinned,
    with_teachers_images,
)

# Fields of a config that are paths, after one of these beginnings if any.
PATHS = ("compilation_cache", "teacher", "data.name", "data.dir", "data.local_dir")
PATHS += ("evaluate.weights", "evaluate.reference")
# Flags in which the processes of one job may differ.
PER_HOST = (
    "config.data.dir",
    "config.data.local_dir",
    "config.compilation_cache",
    "config.evaluate.weights",
)


class Request(NamedTuple):
    """The command line. Fields that were not given are None (paths), "" or their defaults.

    config_of_method: what --config's file has for another method, with the same overrides.
    teachers: the method whose runs teach a method.
    """

    config: ConfigDict | None = None
    workdir: Path | None = None
    config_of_method: Callable[[str], ConfigDict] | None = None
    workdirs: tuple[Path, ...] = ()
    steps: int = 1
    seeds: tuple[int, ...] | None = None
    methods: tuple[str, ...] = ()
    teachers: Mapping[str, str] = {}
    metric: str = ""
    labels: tuple[int | str, ...] = ()
    guidance: float | None = None
    checkpoint: int | None = None
    network: str = ""
    out: Path | None = None
    mesh: tuple[int, ...] = ()
    accelerator: str = ""
    mfu: tuple[float, ...] = ()
    price: float | None = None
    disk_speed: float | None = None
    profile: Window | None = None


def expand_home(text: str) -> str:
    """A path with ~ and ~USER expanded, which a shell leaves in --flag=~/path.

    Raises ValueError for a user that does not exist.
    """
    path = data.path_in_name(text) or text
    if not path.startswith("~"):
        return text
    try:
        return text.removesuffix(path) + str(Path(path).expanduser())
    except RuntimeError as error:
        raise ValueError(f"{text}: there is no user {path.partition('/')[0]}") from error


def expand_paths(config: ConfigDict) -> ConfigDict:
    """The config with ~ expanded in the fields that are paths, and the folder of images absolute.

    A run records where its images lie, and is evaluated from anywhere. Raises ValueError.
    """
    for name in PATHS:
        group, _, field = name.rpartition(".")
        part = config[group] if group else config
        part[field] = expand_home(part[field])
    images = data.path_in_name(config.data.name)
    if images:
        config.data.name = f"{config.data.name.removesuffix(images)}{Path(images).absolute()}"
    return config


def check_same_flags(mode: str, request: Request) -> None:
    """Raises ValueError, in all processes, that names the flags or the code in which they differ.

    Flags in PER_HOST may differ: they say where something lies on a host's own disk.
    """
    values = request._asdict() | {"mode": mode, "config": None}
    values.update({"config_of_method": None, "teachers": None})
    check_same_code()
    flags = {name: str(value) for name, value in values.items()}
    if request.config is not None:
        flags |= flat({"config": as_dict(request.config)})
    commands = gather(flags)
    names = {d.field for command in commands for d in differences(commands[0], command)}
    found = [
        f"--{name} ({', '.join(dict.fromkeys(str(command.get(name)) for command in commands))})"
        for name in sorted(names - {*PER_HOST})
    ]
    if found:
        raise ValueError(
            f"the processes were started with different flags: {'; '.join(found)}. Start all "
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


def require_workdir(request: Request) -> Path:
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


def require_config(request: Request) -> ConfigDict:
    """--config; raises ValueError if it was not given, or for a field that cannot be."""
    if request.config is None:
        raise ValueError("--config=configs/FILE.py:METHOD is needed")
    check_fields(request.config)
    return request.config


def read_dataset(config: ConfigDict, writable: bool = True) -> Dataset:
    """The data set of a config, in this process. Raises FileNotFoundError if it is not here.

    writable: whether data.dir is this user's own choice, which a run's record of it may not be.
    """
    return data.load_selection(data_selection(config), writable)


def data_selection(config: ConfigDict) -> data.Selection:
    """The data set that a config asks for."""
    fields = config.data
    return data.Selection(
        fields.name,
        fields.dir,
        fields.image_size,
        fields.channels,
        fields.decoding,
        fields.background,
        fields.unreadable,
    )


def fill_decoding(config: ConfigDict, folder: Path) -> ConfigDict:
    """The config with the decoding of the run in a folder, else of its teacher, which has the same
    labels, unless it asks for one itself.
    """
    runs = [folder, parse(config.teacher).folder] if config.teacher else [folder]
    begun = next(filter(workdir.is_run, runs), None)
    if config.data.decoding or begun is None:
        return config
    config = config.copy_and_resolve_references()
    config.data.decoding = workdir.load_config(begun).data.decoding
    return config


def load_local_copy(config: ConfigDict) -> Dataset:
    """The data set of a config, copied to data.local_dir unless it is there. Raises OSError."""
    return data.load_copy(data_selection(config), config.data.local_dir)


def load_dataset(config: ConfigDict, writable: bool = True) -> Dataset:
    """The data set of a config. Raises FileNotFoundError if a process does not have it."""
    missing = None
    try:
        dataset = read_dataset(config, writable)
    except FileNotFoundError as error:
        missing = error
    # What is done without images must be done without them in all processes.
    if true_everywhere(missing is None):
        return dataset
    raise missing or FileNotFoundError(
        f"the data set {config.data.name} is there for some processes only; prepare it "
        "(--mode=prepare) on a disk that all see, or on that of each host"
    )


def resolve(config: ConfigDict, dataset: Dataset) -> ConfigDict:
    """The config as it will run: data fields from the data set, shrunk if `debug` is on.

    Raises ValueError if the config asks for other classes than the data set has.
    """
    config = config.copy_and_resolve_references()
    if data.space_of(config.data.name).image:
        config.data.image_size, _, config.data.channels = dataset.image_shape
    config.data.decoding = config.data.decoding or NEWEST_DECODING
    if config.data.num_classes == -1:
        config.data.num_classes = dataset.num_classes
    if config.data.num_classes not in (0, dataset.num_classes):
        raise ValueError(
            f"data.num_classes={config.data.num_classes}, but {dataset.name} has "
            f"{dataset.num_classes}; use -1 for all of them or 0 to train without labels"
        )
    return as_it_runs(config)


def resolve_and_load(config: ConfigDict) -> tuple[ConfigDict, Dataset | None]:
    """The config as it will run, and its data set.

    None for a data set that is not here and that training does not read: images are then what the
    teacher's are. Raises FileNotFoundError if it is needed, ValueError if a teacher is, or for a
    field that cannot be.
    """
    check_fields(config)
    check_network_of_teacher(config)
    try:
        dataset = load_dataset(config)
    except FileNotFoundError:
        if config.teacher:
            config = with_teachers_images(config)
        elif not config.data.image_size or config.data.num_classes < 0:
            raise  # images of unknown size or classes: nothing can be built
        config.data.decoding = config.data.decoding or NEWEST_DECODING
        config = as_it_runs(config)
        experiment = build(config)
        check_taught(config, experiment)
        if reads_data(experiment.objective):
            raise
        return config, None
    return resolve(config, dataset), dataset


def replace_folders(config: ConfigDict, given: ConfigDict) -> ConfigDict:
    """A recorded config with its folders as given: data.dir, and images and a teacher if moved.

    What lies there must be the same (`check_moved_data`). The step of the teacher stays.
    """
    config = config.copy_and_resolve_references()
    config.data.dir = given.data.dir
    if all(data.path_in_name(fields.data.name) for fields in (config, given)):
        config.data.name = given.data.name
    if config.teacher and given.teacher:
        step = parse(config.teacher).step
        config.teacher = f"{parse(given.teacher).folder}" + ("" if step is None else f"@{step}")
    return config


def check_moved_data(
    run: Path, config: ConfigDict, experiment: Experiment, dataset: Dataset | None
) -> None:
    """Raises ValueError unless the images in a moved folder are those that a run was begun with."""
    recorded = workdir.recorded_identity(run)
    moved = config.data.name != recorded.config["data"]["name"]
    if moved and dataset is not None and reads_data(experiment.objective):
        check_same_sources(recorded, dataset.identity, None, run, dataset.files)


def fill_from_record(config: ConfigDict, run: Path) -> ConfigDict:
    """The config with what the run in a folder was begun with, where it leaves that open.

    That is the step of its teacher, and how labels are drawn where its record does not say.
    """
    return with_recorded_rule(pinned(config, run), run)


def resolve_open_fields(config: ConfigDict) -> ConfigDict:
    """The config as it will run; its data set is looked at only if the config leaves fields open.

    Raises FileNotFoundError and ValueError as `resolve_and_load` does.
    """
    check_network_of_teacher(config)
    if 0 in (config.data.image_size, config.data.channels) or config.data.num_classes == -1:
        return resolve_and_load(config)[0]
    return as_it_runs(config)


def find_dataset(
    config: ConfigDict, experiment: Experiment, writable: bool = True
) -> Dataset | None:
    """The data set of a run; None if it is not here and the run was trained without its images."""
    try:
        return load_dataset(config, writable)
    except FileNotFoundError:
        if reads_data(experiment.objective):
            raise
        return None


class LoadedRun(NamedTuple):
    """A trained network, ready to sample on all devices here, however it was trained."""

    config: ConfigDict
    experiment: Experiment
    mesh: Mesh
    params: Params
    step: int


def load_run(request: Request) -> LoadedRun:
    """The run in --workdir, at --checkpoint (the newest), with --network (the one that samples).

    Raises ValueError.
    """
    path = require_workdir(request)
    config = workdir.load_config(path, request.checkpoint)
    if request.network:
        config = with_sampled(config, str(path), request.network, "--network")
    experiment = rebuild(config, str(path))
    mesh = make_mesh()
    if config.evaluate.batch_size % mesh.size:
        config.evaluate.batch_size = -(-config.evaluate.batch_size // mesh.size) * mesh.size
    generator = experiment.objective.players[experiment.objective.generator]
    abstract = abstract_params(generator.network, mesh)
    name = experiment.sample_with
    params, step = restore.restore_network(path, name, abstract, request.checkpoint)
    return LoadedRun(config, experiment, mesh, params, step)
