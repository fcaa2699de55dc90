"""Order 1, of runs older than order numbers: Grain's shuffle and random flips.

It stays as it was, so that those runs continue. Python looks up each row, in about 20 microseconds.
"""

from collections.abc import Callable

import grain
import numpy as np

FLIP_PROBABILITY = 0.5


def grain_rows(
    count: int, seed: int, flip: bool
) -> Callable[[int, int], tuple[np.ndarray, np.ndarray]]:
    """A `data.order.RowReader` in Grain's order. seed: in [0, 2^32)."""
    positions = grain.MapDataset.range(count).seed(seed).shuffle()
    # Before `repeat`: the flip depends on the global position, and so on the epoch.
    rows = (
        positions.random_map(_draw_mirroring) if flip else positions.map(_never_mirror)
    ).repeat()

    def read(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        index, mirrored = zip(*(rows[position] for position in range(start, stop)), strict=True)
        return np.array(index), np.array(mirrored)

    return read


def _draw_mirroring(index: int, rng: np.random.Generator) -> tuple[int, bool]:
    return index, rng.random() < FLIP_PROBABILITY


def _never_mirror(index: int) -> tuple[int, bool]:
    return index, False
