"""The order of training examples: an endless sequence of rows, shuffled anew every epoch.

A row is a function of (seed, position in the sequence) alone, so a process reads its own rows of
any step without those before or those of other processes. A run keeps the order that it was begun
with: its record has the number (training/storage/identity.py). An order never changes once runs
have it; a better one gets the next number.
"""

import functools
from collections.abc import Callable, Mapping

import numpy as np

from fewstep.data.grain_order import grain_rows

# Positions start, ..., stop - 1 -> (numbers of images, whether each is mirrored): int, bool [N].
RowReader = Callable[[int, int], tuple[np.ndarray, np.ndarray]]

FLIP_PROBABILITY = 0.5
EPOCHS_HELD = 2  # a batch may end in the next epoch, and reading ahead begins it


def permuted_rows(count: int, seed: int, flip: bool) -> RowReader:
    """Rows of one permutation of `count` images per epoch, drawn by NumPy from (seed, epoch).

    The coins of an epoch, by position, are drawn after its permutation.
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
    """The smaller of int32 and int64 that holds the numbers below `count`."""
    return np.int32 if count <= 2**31 else np.int64


# By the number in a run's record.
ORDERS: Mapping[int, Callable[[int, int, bool], RowReader]] = {1: grain_rows, 2: permuted_rows}
# A record without a number is of a run of the first.
FIRST_ORDER, NEWEST_ORDER = min(ORDERS), max(ORDERS)


def ordered_rows(order: int, count: int, seed: int, flip: bool = False) -> RowReader:
    """The rows of `count` images in an order of ORDERS. Raises ValueError if it is none of them."""
    if order not in ORDERS:
        raise ValueError(
            f"the run reads its data in order {order}, which this version does not know (it knows "
            f"{', '.join(map(str, ORDERS))}); go on with the version that began the run"
        )
    return ORDERS[order](count, seed, flip)
