"""--mode=prepare: download and decode a data set before training."""

from fewstep import data
from fewstep.modes.mode import CONFIG, Mode
from fewstep.modes.request import Request, data_selection
from fewstep.modes.student import read_student


def prepare(request: Request) -> None:
    """Prepare the data set of config.data and print its folder."""
    config = read_student(request).config
    if config.data.name == data.NONE:
        raise ValueError(f"data.name={data.NONE} has nothing to prepare; name a data set")
    folder = data.prepare_dataset(data_selection(config))
    print(f"{config.data.name} is ready in {folder}")


PREPARE = Mode(prepare, "Download and decode a data set before training.", CONFIG)
