"""The codec of a config: its functions, its parameters, and encoding and decoding on this host.

Parameters come from `codec.weights`, or are fitted to the training images by a codec that needs no
training. Either way they are known by their fingerprint, and those that were fitted are kept:

    DATA_DIR/codecs/NAME-FINGERPRINT.npz
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from fewstep.data import Dataset, data_root, local_folder
from fewstep.data.encoded import (
    Encoder,
    channel_statistics,
    prepare_latents,
    with_latents,
)
from fewstep.files import read_npz
from fewstep.latents.codec import Codec, Params, Shape
from fewstep.latents.linear import fit_linear_codec
from fewstep.latents.scaling import SCALINGS, Scaling, scaled, standardizing
from fewstep.models.codecs import CODECS
from fewstep.training.construct import look_up
from fewstep.training.storage.seal import arrays_sha256, read_sealed, write_sealed
from fewstep.weights.layouts.autoencoder import is_autoencoder, read_autoencoder
from fewstep.weights.layouts.names import flatten, nested
from fewstep.weights.layouts.tiny_autoencoder import find_tiny_naming, read_tiny_autoencoder
from fewstep.weights.tensors import read_tensors

FOLDER = "codecs"
DIGITS = 16  # of a fingerprint
# Codecs that are fitted to images, by a function of (images, the codec's fields).
FITTED = {"linear": fit_linear_codec}
FITTED_IMAGES = 10_000  # spread evenly over the training images
# Pixels that a device encodes or decodes at once.
CPU_PIXELS, PIXELS = 2**17, 2**22
MOST_ROWS = 256
ANY_SIDE = 256  # that all codecs divide

# Functions of (parameters, rows) on devices, and of rows on the host.
Apply = Callable[[Params, jax.Array], jax.Array]
HostFunction = Callable[[np.ndarray], np.ndarray]


def build_codec(config: ConfigDict) -> Codec:
    """The codec that a config names, of its images. Raises ValueError."""
    return named_codec(config.codec.name, image_shape(config))


def codec_factor(name: str) -> int:
    """How many times shorter the sides of latents are than those of images. Raises ValueError."""
    return ANY_SIDE // named_codec(name, (ANY_SIDE, ANY_SIDE, 3)).latent_shape[0]


def image_shape(config: ConfigDict) -> Shape:
    """The shape of the images of a config."""
    return (config.data.image_size, config.data.image_size, config.data.channels)


def named_codec(name: str, shape: Shape) -> Codec:
    """A codec of images of that shape. Raises ValueError."""
    named = look_up(CODECS, name, "codec.name")
    try:
        return named.build(shape, **named.fields)
    except ValueError as error:
        raise ValueError(
            f"codec.name={name}: {error}; set data.image_size, or choose another codec"
        ) from error


def scaling_of(config: ConfigDict) -> Scaling:
    """The scaling between latents and what the network sees."""
    fields = config.codec
    return Scaling(tuple(fields.scale) or (1.0,), tuple(fields.shift) or (0.0,))


def network_codec(config: ConfigDict) -> Codec:
    """The codec whose latents are scaled for the network. Raises ValueError."""
    try:
        return scaled(build_codec(config), scaling_of(config))
    except ValueError as error:
        raise ValueError(f"codec.{error}") from error


def resolve_codec(config: ConfigDict, dataset: Dataset) -> ConfigDict:
    """The config with the fingerprint of its codec, and the scale and shift that it leaves open.

    They are what the codec was published with; else those that bring the channels of these latents
    to mean 0 and deviation 1.
    """
    config = config.copy_and_resolve_references()
    fields = config.codec
    fields.fingerprint = dataset.moments.codec["fingerprint"]
    if not (fields.scale or fields.shift):
        published = CODECS[fields.name].scaling
        if published is None:
            mean, std = channel_statistics(dataset.moments.array)
            chosen = standardizing(tuple(mean.tolist()), tuple(std.tolist()))
        else:
            chosen = SCALINGS[published]
        fields.scale, fields.shift = chosen
    return config


def encode_dataset(config: ConfigDict, dataset: Dataset) -> tuple[ConfigDict, Dataset]:
    """A config whose data fields are resolved, and its data set, both with their latents.

    Encodes the training images first if needed. Raises ValueError and FileNotFoundError as
    `load_codec` does, and ValueError for latents that changed since they were encoded.
    """
    root, local = data_root(config.data.dir), None
    if config.data.local_dir:
        local = local_folder(config.data.local_dir, "data.local_dir")
    dataset = with_latents(dataset, encoder(config, dataset), root, local)
    return resolve_codec(config, dataset), dataset


def prepare_codec(config: ConfigDict, dataset: Dataset) -> Path:
    """Encode the training images, or verify their latents; returns the folder of the latents."""
    return prepare_latents(dataset, encoder(config, dataset), data_root(config.data.dir))


def encoder(config: ConfigDict, dataset: Dataset) -> Encoder:
    """What encodes the images of a config. Raises ValueError as `load_codec` does."""
    codec, known = build_codec(config), load_codec(config, dataset.train.images)

    def encode(params: Params, pictures: jax.Array) -> jax.Array:
        return jnp.stack(codec.encode(params, pictures), axis=1)

    identity = {"codec": config.codec.name, "fingerprint": known.fingerprint}
    return Encoder(
        config.codec.name,
        identity,
        codec.latent_shape,
        on_first_call(encode, lambda: {"encoder": known.params["encoder"]}, codec.shape),
    )


def network_encoder(config: ConfigDict) -> HostFunction:
    """Pictures, uint8 [N, H, W, C] -> the means of their latents as the network sees them."""
    codec = network_codec(config)
    return on_first_call(
        lambda params, pictures: codec.encode(params, pictures).mean,
        lambda: {"encoder": load_codec(config).params["encoder"]},
        codec.shape,
    )


def network_decoder(config: ConfigDict) -> HostFunction:
    """Latents as the network sees them -> pictures in [-1, 1]."""
    codec = network_codec(config)
    return on_first_call(
        codec.decode, lambda: {"decoder": load_codec(config).params["decoder"]}, codec.shape
    )


def on_first_call(function: Apply, params: Callable[[], Params], shape: Shape) -> HostFunction:
    """`on_this_host` with parameters that the first call reads and puts on the devices."""

    @functools.cache
    def prepared() -> HostFunction:
        return on_this_host(function, params(), shape)

    return lambda rows: prepared()(rows)


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
    found = _read_known(fields.name, fields.weights, fields.fingerprint, root, image_shape(config))
    if found is None:
        if images is None:
            raise FileNotFoundError(
                f"the {fields.name} codec of this run is not in {root}; run --mode=prepare with "
                "the config of the run, which fits it again"
            )
        found = fit_codec(fields.name, images, root)
    if fields.fingerprint not in ("", found.fingerprint):
        raise ValueError(
            f"codec.weights={fields.weights or '(fitted)'} is another codec (fingerprint "
            f"{found.fingerprint}) than the run's ({fields.fingerprint}); name the weights that "
            "the run was trained with"
        )
    return found


@functools.lru_cache(maxsize=2)
def _read_known(name: str, weights: str, recorded: str, root: Path, shape: Shape) -> Known | None:
    """Parameters from a file, or of a codec without any; None if they have to be fitted."""
    codec, kept = named_codec(name, shape), kept_file(root, name, recorded)
    if weights:
        params = read_weights(Path(weights).expanduser(), name, codec)
    elif not jax.tree.leaves(abstract_params(codec)):
        params = codec.init(jax.random.key(0))
    elif name not in FITTED:
        raise ValueError(
            f"codec.weights is required for codec.name={name}; name the file of its weights"
        )
    elif recorded and kept.exists():
        params = nested(read_sealed(kept, {"codec": name}, "delete it, and it is fitted again"))
    else:
        return None
    return Known(params, fingerprint(params))


def fit_codec(name: str, images: np.ndarray, root: Path) -> Known:
    """A codec fitted to images, uint8 [N, H, W, C], and kept in the data folder."""
    rows = np.linspace(0, len(images) - 1, min(len(images), FITTED_IMAGES)).astype(int)
    params = FITTED[name](images[rows], **CODECS[name].fields)
    known = Known(params, fingerprint(params))
    path = kept_file(root, name, known.fingerprint)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(path, {"codec": name}, **flatten(params))
    return known


def kept_file(root: Path, name: str, fingerprint: str) -> Path:
    """Where the parameters of a fitted codec are kept."""
    return root / FOLDER / f"{name}-{fingerprint}.npz"


def read_weights(path: Path, name: str, codec: Codec) -> Params:
    """A codec's parameters from a published file, or from one in our own layout.

    Raises ValueError or FileNotFoundError.
    """
    if not path.exists():
        raise FileNotFoundError(f"codec.weights={path} does not exist; check the path")
    tensors = read_npz(path, "use another file") if path.suffix == ".npz" else read_tensors(path)
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


def on_this_host(function: Apply, params: Params, shape: Shape) -> HostFunction:
    """`function(params, .)` of any number of rows, in batches of one size over this host's devices.

    shape: of a picture, by whose size the batch is chosen.
    """
    devices = jax.local_devices()
    mesh = Mesh(np.array(devices), ("rows",))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("rows",), ()))
    pixels = CPU_PIXELS if devices[0].platform == "cpu" else PIXELS
    count = min(max(pixels // (shape[0] * shape[1]), 1), MOST_ROWS) * len(devices)
    compiled = jax.jit(function, in_shardings=(whole, split), out_shardings=split)
    params = jax.device_put(params, whole)

    def apply(rows: np.ndarray) -> np.ndarray:
        made = []
        for start in range(0, len(rows), count):
            batch = rows[np.arange(start, start + count) % len(rows)]
            made.append(np.asarray(compiled(params, jax.device_put(batch, split))))
        return np.concatenate(made)[: len(rows)]

    return apply
