"""Orders never change once runs use them, and a permutation is cheap."""

import numpy as np
import pytest

from fewstep.data import FIRST_ORDER, NEWEST_ORDER
from fewstep.data.order import ORDERS, index_dtype, ordered_rows, permuted_rows

# Rows of 23 images with seed 3, over two epochs, and which are mirrored. Runs depend on them: if a
# new version of a package changes them, the old order has to be written out, not these numbers.
GIVEN = {
    1: (
        [4, 22, 16, 7, 21, 3, 18, 19, 20, 0, 2, 13, 14, 8, 11, 10, 9, 6, 1, 12, 15, 5, 17]
        + [14, 1, 15, 7, 21, 10, 16, 4, 2, 12, 11, 20, 6, 17, 8, 3, 18, 9, 19, 5, 0, 22, 13],
        "00110001101111010010010" + "01010110111101100001110",
    ),
    2: (
        [9, 17, 12, 18, 0, 15, 3, 20, 8, 13, 6, 1, 10, 2, 11, 22, 16, 14, 4, 7, 5, 21, 19]
        + [13, 10, 11, 2, 20, 14, 9, 5, 7, 6, 16, 12, 4, 22, 0, 3, 18, 17, 1, 15, 21, 8, 19],
        "01000011000010110011110" + "10100001101111100100111",
    ),
}


def test_orders_stay_as_they_are():
    assert set(GIVEN) == set(ORDERS) and (FIRST_ORDER, NEWEST_ORDER) == (1, 2)
    for order, (index, mirrored) in GIVEN.items():
        for flip in (False, True):
            rows = ordered_rows(order, 23, 3, flip)(0, 46)
            np.testing.assert_array_equal(rows[0], index)
            assert "".join(map(str, rows[1].astype(int))) == (mirrored if flip else "0" * 46)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("flip", [False, True])
def test_any_range_is_that_part_of_the_sequence(order, flip):
    rows = ordered_rows(order, 7, 2**32 - 1, flip)
    whole = rows(0, 60)
    for start, stop in ((0, 7), (5, 8), (6, 7), (13, 14), (14, 21), (3, 60), (20, 43)):
        for part, all_ in zip(rows(start, stop), whole, strict=True):
            np.testing.assert_array_equal(part, all_[start:stop])


def test_an_epoch_is_drawn_once(monkeypatch):
    drawn = []
    rng = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda key: drawn.append(key) or rng(key))
    rows = permuted_rows(1000, 3, flip=True)
    for start in range(0, 4000, 8):
        rows(start, start + 8)
        rows(min(start + 40, 3992), min(start + 48, 4000))  # another thread is ahead
    assert drawn == [(3, epoch) for epoch in range(4)]


def test_epochs_and_seeds_differ_and_a_large_set_needs_few_bytes():
    rows = permuted_rows(50_000, 0, flip=True)
    (first, coins), (second, others) = rows(0, 50_000), rows(50_000, 100_000)
    assert (first == second).mean() < 0.001 and 0.49 < (coins == others).mean() < 0.51
    assert (first == permuted_rows(50_000, 1, True)(0, 50_000)[0]).mean() < 0.001
    assert (first.dtype, coins.dtype) == (np.int32, bool)
    assert index_dtype(2**31) == np.int32 and index_dtype(2**31 + 1) == np.int64
