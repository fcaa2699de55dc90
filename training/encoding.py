"""The latents of a config's data set: made by its codec, or those of a data set of latents."""

from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from fewstep.data import Dataset, data_root
from fewstep.data.arrays.group import ALONE, ProcessGroup
from fewstep.data.encoded import (
    Encoder,
    channel_statistics,
    is_encoded,
    prepare_latents,
    with_latents,
)
from fewstep.latents.codec import Params
from fewstep.latents.scaling import SCALINGS, standardizing
from fewstep.models.codecs import CODECS
from fewstep.training.cluster.processes import broadcast, warn_once
from fewstep.training.codec_weights import is_at_hand, load_codec, load_same_codec
from fewstep.training.codecs import build_codec, on_first_call, scaling_of
from fewstep.training.latent_sets import (
    check_flips,
    check_scale,
    describe_channels,
    scale_warning,
    seen_channels,
)


def encode_dataset(
    config: ConfigDict, dataset: Dataset, local: Path | None = None
) -> tuple[ConfigDict, Dataset]:
    """A config whose data fields are resolved, and its data set, both with their latents.

    Encodes the training images first if needed. local: a disk of this host to copy the latents to.
    Raises ValueError and FileNotFoundError as `load_codec` does, and ValueError for latents that
    changed since they were encoded, and for a data set of latents that does not fit the config.
    """
    if dataset.has_pictures:
        encoder = dataset_encoder(config, dataset)
        dataset = with_latents(dataset, encoder, data_root(config.data.dir), local)
        return resolve_codec(config, dataset), dataset
    check_flips(config, dataset)
    config = resolve_codec(config, dataset)
    seen = seen_channels(scaling_of(config), dataset)
    check_scale(config, seen, dataset.name)
    if warning := scale_warning(config, seen):
        warn_once(f"{dataset.name}: {warning}")
    return config, dataset


def with_known_codec(config: ConfigDict, dataset: Dataset) -> tuple[ConfigDict, bool]:
    """The config with the fingerprint of its codec, and whether its latents are prepared.

    Encodes nothing. Raises ValueError as `load_codec` does.
    """
    config = config.copy_and_resolve_references()
    if not dataset.has_pictures:
        return config, True
    config.codec.fingerprint = load_codec(config, dataset.train.images).fingerprint
    encoder, root = dataset_encoder(config, dataset), data_root(config.data.dir)
    return config, is_encoded(dataset, encoder, root)


def prepare_codec(config: ConfigDict, dataset: Dataset, group: ProcessGroup = ALONE) -> str:
    """Encode the training images, or verify their latents; returns what there is, in words.

    group: processes that encode together, each by its own devices.
    """
    if not dataset.has_pictures:
        config, dataset = encode_dataset(config, dataset)
        return describe_channels(config, seen_channels(scaling_of(config), dataset))
    encoder, root = dataset_encoder(config, dataset), data_root(config.data.dir)
    folder = prepare_latents(dataset, encoder, root, group)
    return f"its latents by {config.codec.name} are ready in {folder}"


def resolve_codec(config: ConfigDict, dataset: Dataset) -> ConfigDict:
    """The config with the fingerprint of its codec, and the scale and shift that it leaves open.

    They are what the codec was published with; else those that bring the channels of these latents
    to mean 0 and deviation 1. The fingerprint stays unknown for latents that say none, unless the
    codec is at hand.
    """
    config = config.copy_and_resolve_references()
    fields = config.codec
    fields.fingerprint = dataset.moments.codec.get("fingerprint", fields.fingerprint)
    if is_at_hand(config):
        fields.fingerprint = load_codec(config).fingerprint
    if not (fields.scale or fields.shift):
        published = CODECS[fields.name].scaling
        if published is None:
            # Hosts may round differently, and the scale is a constant of their programs.
            found = channel_statistics(dataset.moments.array)
            mean, std = broadcast([each.tolist() for each in found])
            chosen = standardizing(tuple(mean), tuple(std))
        else:
            chosen = SCALINGS[published]
        fields.scale, fields.shift = chosen
    return config


def dataset_encoder(config: ConfigDict, dataset: Dataset) -> Encoder:
    """What encodes the images of a config. Raises ValueError as `load_codec` does."""
    codec, known = build_codec(config), load_same_codec(config, dataset.train.images)

    def encode(params: Params, pictures: jax.Array) -> jax.Array:
        return jnp.stack(codec.encode(params, pictures), axis=1)

    identity = {"codec": config.codec.name, "fingerprint": known.fingerprint}
    return Encoder(
        config.codec.name,
        identity,
        codec.latent_shape,
        on_first_call(encode, lambda: {"encoder": known.params["encoder"]}, codec.shape),
    )
