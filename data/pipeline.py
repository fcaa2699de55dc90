"""Endless training batches, reshuffled every epoch and resumable at any step.

The order of examples (data/order.py) depends only on (seed, global position). A batch is a range of
positions, and each process reads its block of them. So the batch of a step, with its order and
mirrored images, depends neither on earlier steps nor on the number of processes.
"""

import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import grain
import numpy as np

from fewstep.data.arrays.dataset import Pairs, Split
from fewstep.data.arrays.pixels import to_float
from fewstep.data.labels import Counts, draw_labels
from fewstep.data.order import NEWEST_ORDER, index_dtype, ordered_rows

# Threads suffice, since a batch is one gather from an array.
READ_OPTIONS = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
LARGEST_SEED = 2**32 - 1  # the limit of Grain's shuffle

T = TypeVar("T")


def image_batches(split: Split, **options: Any) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of the batches of steps start_step, start_step + 1, ...

    A batch is {"x": float32 [B / process_count, H, W, C] in [-1, 1], "label": int32
    [B / process_count]}. B = batch_size counts the rows of all processes. The last batch of an
    epoch continues into the next one, so B may exceed the number of images. flip mirrors each image
    left to right with probability 1/2.

    options: as in `index_batches`. Raises ValueError for one out of range.
    """
    backwards = np.arange(split.images.shape[2])[::-1]

    def gather(index: np.ndarray, mirrored: np.ndarray) -> dict[str, np.ndarray]:
        images = split.images[index]
        images[mirrored] = images[mirrored].take(backwards, axis=2)
        return {"x": to_float(images), "label": split.labels[index]}

    return _gather_batches(gather, _count_images(split), **options)


def index_batches(split: Split, **options: Any) -> Iterator[dict[str, np.ndarray]]:
    """The same batches as indices: {"index": int [B / process_count], "mirrored": bool [same]}.

    For data that lie on the devices (training/resident.py). Indices are int32 if that can hold
    them. options: batch_size and seed, and optionally start_step (0), flip (False), process_index
    (0), process_count (1) and order (the newest).
    """
    dtype = index_dtype(len(split.labels))

    def gather(index: np.ndarray, mirrored: np.ndarray) -> dict[str, np.ndarray]:
        return {"index": index.astype(dtype), "mirrored": mirrored}

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

    def gather(index: np.ndarray, _: np.ndarray) -> dict[str, np.ndarray]:
        return {name: array[index] for name, array in pairs._asdict().items()}

    return _gather_batches(gather, len(pairs.label), **options)


def _gather_batches(
    gather: Callable[[np.ndarray, np.ndarray], T],
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
    """gather(indices, mirrored) of this process's rows, for each step from start_step on."""
    _check_arguments(batch_size, seed, start_step, process_index, process_count)
    block = _block(batch_size, process_index, process_count)
    rows = ordered_rows(order, count, seed, flip)

    def load(step: int) -> T:
        return gather(*rows(step * batch_size + block.start, step * batch_size + block.stop))

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
