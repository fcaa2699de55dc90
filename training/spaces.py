"""The space of a config's data: that of its examples, or of their latents."""

from ml_collections import ConfigDict

from fewstep.data import space_of
from fewstep.data.spaces.latents import latent_space
from fewstep.data.spaces.space import Space
from fewstep.training.codecs import network_codec, network_decoder, network_encoder


def build_space(config: ConfigDict) -> Space:
    """The space of the config's data. Raises ValueError for fields that it does not have."""
    fields = config.data
    space = space_of(fields.name, fields.image_size, fields.channels)
    for name in ("flip", "on_device"):
        if space.image is None and fields.get(name):
            raise ValueError(
                f"data.{name} is for images, and data.name={fields.name} has {space.name}; turn "
                "it off"
            )
    return in_latents(config, space) if config.codec.name else space


def in_latents(config: ConfigDict, space: Space) -> Space:
    """The space of the latents of images. Raises ValueError."""
    if space.image is None:
        raise ValueError(
            f"codec.name={config.codec.name} is for images, and data.name={config.data.name} has "
            f"{space.name}; leave it unset"
        )
    shape = network_codec(config).latent_shape
    name = f"{config.codec.name} {config.codec.fingerprint}".strip()
    return latent_space(space, shape, network_encoder(config), network_decoder(config), name)
