"""Endless training batches by Grain: shuffled anew every epoch, resumable at any step.

The order of examples is a function of (seed, global position) alone. A step's batch is a range of
positions, of which every process takes its block; so the batch of a step, mirrored images and order
included, depends neither on the steps before nor on the number of processes.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import grain
import numpy as np

from data.dataset import NULL_LABEL, Pairs, Split
from data.pixels import to_float

# Threads, not worker processes: a batch is one gather from an array, and the state of an iterator
# without workers is its position.
READ_OPTIONS = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
FLIP_PROBABILITY = 0.5
LARGEST_SEED = 2**32 - 1  # of Grain's shuffle


def batches(split: Split, **share: Any) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of the batches of steps start_step, start_step + 1, ... without end.

    A batch is {"x": float32 [B / process_count, H, W, C] in [-1, 1], "label": int32
    [B / process_count]}, with B = batch_size, the rows of all processes together. An epoch's last
    batch is filled up from the next epoch, so B may exceed the number of images. flip mirrors each
    image left to right with probability 1/2.

    share: the other arguments of `row_batches`. Raises ValueError for one out of range.
    """

    def gather(rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        x = to_float(split.images[rows["index"]])
        x[rows["mirrored"]] = x[rows["mirrored"], :, ::-1]
        return {"x": x, "label": split.labels[rows["index"]]}

    return _iterate(_row_steps(split, **share).map(gather))


def row_batches(split: Split, **share: Any) -> Iterator[dict[str, np.ndarray]]:
    """The same batches by number: {"index": int32 [B / process_count], "mirrored": bool [same]}.

    For data that lie on the devices (training/resident.py). share: batch_size, seed, start_step,
    flip, process_index, process_count; all but the first two have defaults.
    """
    return _iterate(_row_steps(split, **share))


def batch_indices(count: int, *, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Which of `count` images `batches` puts into the batch that follows `step` steps: int [B]."""
    return _positions(count, seed).repeat().batch(batch_size, drop_remainder=True)[step]


def label_batches(
    num_classes: int,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of {"label": int32 [B / process_count]}, for training without images.

    Each label is drawn alike; without classes it is -1. As for `batches`, a step's labels depend on
    (seed, step) alone.
    """
    block = _block(batch_size, process_index, process_count)
    for step in itertools.count(start_step):
        if num_classes:
            labels = np.random.default_rng((seed, step)).integers(num_classes, size=batch_size)
        else:
            labels = np.full(batch_size, NULL_LABEL)
        yield {"label": labels[block].astype(np.int32)}


def pair_batches(
    pairs: Pairs,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of {"eps", "x_0", "label"}, in an order drawn anew every epoch."""
    block = _block(batch_size, process_index, process_count)

    def gather(indices: np.ndarray) -> dict[str, np.ndarray]:
        return {name: array[indices[block]] for name, array in pairs._asdict().items()}

    positions = _positions(len(pairs.label), seed)
    steps = positions.repeat().batch(batch_size, drop_remainder=True)
    return _iterate(steps[start_step:].map(gather))


def _row_steps(
    split: Split,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    flip: bool = False,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.MapDataset:
    """Numbers and mirrorings of this process's rows, by step from start_step on."""
    _check(split, batch_size, seed, start_step, process_index, process_count)
    block = _block(batch_size, process_index, process_count)
    positions = _positions(len(split.labels), seed)
    # Before `repeat`: an image's coin belongs to its global position, by epoch.
    rows = positions.random_map(_draw_mirroring) if flip else positions.map(_keep)
    steps = rows.repeat().batch(batch_size, drop_remainder=True)

    def own(rows: tuple[np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
        indices, mirrored = (row[block] for row in rows)
        return {"index": indices.astype(np.int32), "mirrored": mirrored}

    return steps[start_step:].map(own)


def _iterate(steps: grain.MapDataset) -> Iterator[dict[str, np.ndarray]]:
    return iter(steps.to_iter_dataset(READ_OPTIONS))


def _positions(count: int, seed: int) -> grain.MapDataset:
    """The numbers below `count`, in an order drawn anew every epoch once repeated."""
    return grain.MapDataset.range(count).seed(seed).shuffle()


def _block(batch_size: int, index: int, count: int) -> slice:
    """The rows of a batch that a process takes."""
    local = batch_size // count
    return slice(index * local, (index + 1) * local)


def _draw_mirroring(index: int, rng: np.random.Generator) -> tuple[int, bool]:
    return index, rng.random() < FLIP_PROBABILITY


def _keep(index: int) -> tuple[int, bool]:
    return index, False


def _check(
    split: Split, batch_size: int, seed: int, start_step: int, index: int, count: int
) -> None:
    if len(split.images) != len(split.labels) or not len(split.labels):
        raise ValueError(
            f"a split needs as many images as labels, at least one; it has {len(split.images)} "
            f"and {len(split.labels)}"
        )
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
