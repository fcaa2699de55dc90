"""The parameters of a codec: from a file, from the run that trained it, or fitted to images.

They are known by their fingerprint, wherever they come from. Those that were fitted are kept:

    DATA_DIR/codecs/NAME-FINGERPRINT.npz
"""

import functools
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from fewstep.data import data_root
from fewstep.files import read_npz
from fewstep.latents.codec import Codec, Params, Shape
from fewstep.models.codecs import CODECS, codec_by_name, fit_codec
from fewstep.training.averages import sampling_network
from fewstep.training.cluster.processes import broadcast, decides, first_process_says
from fewstep.training.construct import look_up
from fewstep.training.location import has_step, parse_location
from fewstep.training.storage import restore, workdir
from fewstep.training.storage.seal import arrays_sha256, read_sealed, write_sealed
from fewstep.weights.layouts.autoencoder import is_autoencoder, read_autoencoder
from fewstep.weights.layouts.names import flatten, nested
from fewstep.weights.layouts.tiny_autoencoder import find_tiny_naming, read_tiny_autoencoder
from fewstep.weights.tensors import parts_of, read_tensors

FOLDER = "codecs"
DIGITS = 16  # of a fingerprint
CHECKPOINT = "state_dict"  # the part of a published training checkpoint that has the network
TRAINING = "autoencoder"  # objective.name of the runs that train codecs


def image_shape(config: ConfigDict) -> Shape:
    """The shape of the images of a config."""
    return (config.data.image_size, config.data.image_size, config.data.channels)


def named_codec(name: str, shape: Shape) -> Codec:
    """A codec of images of that shape. Raises ValueError."""
    look_up(CODECS, name, "codec.name")
    try:
        return codec_by_name(name, shape)
    except ValueError as error:
        raise ValueError(
            f"codec.name={name}: {error}; set data.image_size, or choose another codec"
        ) from error


class Known(NamedTuple):
    """Parameters of a codec, and their fingerprint."""

    params: Params
    fingerprint: str


def load_codec(config: ConfigDict, images: np.ndarray | None = None) -> Known:
    """The parameters of a config's codec. images: training images, to fit a codec to.

    Raises ValueError or FileNotFoundError if there are none, and ValueError if they are not those
    of the recorded fingerprint, or belong to another network.
    """
    fields, root = config.codec, data_root(config.data.dir)
    weights = at_step(fields.weights)
    found = read_known(fields.name, weights, fields.fingerprint, root, image_shape(config))
    if found is None:
        if images is None:
            raise FileNotFoundError(
                f"the {fields.name} codec of this run is not in {root}; run --mode=prepare with "
                "the config of the run, which fits it again"
            )
        found = keep_fitted(fields.name, fit_codec(fields.name, images), root)
    if fields.fingerprint not in ("", found.fingerprint):
        raise ValueError(
            f"codec.weights={fields.weights or '(fitted)'} is another codec (fingerprint "
            f"{found.fingerprint}) than the run's ({fields.fingerprint}); name the weights that "
            "the run was trained with"
        )
    return found


def at_step(weights: str) -> str:
    """The weights; those of a run with the step of its newest checkpoint, as RUN@STEP."""
    folder, step = parse_location(weights)
    if weights and step is None and restore.has_checkpoint(folder):
        return f"{folder}@{restore.saved_step(folder)}"
    return weights


def pin_codec(config: ConfigDict, run: Path | None = None) -> ConfigDict:
    """The config with the step of the run that trained its codec, as a run records it.

    run: one that keeps the step that it began with, unless the config names another. All processes
    use the step that process 0 sees; the folder may differ between hosts.
    """
    weights = config.codec.weights
    if not weights or not first_process_says(workdir.is_run(parse_location(weights).folder)):
        return config
    config = config.copy_and_resolve_references()
    asked, step = parse_location(weights), None
    if decides():
        step = asked.step
        if step is None and run is not None and restore.has_checkpoint(run):
            step = recorded_codec_step(run, asked.folder)
        if step is None:
            step = restore.saved_step(asked.folder)
    config.codec.weights = f"{asked.folder}@{broadcast(step)}"
    return config


def recorded_codec_step(run: Path, asked: Path) -> int | None:
    """The step of its codec that a run began with; None if `asked` is another folder than then."""
    recorded = workdir.load_config(run).codec.weights
    if not recorded:
        return None
    folder, step = parse_location(recorded)
    moved = workdir.is_run(folder) and folder.resolve() != asked.resolve()
    return step if not moved and has_step(asked, step) else None


def is_at_hand(config: ConfigDict) -> bool:
    """Whether the config says where the parameters of its codec are, or the codec has none."""
    codec = named_codec(config.codec.name, image_shape(config))
    return bool(config.codec.weights) or not jax.tree.leaves(abstract_params(codec))


def load_same_codec(config: ConfigDict, images: np.ndarray) -> Known:
    """`load_codec` in all processes: what is fitted is what process 0 has fitted.

    Two hosts may round a fit differently. All processes call this, unless the fingerprint is known.
    A checkpoint is read by all of them together. Raises as `load_codec` does.
    """
    weights = config.codec.weights
    in_run = bool(weights) and workdir.is_run(parse_location(weights).folder)
    if config.codec.fingerprint or first_process_says(in_run):
        return load_codec(config, images)
    known = load_codec(config, images) if decides() else None
    agreed = config.copy_and_resolve_references()
    agreed.codec.fingerprint = broadcast(known and known.fingerprint)
    return known or load_codec(agreed, images)


