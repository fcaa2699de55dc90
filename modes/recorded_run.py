"""A run that exists: its config, data and parameters, and what a request replaces of them."""

from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from fewstep import data
from fewstep.data import Dataset
from fewstep.data.encoded import LATENTS
from fewstep.modes.mistakes import no_effect
from fewstep.modes.mode import Mode
from fewstep.modes.request import Request, require_workdir
from fewstep.modes.resolve import load_dataset
from fewstep.objectives.base import Params
from fewstep.training.codec_weights import load_codec
from fewstep.training.cost.choice import field_value
from fewstep.training.densities import density_identity
from fewstep.training.experiment import (
    Experiment,
    rebuild,
    with_sampling_network,
    with_solver,
)
from fewstep.training.labels import with_recorded_label_shares
from fewstep.training.location import parse_location, pin_teacher
from fewstep.training.sharding import make_mesh
from fewstep.training.sources import reads_data
from fewstep.training.storage import restore, workdir
from fewstep.training.storage.identity import as_dict, check_same_sources, flatten_fields
from fewstep.training.teacher import abstract_params

# Fields of --config that say how a process works, not what a run is.
OF_PROCESS = ("compilation_cache",)


def check_method(recorded: ConfigDict, request: Request) -> None:
    """Raises ValueError if --config is of another method than the run in --workdir."""
    if request.config is not None and request.config.method != recorded.method:
        raise ValueError(
            f"--config is of {request.config.method}, but {request.workdir} is a run of "
            f"{recorded.method}; leave out --config: what is not given comes from the run"
        )


def check_effect(request: Request, mode_name: str, mode: Mode) -> None:
    """Raises ValueError for a field given beside --config that the mode leaves as in the run.

    A field with the value of the run is none, nor is one of this process. Raises ValueError for a
    config of another method too, which may lack fields of the run's.
    """
    if request.config is None or not request.given:
        return
    recorded = workdir.load_config(require_workdir(request), request.checkpoint)
    check_method(recorded, request)
    own, asked = (flatten_fields(as_dict(config)) for config in (recorded, request.config))
    for name in request.given:
        is_read = name in OF_PROCESS or mode.may_replace(name)
        if not is_read and own.get(name) != asked.get(name):
            raise ValueError(no_effect(name, mode_name, mode))


def replace_folders(config: ConfigDict, given: ConfigDict) -> ConfigDict:
    """Return a recorded config with the places of a given one: data.dir, images, codec, teacher.

    The steps of teacher and codec stay. `check_moved_data` checks that the images are the same.
    """
    config = config.copy_and_resolve_references()
    config.data.dir = given.data.dir
    config.codec.weights = moved_run(config.codec.weights, given.codec.weights)
    if all(data.path_in_name(fields.data.name) for fields in (config, given)):
        config.data.name = given.data.name
    if config.teacher and given.teacher:
        place = parse_location(given.teacher)
        config.teacher = str(place._replace(step=parse_location(config.teacher).step))
    return config


def moved_run(recorded: str, given: str) -> str:
    """The place that is given; a run without a step has the recorded one. "" keeps the record's."""
    if not (recorded and given):
        return given or recorded
    place, step = parse_location(given), parse_location(recorded).step
    if step is None or place.step is not None or not workdir.is_run(place.folder):
        return given
    return str(place._replace(step=step))


def check_moved_data(
    run: Path, config: ConfigDict, experiment: Experiment, dataset: Dataset | None
) -> None:
    """Raises ValueError if a moved folder has other images than those of the run."""
    recorded = workdir.recorded_identity(run)
    moved = config.data.name != recorded.config["data"]["name"]
    if moved and dataset is not None and reads_data(experiment.objective):
        images = {name: value for name, value in recorded.data.items() if name != LATENTS}
        own = recorded if dataset.moments else recorded._replace(data=images)
        check_same_sources(own, dataset.identity, None, run, dataset.files)


def check_density_file(run: Path, experiment: Experiment) -> None:
    """Raises ValueError if the file of a run's density has changed since the run began."""
    recorded = workdir.recorded_identity(run)
    if not reads_data(experiment.objective):
        check_same_sources(recorded, density_identity(experiment.model.density), None, run)


def fill_from_record(config: ConfigDict, run: Path) -> ConfigDict:
    """Return the config with open values filled from the record of the run in a folder.

    These are the step of the teacher and, for older records, how labels are drawn.
    """
    return with_recorded_label_shares(pin_teacher(config, run), run)


def find_dataset(
    config: ConfigDict, experiment: Experiment, writable: bool = True
) -> Dataset | None:
    """Return the data set of a run; None if it is missing and the run does not read images."""
    try:
        return load_dataset(config, writable)
    except FileNotFoundError:
        if reads_data(experiment.objective):
            raise
        return None


class LoadedRun(NamedTuple):
    """A trained network, ready to sample on all devices of this job. folder: of the run."""

    config: ConfigDict
    experiment: Experiment
    mesh: Mesh
    params: Params
    step: int
    folder: Path = Path()


def given_place(request: Request, field: str) -> str:
    """The new place of something that a recorded run names, from the command line; or ""."""
    if request.config is not None:
        return field_value(request.config, field) if field in (request.given or ()) else ""
    return request.fields.get(field, "")


def load_run(request: Request) -> LoadedRun:
    """Load the run in --workdir at --checkpoint, with --network and --solver.

    Defaults: the newest checkpoint, and the network and solver that sample by the config.

    Raises ValueError.
    """
    path = require_workdir(request)
    config = workdir.load_config(path, request.checkpoint)
    check_method(config, request)
    config.codec.weights = moved_run(config.codec.weights, given_place(request, "codec.weights"))
    config.data.dir = given_place(request, "data.dir") or config.data.dir
    if data.path_in_name(config.data.name):
        config.data.name = given_place(request, "data.name") or config.data.name
    if config.codec.name:
        load_codec(config)  # raises its errors before any compute
    if request.network:
        config = with_sampling_network(config, str(path), request.network, "--network")
    if request.solver:
        config = with_solver(config, str(path), request.solver)
    experiment = rebuild(config, str(path))
    check_density_file(path, experiment)
    mesh = make_mesh()
    if config.evaluate.batch_size % mesh.size:
        config.evaluate.batch_size = -(-config.evaluate.batch_size // mesh.size) * mesh.size
    generator = experiment.objective.players[experiment.objective.generator]
    abstract = abstract_params(generator.network, mesh)
    name = experiment.sample_with
    params, step = restore.restore_network(path, name, abstract, request.checkpoint)
    return LoadedRun(config, experiment, mesh, params, step, path)
