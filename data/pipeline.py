"""Endless training batches, reshuffled every epoch and resumable at any step.

The order of examples (data/order.py) depends only on (seed, global position). A batch is a range of
positions, and each process reads its block of them. So the batch of a step, with its order and
mirrored images, depends neither on earlier steps nor on the number of processes.
"""

import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import grain
import numpy as np

from fewstep.data.arrays.dataset import Pairs, Posteriors, Split
from fewstep.data.arrays.pixels import to_float
from fewstep.data.labels import Counts, draw_labels
from fewstep.data.order import NEWEST_ORDER, index_dtype, ordered_rows

# Threads suffice, since a batch is one gather from an array.
READ_OPTIONS = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
LARGEST_SEED = 2**32 - 1  # the limit of Grain's shuffle

T = TypeVar("T")


class Rows(NamedTuple):
    """Rows of a batch: of which images, whether mirrored, and their place in the sequence."""

    index: np.ndarray
    mirrored: np.ndarray
    position: np.ndarray


def image_batches(
    split: Split, *, start: Callable[[np.ndarray], np.ndarray] = to_float, **options: Any
) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of the batches of steps start_step, start_step + 1, ...

    A batch is {"x": float32 [B / process_count, ...], "label": int32 [B / process_count]}.
    B = batch_size counts the rows of all processes. The last batch of an epoch continues into the
    next one, so B may exceed the number of examples. flip mirrors each image left to right with
    probability 1/2.

    start: stored examples -> "x", of their space (data/spaces). options: as in `index_batches`.
    Raises ValueError for one out of range.
    """

    def gather(rows: Rows) -> dict[str, np.ndarray]:
        index, mirrored, _ = rows
        images = split.images[index]
        if mirrored.any():
            images[mirrored] = images[mirrored].take(np.arange(images.shape[2])[::-1], axis=2)
        return {"x": start(images), "label": split.labels[index]}

    return _gather_batches(gather, _count_images(split), **options)


def moment_batches(
    split: Split, moments: Posteriors, **options: Any
) -> Iterator[dict[str, np.ndarray]]:
    """The same batches as posteriors of latents: {"moments", "position", "label"}.

    moments: float16 [B / process_count, M, h, w, c], of the mirror image where the image is
    mirrored. position: uint32, the place of each row in the sequence of all rows; what is drawn
    from a posterior is a function of it. options: as in `index_batches`.
    """

    def gather(rows: Rows) -> dict[str, np.ndarray]:
        views = moments.array[rows.index]
        return {
            "moments": views[np.arange(len(views)), rows.mirrored.astype(int)],
            "position": rows.position,
            "label": split.labels[rows.index],
        }

    return _gather_batches(gather, _count_images(split), **options)


def index_batches(split: Split, **options: Any) -> Iterator[dict[str, np.ndarray]]:
    """The same batches as indices: {"index", "mirrored", "position"}, each [B / process_count].

    For data that lie on the devices (training/resident.py). Indices are int32 if that can hold
    them, mirrored is bool, and position is as in `moment_batches`. options: batch_size and seed,
    and optionally start_step (0), flip (False), process_index (0), process_count (1) and order (the
    newest).
    """
    dtype = index_dtype(len(split.labels))

    def gather(rows: Rows) -> dict[str, np.ndarray]:
        return {**rows._asdict(), "index": rows.index.astype(dtype)}

    return _gather_batches(gather, _count_images(split), **options)


def batch_indices(
    count: int, *, batch_size: int, seed: int, step: int, order: int = NEWEST_ORDER
) -> np.ndarray:
    """Indices of the images that `image_batches` draws from `count` after `step` steps: int [B]."""
    return ordered_rows(order, count, seed)(step * batch_size, (step + 1) * batch_size)[0]


def label_batches(
    counts: Counts,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of {"label": int32 [B / process_count]}, for training without images.

    Labels are drawn in proportion to `counts`; without classes they are -1. The labels of a step
    depend only on (seed, step).
    """
    block = _block(batch_size, process_index, process_count)
    for step in itertools.count(start_step):
        yield {"label": draw_labels(counts, batch_size, (seed, step))[block]}


def pair_batches(pairs: Pairs, **options: Any) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of {"eps", "x_0", "label"}, reshuffled every epoch.

    options: as in `index_batches`, without flip.
    """

    def gather(rows: Rows) -> dict[str, np.ndarray]:
        return {name: array[rows.index] for name, array in pairs._asdict().items()}

    return _gather_batches(gather, len(pairs.label), **options)


def _gather_batches(
    gather: Callable[[Rows], T],
    count: int,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    flip: bool = False,
    process_index: int = 0,
    process_count: int = 1,
    order: int = NEWEST_ORDER,
) -> Iterator[T]:
    """gather(this process's rows) for each step from start_step on."""
    _check_arguments(batch_size, seed, start_step, process_index, process_count)
    block = _block(batch_size, process_index, process_count)
    rows = ordered_rows(order, count, seed, flip)

    def load(step: int) -> T:
        first, last = step * batch_size + block.start, step * batch_size + block.stop
        position = np.arange(first, last).astype(np.uint32)  # modulo 2^32
        return gather(Rows(*rows(first, last), position))

    return _read_ahead(load, start_step)


def _read_ahead(load: Callable[[int], T], start_step: int) -> Iterator[T]:
    """load(start_step), load(start_step + 1), ..., which threads compute some steps ahead."""
    steps = grain.MapDataset.range(start_step, sys.maxsize)
    return iter(steps.map(load).to_iter_dataset(READ_OPTIONS))


def _block(batch_size: int, index: int, count: int) -> slice:
    """The rows of a batch that a process reads."""
    local = batch_size // count
    return slice(index * local, (index + 1) * local)


def _count_images(split: Split) -> int:
    """The number of images of a split. Raises ValueError unless each has a label."""
    if len(split.images) != len(split.labels) or not len(split.labels):
        raise ValueError(
            f"a split needs as many images as labels, at least one; it has {len(split.images)} "
            f"and {len(split.labels)}"
        )
    return len(split.labels)


def _check_arguments(batch_size: int, seed: int, start_step: int, index: int, count: int) -> None:
    """Raises ValueError for arguments out of range."""
    if not 0 <= index < count:
        raise ValueError(f"process_index={index} is not in [0, process_count={count})")
    if batch_size < 1 or batch_size % count:
        raise ValueError(
            f"batch_size={batch_size} is not a positive multiple of the {count} processes; "
            f"use {max(batch_size // count, 1) * count}"
        )
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"seed={seed} is not in [0, {LARGEST_SEED}]")
    if start_step < 0:
        raise ValueError(f"start_step={start_step} is negative")
