"""The config that will run and its data set: open fields filled, `debug` applied, images read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from fewstep import data
from fewstep.data import NEWEST_DECODING, Dataset
from fewstep.training.cluster.processes import (
    broadcast,
    decides,
    first_process_says,
    true_everywhere,
)
from fewstep.training.cost.choice import choose, field_value, open_fields
from fewstep.training.cost.hardware import Hardware, present_hardware
from fewstep.training.cost.memory import with_values
from fewstep.training.encoding import encode_dataset
from fewstep.training.experiment import build, effective_config
from fewstep.training.latent_sets import picture_shape
from fewstep.training.sharding import make_mesh
from fewstep.training.sources import reads_data
from fewstep.training.storage import restore, workdir
from fewstep.training.storage.fields import check_field_values
from fewstep.training.storage.identity import DECODING
from fewstep.training.teacher import check_teacher_given, check_teacher_network


def read_dataset(config: ConfigDict, writable: bool = True) -> Dataset:
    """Return the data set of a config, in this process. Raises FileNotFoundError if it is missing.

    writable: whether Fewstep may write to data.dir. False if only the record of a run names it.
    """
    return data.load_selection(data.selection_of(config.data), writable)


def fill_open_fields(config: ConfigDict, folder: Path) -> ConfigDict:
    """Return the config with its open fields as in the run in the folder. A value stays.

    A run without a checkpoint is none yet: its folder is free for any config. A student takes what
    must agree from its teacher (training/inheritance.py).
    """
    open_now = [*open_fields(config), *([] if config.data.decoding else [DECODING])]
    # Another process may see the folder later than process 0, and would compile another program.
    if not open_now or not first_process_says(restore.has_checkpoint(folder)):
        return config
    values = broadcast(recorded_values(folder, open_now) if decides() else None)
    if isinstance(values, str):
        raise ValueError(values)
    return with_values(config, values)


def recorded_values(folder: Path, names: Sequence[str]) -> dict[str, Any] | str:
    """Return fields of the run in a folder, or why they cannot be read."""
    try:
        recorded = workdir.load_config(folder)
    except ValueError as error:
        return str(error)
    return {name: field_value(recorded, name) for name in names}


def load_local_copy(config: ConfigDict) -> Dataset:
    """Return the data set of a config with what training reads copied to data.local_dir.

    These are its latents, if it has a codec; only evaluations read the pictures then. Raises
    OSError.
    """
    if config.codec.name and (dataset := read_dataset(config)).has_pictures:
        local = data.local_folder(config.data.local_dir, "data.local_dir")
        return encode_dataset(config, dataset, local)[1]
    copied = data.load_copy(data.selection_of(config.data), config.data.local_dir)
    return encode_if_read(config, copied)[1]


def load_dataset(config: ConfigDict, writable: bool = True) -> Dataset:
    """Return the data set of a config. Raises FileNotFoundError if a process does not have it."""
    missing = None
    try:
        dataset = read_dataset(config, writable)
    except FileNotFoundError as error:
        missing = error
    # Either all processes use the images or none does.
    if true_everywhere(missing is None):
        return dataset
    raise missing or FileNotFoundError(
        f"only some processes find the data set {config.data.name}; prepare it by --mode=prepare "
        "on a disk that all hosts share, or on each host"
    )


def resolve(config: ConfigDict, dataset: Dataset, hardware: Hardware | None = None) -> ConfigDict:
    """Return the config that will run: open fields filled, smaller if `debug` is on.

    hardware: the devices of the run; None for those that are here.

    Raises ValueError if the config has another number of classes than the data set.
    """
    config = config.copy_and_resolve_references()
    if data.space_of(config.data.name).image:
        shape = dataset.image_shape if dataset.has_pictures else picture_shape(config, dataset)
        config.data.image_size, _, config.data.channels = shape
    config.data.decoding = config.data.decoding or NEWEST_DECODING
    if config.data.num_classes == -1:
        config.data.num_classes = dataset.num_classes
    # Latents of some pictures may lack a class; pictures have names of all.
    more = not dataset.has_pictures and config.data.num_classes > dataset.num_classes
    if config.data.num_classes not in (0, dataset.num_classes) and not more:
        raise ValueError(
            f"data.num_classes={config.data.num_classes}, but {dataset.name} has "
            f"{dataset.num_classes}; set -1 for all of them, or 0 to train without labels"
        )
    return complete(config, hardware, len(dataset.train.labels))


def complete(
    config: ConfigDict, hardware: Hardware | None = None, images: int | None = None
) -> ConfigDict:
    """Return the config as a run records it: open fields chosen, `debug` applied if it is on.

    Expects resolved data fields. images: number of training images, None if unknown.
    """
    if open_fields(config):
        config = choose(config, hardware or present_hardware(make_mesh(**config.mesh)), images)
    return effective_config(config)


def resolve_and_load(
    config: ConfigDict, hardware: Hardware | None = None
) -> tuple[ConfigDict, Dataset | None]:
    """Return the config that will run and its data set.

    The data set is None if it is missing and training does not read it; the config must then have
    the sizes of images, as a student has those of its teacher. Raises FileNotFoundError if training
    reads a missing data set, ValueError for a missing teacher or an invalid field.
    """
    check_field_values(config)
    check_teacher_network(config)
    try:
        dataset = load_dataset(config)
    except FileNotFoundError:
        pictures = data.space_of(config.data.name).image
        if (pictures and not config.data.image_size) or config.data.num_classes < 0:
            raise  # the sizes of images and classes are unknown
        config = config.copy_and_resolve_references()
        config.data.decoding = config.data.decoding or NEWEST_DECODING
        config = complete(config, hardware)
        experiment = build(config)
        check_teacher_given(config, experiment)
        if reads_data(experiment.objective):
            raise
        return config, None
    return encode_if_read(resolve(config, dataset, hardware), dataset)


def encode_if_read(config: ConfigDict, dataset: Dataset) -> tuple[ConfigDict, Dataset]:
    """Return both with latents, if the config has a codec and training reads its data set."""
    if config.codec.name and reads_data(build(config).objective):
        return encode_dataset(config, dataset)
    return config, dataset


def resolve_open_fields(config: ConfigDict, hardware: Hardware | None = None) -> ConfigDict:
    """Return the config that will run; reads the data set only to fill fields that are open.

    Raises FileNotFoundError and ValueError as `resolve_and_load` does.
    """
    check_teacher_network(config)
    if 0 in (config.data.image_size, config.data.channels) or config.data.num_classes == -1:
        return resolve_and_load(config, hardware)[0]
    return complete(config, hardware)
