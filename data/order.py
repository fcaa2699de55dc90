"""The order of training examples: an endless sequence of rows, reshuffled every epoch.

A row depends only on (seed, position in the sequence). So a process can read its own rows of any
step without reading those before it or those of other processes. A run keeps the order that it
started with, by its number in the run's record (training/storage/identity.py). Orders in use never
change; a better one gets the next number.
"""

import functools
from collections.abc import Callable, Mapping

import numpy as np

from fewstep.data.grain_order import grain_rows

# (start, stop) -> (image indices, whether each is mirrored) of these positions: int, bool [N].
RowReader = Callable[[int, int], tuple[np.ndarray, np.ndarray]]

FLIP_PROBABILITY = 0.5
EPOCHS_HELD = 2  # a batch may reach into the next epoch


def permuted_rows(count: int, seed: int, flip: bool) -> RowReader:
    """Order 2: a permutation of `count` images per epoch, drawn by NumPy from (seed, epoch).

    After its permutation, each epoch draws whether to mirror each position.
    """

    @functools.lru_cache(maxsize=EPOCHS_HELD)
    def epoch(number: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((seed, number))
        index = rng.permutation(np.arange(count, dtype=index_dtype(count)))
        mirrored = (
            rng.random(count, np.float32) < FLIP_PROBABILITY if flip else np.zeros(count, bool)
        )
        return index, mirrored

    def read(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        parts = [
            [row[max(start - first, 0) : stop - first] for row in epoch(first // count)]
            for first in range(start - start % count, stop, count)
        ]
        index, mirrored = map(np.concatenate, zip(*parts, strict=True))
        return index, mirrored

    return read


def index_dtype(count: int) -> type[np.integer]:
    """The smaller of int32 and int64 that can hold indices below `count`."""
    return np.int32 if count <= 2**31 else np.int64


# By their number in a run's record.
ORDERS: Mapping[int, Callable[[int, int, bool], RowReader]] = {1: grain_rows, 2: permuted_rows}
# A record without a number means the first order.
FIRST_ORDER, NEWEST_ORDER = min(ORDERS), max(ORDERS)


def ordered_rows(order: int, count: int, seed: int, flip: bool = False) -> RowReader:
    """The rows of `count` images in one of ORDERS. Raises ValueError for an unknown order."""
    if order not in ORDERS:
        raise ValueError(
            f"the run reads its data in order {order}, which this version does not have (it has "
            f"{', '.join(map(str, ORDERS))}); continue with the version that started the run"
        )
    return ORDERS[order](count, seed, flip)
