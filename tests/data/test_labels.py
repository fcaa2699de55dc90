from fractions import Fraction

import numpy as np
import pytest

from fewstep.data.arrays.dataset import Split
from fewstep.data.labels import class_counts, draw_labels, proportional_labels

COUNTS = [(10, 1), (7, 0, 3), (1, 1, 1), (3, 1, 1, 1, 1), (1300, 732, 1300), (0, 0, 5), (1,)]


def largest_remainders(counts, size):
    """Quotas by the definition, in fractions."""
    exact = [Fraction(size * count, sum(counts)) for count in counts]
    quotas = [int(share) for share in exact]
    order = sorted(range(len(counts)), key=lambda c: (quotas[c] - exact[c], c))
    for c in order[: size - sum(quotas)]:
        quotas[c] += 1
    return quotas


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_labels_have_the_shares_of_the_data(counts, size):
    labels = proportional_labels(counts, size)
    assert labels.dtype == np.int32
    assert np.bincount(labels, minlength=len(counts)).tolist() == largest_remainders(counts, size)


def test_equal_counts_go_in_turn():
    np.testing.assert_array_equal(proportional_labels((6, 6, 6), 8), [0, 1, 2, 0, 1, 2, 0, 1])
    np.testing.assert_array_equal(proportional_labels((6,) * 1000, 3), [0, 1, 2])


def test_a_rare_class_lies_in_the_middle_and_the_first_samples_have_the_shares_too():
    labels = proportional_labels((10, 1), 110)
    for start in range(0, 110, 22):
        assert np.count_nonzero(labels[start : start + 22]) == 2


def test_without_classes_there_is_no_label():
    np.testing.assert_array_equal(proportional_labels((), 3), [-1, -1, -1])
    np.testing.assert_array_equal(draw_labels((), 3, (0, 0)), [-1, -1, -1])


def test_drawn_labels_have_the_shares_in_the_mean_and_depend_on_the_seed_alone():
    labels = draw_labels((90, 0, 10), 20_000, (1, 2))
    shares = np.bincount(labels, minlength=3) / 20_000
    assert shares[1] == 0 and abs(shares[2] - 0.1) < 0.01
    np.testing.assert_array_equal(labels, draw_labels((90, 0, 10), 20_000, (1, 2)))
    assert not np.array_equal(labels, draw_labels((90, 0, 10), 20_000, (1, 3)))


def test_equal_counts_draw_what_versions_without_shares_drew():
    expected = np.random.default_rng((3, 8)).integers(5, size=200)
    for count in (1, 17):
        np.testing.assert_array_equal(draw_labels((count,) * 5, 200, (3, 8)), expected)


def test_images_without_a_label_are_not_counted():
    labels = np.array([2, 0, -1, 2, -1], np.int32)
    assert class_counts(Split(np.zeros((5, 1, 1, 1), np.uint8), labels), 4) == (1, 0, 2, 0)


def test_a_rare_class_stands_in_the_middle_of_its_part_of_the_list():
    np.testing.assert_array_equal(proportional_labels((1, 3), 4), [1, 0, 1, 1])
    np.testing.assert_array_equal(proportional_labels((1, 3), 8), [1, 0, 1, 1, 1, 0, 1, 1])
