"""The space of a config's data."""

from ml_collections import ConfigDict

from fewstep.data import space_of
from fewstep.data.spaces.space import Space


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
    return space
