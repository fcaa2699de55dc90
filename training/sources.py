"""What batches are made of: one table of sources, by the names that an objective reads.

A batch on its way to the devices has a part for each source, {"images": {...}, "pairs": {...}}.
There each source completes its own part to the entries that losses read. An entry is brought by one
source alone: what is no image or label of the batch itself is nested under a name of its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fewstep import data
from fewstep.data import Dataset
from fewstep.messages import unknown_choice
from fewstep.objectives.base import Batch, Objective, Params
from fewstep.training.experiment import Experiment
from fewstep.training.pairs import teacher_pairs
from fewstep.training.resident import load_on_devices

TEACHER = "teacher"  # the teacher's name among the frozen networks
Shape = tuple[int, ...]
Part = Mapping[str, np.ndarray]


class Supply(NamedTuple):
    """What the sources of a run draw from.

    dataset: None if it is not here. labels: counts of the classes, in whose shares labels are
    drawn. order: in which the run reads its data (data/order.py). folder: the run's. taught: the
    experiment of the teacher, None if no source draws from it. frozen: its parameters, by name.
    """

    config: ConfigDict
    experiment: Experiment
    dataset: Dataset | None
    labels: Sequence[int]
    order: int
    mesh: Mesh
    folder: Path
    taught: Experiment | None = None
    frozen: Mapping[str, Params] = {}

    def share(self, start: int) -> dict[str, int]:
        """This process's share of the batches from step `start` on."""
        return {
            "batch_size": self.config.batch_size,
            "seed": self.config.seed,
            "start_step": start,
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
        }


class Stream(NamedTuple):
    """Batches without end.

    batches: the step to start from -> this process's rows of each batch. complete: such rows on the
    devices -> what losses read; batches may be stacked on a first axis.
    """

    batches: Callable[[int], Iterator[Any]]
    complete: Callable[[Any], Batch]


class Source(NamedTuple):
    """One kind of data that losses read.

    abstract: (rows, shape of an example) -> shapes and dtypes of its entries of a batch.
    open: makes or reads what it needs, before the first step. needs_data, needs_teacher: whether
    that is a data set, or the parameters of a teacher.
    """

    abstract: Callable[[int, Shape], Mapping[str, Any]]
    open: Callable[[Supply], Stream]
    needs_data: bool = False
    needs_teacher: bool = False


def open_images(supply: Supply) -> Stream:
    """{"x", "label"} of the training images; gathered on the devices if they lie there."""
    split, fields = supply.dataset.train, supply.config.data
    images = partial(data.image_batches, start=supply.experiment.space.start)
    read = data.index_batches if fields.on_device else images
    return Stream(
        lambda start: read(split, flip=fields.flip, order=supply.order, **supply.share(start)),
        load_on_devices(split, supply.mesh) if fields.on_device else dict,
    )


def open_labels(supply: Supply) -> Stream:
    """{"label"}, -1 without classes: what a method reads that draws all else itself."""
    return Stream(lambda start: data.label_batches(supply.labels, **supply.share(start)), dict)


def open_pairs(supply: Supply) -> Stream:
    """{"pairs": {"eps", "x_0", "label"}}: noise and what the teacher's sampler makes of it."""
    fields = supply.config.pairs
    made = teacher_pairs(
        supply.folder,
        supply.taught,
        supply.frozen[TEACHER],
        supply.mesh,
        count=fields.count,
        steps=fields.steps,
        guidance_scale=supply.experiment.objective.guidance_scale,
        batch_size=supply.config.evaluate.batch_size,
        label_counts=supply.labels,
    )
    return Stream(
        lambda start: data.pair_batches(made, order=supply.order, **supply.share(start)),
        lambda part: {"pairs": part},
    )


def abstract_images(rows: int, shape: Shape) -> Mapping[str, Any]:
    """Of `images`."""
    return {"x": jax.ShapeDtypeStruct((rows, *shape), jnp.float32), **abstract_labels(rows, shape)}


def abstract_labels(rows: int, shape: Shape) -> Mapping[str, Any]:
    """Of `labels`."""
    return {"label": jax.ShapeDtypeStruct((rows,), jnp.int32)}


def abstract_pairs(rows: int, shape: Shape) -> Mapping[str, Any]:
    """Of `pairs`."""
    image = jax.ShapeDtypeStruct((rows, *shape), jnp.float32)
    return {"pairs": {"eps": image, "x_0": image, **abstract_labels(rows, shape)}}


# By the names of Objective.reads.
SOURCES = {
    "images": Source(abstract_images, open_images, needs_data=True),
    "labels": Source(abstract_labels, open_labels),
    "pairs": Source(abstract_pairs, open_pairs, needs_teacher=True),
}


def objective_sources(objective: Objective) -> dict[str, Source]:
    """The sources that an objective reads. Raises ValueError for a name that is none."""
    for name in objective.reads:
        if name not in SOURCES:
            raise ValueError(unknown_choice("reads", name, SOURCES))
    return {name: SOURCES[name] for name in objective.reads}


def reads_data(objective: Objective) -> bool:
    """Whether training reads a data set."""
    return any(source.needs_data for source in objective_sources(objective).values())


def teacher_sources(objective: Objective) -> list[str]:
    """The sources that a teacher makes, by name."""
    return [name for name, source in objective_sources(objective).items() if source.needs_teacher]


def reads_teacher(objective: Objective) -> bool:
    """Whether parameters of a teacher are read: to learn from, to start from, or by a source."""
    return bool(objective.frozen or objective.init_from or teacher_sources(objective))


def abstract_batch(objective: Objective, rows: int, shape: Shape) -> dict[str, Any]:
    """Shapes and dtypes of a batch of `rows` rows, as losses read it; shape: of an example.

    Raises ValueError for an objective that reads nothing, or two sources of one entry.
    """
    parts = [source.abstract(rows, shape) for source in objective_sources(objective).values()]
    names = [name for part in parts for name in part]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"reads={objective.reads} gives a batch the entries {sorted(names)}; it needs one at "
            "least, which tells the number of rows, and each from one source"
        )
    return {name: shapes for part in parts for name, shapes in part.items()}


def open_sources(supply: Supply) -> Stream:
    """All that the objective of a run reads, as one stream. Raises as the sources do."""
    sources = objective_sources(supply.experiment.objective)
    opened = {name: source.open(supply) for name, source in sources.items()}

    def batches(start: int) -> Iterator[dict[str, Part]]:
        parts = [stream.batches(start) for stream in opened.values()]
        return (dict(zip(opened, rows, strict=True)) for rows in zip(*parts, strict=True))

    def complete(batch: Mapping[str, Batch]) -> Batch:
        completed = (stream.complete(batch[name]) for name, stream in opened.items())
        return {name: value for part in completed for name, value in part.items()}

    return Stream(batches, complete)
