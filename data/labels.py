"""Labels to make images for: as often as the data have them, or all alike.

Class c of counts n_1 .. n_K gets the share n_c / n. Samples that are compared with the data need
their shares: with other ones even perfect samples are another distribution.
"""

from collections.abc import Sequence

import numpy as np

from fewstep.data.arrays.dataset import NULL_LABEL, Split

SHARES = ("data", "equal")  # the values of data.label_shares
# Classes to sample: how many real images each has; () without classes.
Counts = Sequence[int]


def class_counts(split: Split, num_classes: int) -> tuple[int, ...]:
    """How many images of each class a split has; those without a label do not count."""
    labels = split.labels[split.labels != NULL_LABEL]
    return tuple(np.bincount(labels, minlength=num_classes).tolist())


def proportional_labels(counts: Counts, size: int) -> np.ndarray:
    """`size` labels in the shares of `counts`, by largest remainders: int32 [size].

    Of equal remainders the first classes' count. Classes are spread evenly over the list, and go in
    turn if all have equal shares. NULL_LABEL without classes.
    """
    counts = np.array(counts, np.int64)
    if not counts.any():
        return np.full(size, NULL_LABEL, np.int32)
    total = int(counts.sum())
    # Whole numbers throughout, so that all machines agree.
    quotas, remainders = np.divmod(counts * size, total)
    left = size - int(quotas.sum())
    quotas[np.argsort(-remainders, kind="stable")[:left]] += 1
    labels = np.repeat(np.arange(len(counts)), quotas)
    number = np.concatenate([np.arange(quota) for quota in quotas])
    # The k-th of q labels of a class lies at (2 k + 1) / 2 q of the list.
    place = (2 * number + 1) / (2 * quotas[labels])
    return labels[np.lexsort((labels, place))].astype(np.int32)


def draw_labels(counts: Counts, size: int, seed: Sequence[int]) -> np.ndarray:
    """`size` labels, each drawn by the shares of `counts`: int32 [size]; see `proportional_labels`."""
    counts = np.array(counts, np.int64)
    if not counts.any():
        return np.full(size, NULL_LABEL, np.int32)
    rng = np.random.default_rng(tuple(seed))
    # Of equal counts, the draws of versions that knew no other.
    alike = len(set(counts.tolist())) == 1
    ends = np.arange(1, len(counts) + 1) if alike else np.cumsum(counts)
    rows = rng.integers(ends[-1], size=size)
    return np.searchsorted(ends, rows, side="right").astype(np.int32)
