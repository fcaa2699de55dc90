"""--mode=import: make a run of a published file of weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from fewstep.data import NONE, Dataset
from fewstep.messages import shell_flags
from fewstep.modes.draws import many_steps
from fewstep.modes.mode import WORKDIR, Flag, Mode, parse_path
from fewstep.modes.request import Request, load_dataset, require_workdir
from fewstep.modes.student import config_in_place_of
from fewstep.training.cluster.processes import say
from fewstep.training.codec_weights import load_codec
from fewstep.training.cost.sizes import element_count, tree_bytes
from fewstep.training.experiment import Experiment, rebuild
from fewstep.training.imported import imported_config, tree_for
from fewstep.training.labels import known_counts
from fewstep.training.networks import network_title
from fewstep.training.published import PUBLISHED, Import, read_published
from fewstep.training.sharding import make_mesh
from fewstep.training.storage import restore
from fewstep.training.storage.checkpoint import open_checkpoints, save_state
from fewstep.training.storage.fields import is_whole
from fewstep.training.storage.identity import as_dict
from fewstep.training.storage.train_state import TrainState
from fewstep.training.storage.workdir import check_space, claim_workdir, start_run
from fewstep.training.teacher import abstract_params, describe_space
from fewstep.weights.tensors import file_hashes


def import_weights(request: Request) -> None:
    """Write a run in --workdir whose checkpoint of step 0 has the network of --weights.

    Raises ValueError if the file is no published network, or the folder holds a run; writes nothing
    then.
    """
    path, file = require_workdir(request), require_weights(request)
    if restore.has_checkpoint(path):
        raise ValueError(f"{path} holds a run already; choose another --workdir")
    found = read_published(file, request.part, request.layout)
    given = request.fields.get("data.image_size", 0)
    if not is_whole(given):
        raise ValueError(f"data.image_size={given!r} must be a whole number")
    own = imported_config(found, file, given, request.fields.get("codec.name"))
    config = config_in_place_of(own, request)
    check_given_sizes(config, own, file)
    if config.codec.weights:
        config.codec.fingerprint = load_codec(config).fingerprint
    dataset = load_dataset(config) if config.data.name != NONE else None
    if dataset is not None:
        check_classes(found, dataset, file)
    experiment = rebuild(config, str(path))
    record = {"layout": found.layout, "part": request.part, "files": file_hashes(file)}
    with claim_workdir(path):
        state = state_of(experiment, config, found)
        check_space(path, tree_bytes(state))
        write_run(path, config, state, dataset, record)
    say(summary(path, config, experiment, found))


def require_weights(request: Request) -> Path:
    """Return --weights. Raises ValueError if it is missing or no file."""
    if request.weights is None:
        raise ValueError("--weights is missing; name a file, as in --weights=SiT-XL-2-256.pt")
    if not request.weights.is_file():
        raise ValueError(f"--weights={request.weights} is no file; name the published file")
    return request.weights


def check_given_sizes(config: ConfigDict, own: ConfigDict, file: Path) -> None:
    """Raises ValueError if given sizes of the data are not those of the file."""
    for name in ("num_classes", "channels"):
        if config.data[name] != own.data[name]:
            raise ValueError(
                f"data.{name}={config.data[name]}, but the network in {file} has {own.data[name]}; "
                "leave it out"
            )


def check_classes(found: Import, dataset: Dataset, file: Path) -> None:
    """Raises ValueError if a data set has other classes than the network."""
    if found.sizes.classes not in (0, dataset.num_classes):
        raise ValueError(
            f"the label table in {file} has {found.sizes.classes} classes and the null class, and "
            f"{dataset.name} has {dataset.num_classes}; name the data that it was trained on"
        )


def state_of(experiment: Experiment, config: ConfigDict, found: Import) -> TrainState:
    """Return the state of a run that has made no step, with the parameters of the file."""
    objective = experiment.objective
    network = objective.players[objective.generator].network
    shapes = abstract_params(network, make_mesh(**config.mesh))
    params = jax.tree.map(
        lambda leaf, shape: jax.device_put(leaf, shape.sharding),
        tree_for(config, found.params),
        shapes,
    )
    return TrainState(
        step=jnp.int32(0),
        networks={objective.generator: params},
        followers={},
        optimizers={
            name: optimizer.transform.init(params)
            for name, optimizer in experiment.optimizers.items()
        },
    )


def write_run(
    path: Path,
    config: ConfigDict,
    state: TrainState,
    dataset: Dataset | None,
    record: Mapping[str, Any],
) -> None:
    """Record the run and save its checkpoint."""
    counts = known_counts(config, dataset)
    run = start_run(
        path,
        config,
        data=None if dataset is None else dataset.identity,
        class_counts=counts or None,
        files=() if dataset is None else dataset.files,
        imported=record,
    )
    with open_checkpoints(path) as checkpoints:
        save_state(checkpoints, state, as_dict(config), run.stamp)


def summary(path: Path, config: ConfigDict, experiment: Experiment, found: Import) -> str:
    """Return the line that says what was imported and what to do with it."""
    flags = shell_flags("sample", workdir=path, steps=many_steps(experiment.objective))
    unknown = config.codec.name and not config.codec.fingerprint
    return (
        f"{path} is a run of {config.method} with the network of {PUBLISHED[found.layout].title}: "
        f"{network_title(config)}, {element_count(found.params)} parameters, "
        f"{describe_space(experiment.space)}, {experiment.num_classes} classes; draw from it: "
        f"{flags}{' --config.codec.weights=FILE' if unknown else ''}"
    )


IMPORT = Mode(
    import_weights,
    "Make a run of a published file of weights: DiT, SiT, REPA, EDM.",
    {
        **WORKDIR,
        "weights": Flag(
            "The file: .pt, .ckpt, .pkl, safetensors, its *.index.json, or .npz.", parse_path
        ),
        "part": Flag("Part of a training checkpoint, such as ema; default: the whole file."),
        "layout": Flag(
            f"Whose network it is: {', '.join(PUBLISHED)}; default: by the names in the file."
        ),
    },
    replaces=(
        "data",
        "codec",
        "evaluate",
        "objective",
        "model.scan",
        "model.dtype",
        "model.attention",
    ),
)