def read_known(name: str, weights: str, recorded: str, root: Path, shape: Shape) -> Known | None:
    """Parameters from a file, or of a codec without any; None if they have to be fitted.

    They are kept for as long as their place has the same content.
    """
    known, content = _keep_known(name, weights, recorded, root, shape)
    if content != content_of(weights or kept_file(root, name, recorded)):
        _keep_known.cache_clear()
        known, _ = _keep_known(name, weights, recorded, root, shape)
    return known


@functools.lru_cache(maxsize=2)
def _keep_known(
    name: str, weights: str, recorded: str, root: Path, shape: Shape
) -> tuple[Known | None, Any]:
    """What `find_params` returns, with its fingerprint, and the content of the place it is from."""
    params = find_params(name, weights, recorded, root, shape)
    # After reading, since only then have all processes seen a checkpoint on a slow disk.
    content = content_of(weights or kept_file(root, name, recorded))
    return None if params is None else Known(params, fingerprint(params)), content


def content_of(place: str | Path) -> Any:
    """What changes with the parameters there: a checkpoint's record, or a file's size and time.

    None if nothing can be read there.
    """
    folder, step = parse_location(str(place))
    with suppress(ValueError, OSError):
        if workdir.is_run(folder):
            return restore.read_record(folder, step)
        found = Path(place).expanduser().stat()
        return found.st_size, found.st_mtime_ns
    return None


def find_params(name: str, weights: str, recorded: str, root: Path, shape: Shape) -> Params | None:
    """Parameters from a file, or of a codec without any; None if they have to be fitted."""
    codec, kept = named_codec(name, shape), kept_file(root, name, recorded)
    if weights and workdir.is_run(parse_location(weights).folder):
        return read_run(weights, name, codec)
    if weights:
        return read_weights(Path(weights).expanduser(), name, codec)
    if not jax.tree.leaves(abstract_params(codec)):
        return codec.init(jax.random.key(0))
    if CODECS[name].trained or CODECS[name].fit is None:
        raise ValueError(f"codec.weights is required for codec.name={name}; {where_weights(name)}")
    if recorded and kept.exists():
        return nested(read_sealed(kept, {"codec": name}, "delete it, and it is fitted again"))
    return None


def where_weights(name: str) -> str:
    """What to name as codec.weights."""
    file = "name the file of its weights"
    if not CODECS[name].trained:
        return file
    train = f"train one with --config=...:autoencoder --config.model.codec={name}"
    return f"{file}, or {train} and name the folder of that run"


def keep_fitted(name: str, params: Params, root: Path) -> Known:
    """The parameters of a fitted codec, kept in the data folder."""
    known = Known(params, fingerprint(params))
    path = kept_file(root, name, known.fingerprint)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(path, {"codec": name}, **flatten(params))
    return known


def kept_file(root: Path, name: str, fingerprint: str) -> Path:
    """Where the parameters of a fitted codec are kept."""
    return root / FOLDER / f"{name}-{fingerprint}.npz"


def read_run(weights: str, name: str, codec: Codec) -> Params:
    """A codec's parameters from a run that has trained it, RUN[@STEP]. Raises ValueError."""
    folder, step = parse_location(weights)
    config = workdir.load_config(folder, step)
    if config.objective.name != TRAINING or config.model.codec != name:
        raise ValueError(
            f"codec.weights={weights} is a run of {config.method}, which has trained no codec "
            f"{name}; name one of autoencoder with model.codec={name}"
        )
    if image_shape(config)[-1] != codec.shape[-1]:
        raise ValueError(
            f"codec.weights={weights} was trained on images of {image_shape(config)[-1]} channels; "
            f"these have {codec.shape[-1]}"
        )
    network = sampling_network(config.ema, "network")
    params, _ = restore.restore_network(folder, network, abstract_params(codec), step)
    return jax.device_get(params)


def read_weights(path: Path, name: str, codec: Codec) -> Params:
    """A codec's parameters from a published file, or from one in our own layout.

    Raises ValueError or FileNotFoundError.
    """
    if not path.exists():
        raise FileNotFoundError(f"codec.weights={path} does not exist; check the path")
    if path.suffix == ".npz":
        tensors = read_npz(path, "use another file")
    else:
        tensors = read_tensors(path, CHECKPOINT if CHECKPOINT in parts_of(path) else "")
    if is_autoencoder(tensors):
        params = read_autoencoder(tensors, path)[0]
    elif find_tiny_naming(tensors):
        params = read_tiny_autoencoder(tensors, path)[0]
    else:
        params = nested(tensors)
    there, here = shapes(params), shapes(abstract_params(codec))
    for leaf in sorted({*there, *here}):
        if there.get(leaf) != here.get(leaf):
            raise ValueError(
                f"codec.weights={path} belongs to another network than codec.name={name} of these "
                f"images: {leaf} is {there.get(leaf, 'missing')} there, and "
                f"{here.get(leaf, 'unknown')} here"
            )
    return params


def abstract_params(codec: Codec) -> Params:
    """Shapes of a codec's parameters."""
    return jax.eval_shape(codec.init, jax.random.key(0))


def shapes(tree: Params) -> dict[str, list[int]]:
    """The shape of each leaf by its path."""
    return {name: list(leaf.shape) for name, leaf in flatten(tree).items()}


def fingerprint(params: Params) -> str:
    """A hash of a codec's parameters, whatever file they came from."""
    arrays = {name: np.asarray(leaf, np.float32) for name, leaf in flatten(params).items()}
    return arrays_sha256(arrays, {})[:DIGITS]
