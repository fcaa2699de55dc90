"""--mode=import: make a run of a published file of weights, or of a network that was exported."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from fewstep.data import NONE, Dataset
from fewstep.messages import shell_flags
from fewstep.modes.draws import many_steps
from fewstep.modes.mode import WORKDIR, Flag, Mode, parse_path
from fewstep.modes.request import Request, require_workdir
from fewstep.modes.resolve import load_dataset
from fewstep.modes.student import config_in_place_of
from fewstep.training.cluster.processes import say
from fewstep.training.codec_weights import load_codec
from fewstep.training.cost.sizes import element_count, tree_bytes
from fewstep.training.experiment import Experiment, rebuild
from fewstep.training.exports.own import find_own
from fewstep.training.imported import Imported, read_import, tree_for
from fewstep.training.labels import known_counts
from fewstep.training.networks import network_title
from fewstep.training.published import PUBLISHED
from fewstep.training.sharding import make_mesh
from fewstep.training.storage import restore
from fewstep.training.storage.checkpoint import open_checkpoints, save_state
from fewstep.training.storage.fields import is_whole
from fewstep.training.storage.identity import as_dict
from fewstep.training.storage.train_state import TrainState
from fewstep.training.storage.workdir import check_space, claim_workdir, start_run
from fewstep.training.teacher import abstract_params, describe_space
from fewstep.weights.flax_checkpoints import find_checkpoint
from fewstep.weights.tensors import file_hashes


def import_weights(request: Request) -> None:
    """Write a run in --workdir whose checkpoint of step 0 has the network of --weights.

    Raises ValueError if the file is no published network, or the folder holds a run; writes nothing
    then.
    """
    path, file = require_workdir(request), require_weights(request)
    if restore.has_checkpoint(path):
        raise ValueError(f"{path} holds a run already; choose another --workdir")
    given = request.fields.get("data.image_size", 0)
    if not is_whole(given):
        raise ValueError(f"data.image_size={given!r} must be a whole number")
    found = read_import(file, request.part, request.layout, given, request.fields.get("codec.name"))
    config = config_in_place_of(found.config, request)
    check_given_sizes(config, found)
    if config.codec.weights:
        config.codec.fingerprint = load_codec(config).fingerprint
    named = "data.name" in request.fields and config.data.name != NONE
    dataset = load_dataset(config) if named else None
    if dataset is not None:
        check_classes(found, dataset)
    experiment = rebuild(config, str(path))
    check_shapes(experiment, config, found)
    record = {"layout": found.layout, "part": request.part, "files": file_hashes(found.file)}
    with claim_workdir(path):
        state = state_of(experiment, config, found)
        check_space(path, tree_bytes(state))
        write_run(path, config, state, dataset, record, found.class_counts)
    say(summary(path, config, experiment, found))


def require_weights(request: Request) -> Path:
    """Return --weights. Raises ValueError if it is missing or no file."""
    if request.weights is None:
        raise ValueError("--weights is missing; name a file, as in --weights=SiT-XL-2-256.pt")
    found = (request.weights.is_file(), find_own(request.weights), find_checkpoint(request.weights))
    if not any(found):
        raise ValueError(
            f"--weights={request.weights} is no file; name the published file, or a folder that "
            "--mode=export or Flax wrote"
        )
    return request.weights


def check_given_sizes(config: ConfigDict, found: Imported) -> None:
    """Raises ValueError if given sizes of the data are not those of the file."""
    for name in ("num_classes", "channels", "image_size"):
        if config.data[name] != found.config.data[name]:
            raise ValueError(
                f"data.{name}={config.data[name]}, but the network in {found.file} has "
                f"{found.config.data[name]}; leave it out"
            )


def check_classes(found: Imported, dataset: Dataset) -> None:
    """Raises ValueError if a data set has other classes than the network."""
    classes = found.config.data.num_classes
    if classes not in (0, dataset.num_classes):
        raise ValueError(
            f"the label table in {found.file} has {classes} classes and the null class, and "
            f"{dataset.name} has {dataset.num_classes}; name the data that it was trained on"
        )


def check_shapes(experiment: Experiment, config: ConfigDict, found: Imported) -> None:
    """Raises ValueError if given fields make the network another one than that of the file."""
    network = experiment.objective.players[experiment.objective.generator].network
    trees = tree_for(config, found.params), jax.eval_shape(network.init, jax.random.key(0))
    own, needed = (jax.tree.map(lambda leaf: leaf.shape, tree) for tree in trees)
    if own != needed:
        raise ValueError(
            f"the network in {found.file} is not that of the given fields: with these images, "
            "codec or objective its parameters have other names or shapes; leave out what changes "
            "them"
        )


def state_of(experiment: Experiment, config: ConfigDict, found: Imported) -> TrainState:
    """Return the state of a run whose generator, and what follows it, has the parameters of a file.

    Other players are not there, so that a run of several samples, teaches and starts others, but
    does not go on. Optimizers have made no update.
    """
    objective = experiment.objective
    network = objective.players[objective.generator].network
    shapes = abstract_params(network, make_mesh(**config.mesh))
    params = jax.tree.map(
        lambda leaf, shape: jax.device_put(leaf, shape.sharding),
        tree_for(config, found.params),
        shapes,
    )
    known = {objective.generator: params}
    for name, follower in objective.followers.items():
        if follower.source in known:
            known[name] = params
    optimizer = experiment.optimizers[objective.generator]
    return TrainState(
        step=jnp.int32(found.step),
        networks={objective.generator: known.pop(objective.generator)},
        followers=known,
        optimizers={objective.generator: optimizer.transform.init(params)},
    )


def write_run(
    path: Path,
    config: ConfigDict,
    state: TrainState,
    dataset: Dataset | None,
    record: Mapping[str, Any],
    class_counts: Sequence[int] | None,
) -> None:
    """Record the run and save its checkpoint. class_counts: those of its data, if known."""
    counts = known_counts(config, dataset) or class_counts
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


def summary(path: Path, config: ConfigDict, experiment: Experiment, found: Imported) -> str:
    """Return the line that says what was imported and what to do with it."""
    steps = many_steps(experiment.objective) or min(config.evaluate.steps, default=1)
    flags = shell_flags("sample", workdir=path, steps=steps)
    unknown = config.codec.name and not config.codec.fingerprint
    return (
        f"{path} is a run of {config.method} with {found.title}: "
        f"{network_title(config)}, {element_count(found.params)} parameters, "
        f"{describe_space(experiment.space)}, {experiment.num_classes} classes; draw from it: "
        f"{flags}{' --config.codec.weights=FILE' if unknown else ''}"
    )


IMPORT = Mode(
    import_weights,
    "Make a run of a published file of weights, or of an exported network.",
    {
        **WORKDIR,
        "weights": Flag(
            "The file: .pt, .ckpt, .pkl, safetensors, its *.index.json, .npz, or a pickle of "
            "arrays; or a folder of --mode=export.",
            parse_path,
        ),
        "part": Flag(
            "Part of a training checkpoint, such as ema or train_state/params; default: all."
        ),
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
