"""--mode=prepare: download, decode and encode a data set before training.

Several processes, started like those of a training run, share the work: process p of P writes the
shards p, p + P, ... They need one data folder on a disk that all of them see.
"""

from pathlib import Path
from uuid import uuid4

import jax

from fewstep import data
from fewstep.data.arrays.group import ALONE, ProcessGroup
from fewstep.files import writing
from fewstep.modes.mode import CONFIG, Mode
from fewstep.modes.request import Request
from fewstep.modes.resolve import load_dataset, resolve
from fewstep.modes.student import read_student
from fewstep.training.cluster.processes import (
    blind_processes,
    broadcast,
    has_peers,
    is_first,
    meet,
    say,
)
from fewstep.training.codec_weights import pin_codec
from fewstep.training.encoding import prepare_codec


def prepare(request: Request) -> None:
    """Prepare the data set of config.data and print its folder."""
    config = pin_codec(read_student(request).config)
    if config.data.name == data.NONE:
        raise ValueError(f"data.name={data.NONE} has nothing to prepare; name a data set")
    group = preparing_group(data.data_root(config.data.dir))
    folder = data.prepare_dataset(data.selection_of(config.data), group)
    say(f"{config.data.name} is ready in {folder}")
    if config.codec.name:
        dataset = load_dataset(config)
        say(prepare_codec(resolve(config, dataset), dataset, group))


def preparing_group(root: Path) -> ProcessGroup:
    """Return the processes that prepare. Raises ValueError unless all see the data folder."""
    if not has_peers():
        return ALONE
    mark = root / f".shared-{broadcast(uuid4().hex)}"
    if is_first():
        with writing(mark):
            root.mkdir(parents=True, exist_ok=True)
            mark.touch()
    blind = blind_processes(mark.exists)
    if is_first():
        mark.unlink()
    if blind:
        raise ValueError(
            f"process(es) {', '.join(map(str, blind))} do not see what process 0 writes to {root}; "
            "name a data.dir on a disk that all hosts share, or run --mode=prepare on each host "
            "alone"
        )
    return ProcessGroup(jax.process_index(), jax.process_count(), meet)


PREPARE = Mode(
    prepare, "Download, decode and encode a data set before training.", CONFIG, together=True
)
