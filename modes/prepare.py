"""--mode=prepare: download and convert a data set ahead of training."""

from fewstep import data
from fewstep.modes.mode import CONFIG, Mode
from fewstep.modes.request import Request, data_selection, require_config


def prepare(request: Request) -> None:
    """Prepare config.data and say where it lies."""
    config = require_config(request)
    if config.data.name == data.NONE:
        raise ValueError(f"data.name={data.NONE}: there is nothing to prepare")
    folder = data.prepare_dataset(data_selection(config))
    print(f"{config.data.name} is ready in {folder}")


PREPARE = Mode(prepare, "Download and decode a data set before training.", CONFIG)
