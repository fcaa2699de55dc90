"""The training job that the doctor examines, built part by part."""

from functools import cached_property

from jax.sharding import Mesh
from ml_collections import ConfigDict

from fewstep.data import Dataset
from fewstep.modes.job import resident_bytes, started
from fewstep.modes.request import Request, require_config, require_workdir
from fewstep.modes.resolve import complete, encode_if_read, fill_open_fields, read_dataset, resolve
from fewstep.modes.student import read_student
from fewstep.training.codec_weights import pin_codec
from fewstep.training.cost.hardware import Hardware, present_hardware
from fewstep.training.cost.memory import (
    StepMemory,
    planned_memory,
    with_values,
)
from fewstep.training.encoding import with_known_codec
from fewstep.training.experiment import Experiment, build
from fewstep.training.sharding import (
    make_mesh,
)
from fewstep.training.sources import reads_data
from fewstep.training.storage import restore


class NextJob:
    """The planned training job. Builds each part when a check first asks for it.

    `draft_job` would stop at the first fault, and the other checks could not name theirs.
    """

    def __init__(self, request: Request) -> None:
        self.workdir, self.given = require_workdir(request), require_config(request)
        self.request, self.start = request, request.from_
        folders = [self.workdir.absolute(), *self.workdir.absolute().parents]
        self.missing = [folder for folder in folders if not folder.exists()]
        self.disk = next(folder for folder in folders if folder.exists())

    @cached_property
    def asked(self) -> ConfigDict:
        """The config with what it inherits, and with open fields as in the run in the folder."""
        try:
            config = read_student(self.request).config
        except ValueError:  # inspect_teacher raises it again
            config = self.given
        return pin_codec(fill_open_fields(config, self.workdir), self.workdir)

    @cached_property
    def found(self) -> Dataset | None:
        """The data set without latents of its images; None if it is not here."""
        try:
            return read_dataset(self.asked)
        except FileNotFoundError:
            return None

    @cached_property
    def prepared(self) -> tuple[ConfigDict, Dataset | None]:
        """Config and data set as training will use them, with latents if they are prepared."""
        if self.found is None:
            config = self.asked
            if not config.data.image_size or config.data.num_classes < 0:
                read_dataset(self.asked)  # raises an error that says how to get it
            return complete(config), None
        config = resolve(self.asked, self.found)
        reads = config.codec.name and reads_data(build(config).objective)
        if not reads:
            return config, self.found
        config, is_prepared = with_known_codec(config, self.found)
        return encode_if_read(config, self.found) if is_prepared else (config, self.found)

    @property
    def config(self) -> ConfigDict:
        """The config as training will use it; the scale of latents not yet made is unknown."""
        return self.prepared[0]

    @property
    def dataset(self) -> Dataset | None:
        """The data set, with its latents if they are prepared; None if it is not here."""
        return self.prepared[1] if self.asked.codec.name else self.found

    @cached_property
    def experiment(self) -> Experiment:
        """The experiment that the config describes, as the run in the folder goes on with it."""
        return started(build(self.config), restore.has_checkpoint(self.workdir))

    @cached_property
    def mesh(self) -> Mesh:
        """The mesh of the config."""
        return make_mesh(**self.config.mesh)

    @cached_property
    def hardware(self) -> Hardware:
        """The devices of the job."""
        return present_hardware(self.mesh)

    @cached_property
    def need(self) -> StepMemory:
        """The memory of a training step, which is traced for it; reads no teacher."""
        config = self.config
        if config.batch_size % self.mesh.size:
            config = with_values(config, {"batch_size": self.mesh.size})  # inspect_batch reports it
        return planned_memory(config, self.hardware, resident_bytes(config, self.dataset))
