"""--mode=prepare: download and convert a data set ahead of training."""

import data
from modes.request import Request, required_config


def prepare(request: Request) -> None:
    """Prepare config.data and say where it lies."""
    fields = required_config(request).data
    folder = data.prepare(
        fields.name, data_dir=fields.dir, image_size=fields.image_size, channels=fields.channels
    )
    print(f"{fields.name} is ready in {folder}")
