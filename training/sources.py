"""What batches are made of: a table of sources, by the names in `Objective.reads`.

On its way to the devices, a batch has a part for each source, {"images": {...}, "pairs": {...}}. On
the devices, each source completes its part to the entries that losses read. Every entry comes from
one source: what is not the batch's own image or label is nested under a name of its own.
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
from fewstep.training.posteriors import draw_latents
from fewstep.training.resident import load_images, load_moments

# Names of the teacher among the frozen networks: as the student's network reads it, and as its own
# sampler does.
TEACHER, SAMPLED_TEACHER = "teacher", "sampled_teacher"
Shape = tuple[int, ...]
Part = Mapping[str, np.ndarray]


class Supply(NamedTuple):
    """What the sources of a run draw from.

    dataset: None if training reads none. labels: counts of the classes, in whose shares labels are
    drawn. order: number of the order in which the run reads its data (data/order.py). folder: the
    run's folder. taught: experiment of the teacher, None if no source draws from it. frozen:
    teachers' parameters by name.
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
    """An endless stream of batches.

    batches: step to start from -> this process's rows of each batch. complete: these rows on the
    devices -> what losses read; batches may be stacked on a first axis.
    """

    batches: Callable[[int], Iterator[Any]]
    complete: Callable[[Any], Batch]


class Source(NamedTuple):
    """One kind of data that losses read.

    abstract: (rows, shape of an example) -> shapes and dtypes of its entries in a batch.
    open: makes or reads what it needs, before the first step. needs_data: whether it reads a data
    set. needs_teacher: whether it reads a teacher's parameters.
    """

    abstract: Callable[[int, Shape], Mapping[str, Any]]
    open: Callable[[Supply], Stream]
    needs_data: bool = False
    needs_teacher: bool = False


def open_images(supply: Supply) -> Stream:
    """{"x", "label"} of the training images; devices gather them if `data.on_device`."""
    dataset, fields = supply.dataset, supply.config.data
    if fields.on_device:
        read = partial(data.index_batches, dataset.train)
    elif dataset.moments is None:
        read = partial(data.image_batches, dataset.train, start=supply.experiment.space.start)
    else:
        read = partial(data.moment_batches, dataset.train, dataset.moments)
    return Stream(
        lambda start: read(flip=fields.flip, order=supply.order, **supply.share(start)),
        completion(supply),
    )


def completion(supply: Supply) -> Callable[[Any], Batch]:
    """What makes {"x", "label"} on the devices: of images, of posteriors, or of row numbers."""
    dataset, mesh = supply.dataset, supply.mesh
    complete = dict if dataset.moments is None else draw_latents(supply.config)
    if not supply.config.data.on_device:
        return complete
    if dataset.moments is None:
        return load_images(dataset.train, mesh)
    gather = load_moments(dataset.train, dataset.moments, mesh)
    return lambda batch: complete(gather(batch))


def open_labels(supply: Supply) -> Stream:
    """{"label"}, -1 without classes: all that a method reads that draws its data itself."""
    return Stream(lambda start: data.label_batches(supply.labels, **supply.share(start)), dict)


def open_pairs(supply: Supply) -> Stream:
    """{"pairs": {"eps", "x_0", "label"}}: noise, and the teacher's samples from it."""
    fields = supply.config.pairs
    made = teacher_pairs(
        supply.folder,
        supply.taught,
        supply.frozen[SAMPLED_TEACHER],
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
    """Shapes and dtypes of what `open_images` brings."""
    return {"x": jax.ShapeDtypeStruct((rows, *shape), jnp.float32), **abstract_labels(rows, shape)}


def abstract_labels(rows: int, shape: Shape) -> Mapping[str, Any]:
    """Shapes and dtypes of what `open_labels` brings."""
    return {"label": jax.ShapeDtypeStruct((rows,), jnp.int32)}


def abstract_pairs(rows: int, shape: Shape) -> Mapping[str, Any]:
    """Shapes and dtypes of what `open_pairs` brings."""
    image = jax.ShapeDtypeStruct((rows, *shape), jnp.float32)
    return {"pairs": {"eps": image, "x_0": image, **abstract_labels(rows, shape)}}


# By the names of Objective.reads.
SOURCES = {
    "images": Source(abstract_images, open_images, needs_data=True),
    "labels": Source(abstract_labels, open_labels),
    "pairs": Source(abstract_pairs, open_pairs, needs_teacher=True),
}


def objective_sources(objective: Objective) -> dict[str, Source]:
    """The sources that an objective reads. Raises ValueError for an unknown name."""
    for name in objective.reads:
        if name not in SOURCES:
            raise ValueError(unknown_choice("reads", name, SOURCES))
    return {name: SOURCES[name] for name in objective.reads}


def reads_data(objective: Objective) -> bool:
    """Whether training reads a data set."""
    return any(source.needs_data for source in objective_sources(objective).values())


def teacher_sources(objective: Objective) -> list[str]:
    """Names of the sources that need a teacher."""
    return [name for name, source in objective_sources(objective).items() if source.needs_teacher]


def reads_teacher(objective: Objective) -> bool:
    """Whether a run reads a teacher's parameters: in losses, to start from, or in a source."""
    return bool(objective.frozen or objective.init_from or teacher_sources(objective))


def abstract_batch(objective: Objective, rows: int, shape: Shape) -> dict[str, Any]:
    """Shapes and dtypes of a batch of `rows` rows, as losses read it. shape: of one example.

    Raises ValueError for an objective that reads nothing, or reads one entry from two sources.
    """
    parts = [source.abstract(rows, shape) for source in objective_sources(objective).values()]
    names = [name for part in parts for name in part]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"reads={objective.reads} gives a batch the entries {sorted(names)}; a batch needs at "
            "least one entry, and each entry from one source"
        )
    return {name: shapes for part in parts for name, shapes in part.items()}


def open_sources(supply: Supply) -> Stream:
    """One stream of all that a run's objective reads. Raises what its sources raise."""
    sources = objective_sources(supply.experiment.objective)
    opened = {name: source.open(supply) for name, source in sources.items()}

    def batches(start: int) -> Iterator[dict[str, Part]]:
        parts = [stream.batches(start) for stream in opened.values()]
        return (dict(zip(opened, rows, strict=True)) for rows in zip(*parts, strict=True))

    def complete(batch: Mapping[str, Batch]) -> Batch:
        completed = (stream.complete(batch[name]) for name, stream in opened.items())
        return {name: value for part in completed for name, value in part.items()}

    return Stream(batches, complete)
