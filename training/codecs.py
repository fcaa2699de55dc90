"""The codec of a config: its functions, its parameters, and encoding and decoding on this host.

Its parameters are found by codec_weights.py.
"""

import functools
from collections.abc import Callable
from pathlib import Path

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
from fewstep.latents.codec import Codec, Params, Shape
from fewstep.latents.scaling import SCALINGS, Scaling, scaled, standardizing
from fewstep.models.codecs import CODECS
from fewstep.training.codec_weights import image_shape, load_codec, named_codec

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
