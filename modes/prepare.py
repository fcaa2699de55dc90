"""--mode=prepare: download, decode and encode a data set before training."""

from fewstep import data
from fewstep.modes.mode import CONFIG, Mode
from fewstep.modes.request import Request, data_selection, load_dataset, resolve
from fewstep.modes.student import read_student
from fewstep.training.codecs import prepare_codec


def prepare(request: Request) -> None:
    """Prepare the data set of config.data and print its folder."""
    config = read_student(request).config
    if config.data.name == data.NONE:
        raise ValueError(f"data.name={data.NONE} has nothing to prepare; name a data set")
    folder = data.prepare_dataset(data_selection(config))
    print(f"{config.data.name} is ready in {folder}")
    if config.codec.name:
        dataset = load_dataset(config)
        folder = prepare_codec(resolve(config, dataset), dataset)
        print(f"its latents by {config.codec.name} are ready in {folder}")


PREPARE = Mode(prepare, "Download, decode and encode a data set before training.", CONFIG)
