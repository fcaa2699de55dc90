"""Labels for generated images, in the proportions of the data or in equal ones.

With counts n_1 .. n_K, class c has the share n_c / n. Samples that are compared with the data need
the data's shares; otherwise even perfect samples have another distribution.
"""

from collections.abc import Sequence

import numpy as np

from fewstep.data.arrays.dataset import NULL_LABEL, Split

SHARES = ("data", "equal")  # the values of data.label_shares
# Images of each class; () without classes.
Counts = Sequence[int]


def class_counts(split: Split, num_classes: int) -> tuple[int, ...]:
    """The number of images of each class in a split; images without a label do not count."""
    labels = split.labels[split.labels != NULL_LABEL]
    return tuple(np.bincount(labels, minlength=num_classes).tolist())


def proportional_labels(counts: Counts, size: int) -> np.ndarray:
    """`size` labels in proportion to `counts`, by largest remainders: int32 [size].

    Among equal remainders the lower classes win. Classes are spread evenly over the list; with
    equal shares they alternate. Without classes all are NULL_LABEL.
    """
    counts = np.array(counts, np.int64)
    if not counts.any():
        return np.full(size, NULL_LABEL, np.int32)
    total = int(counts.sum())
    # Integers only, so that all machines agree.
    quotas, remainders = np.divmod(counts * size, total)
    left = size - int(quotas.sum())
    quotas[np.argsort(-remainders, kind="stable")[:left]] += 1
    labels = np.repeat(np.arange(len(counts)), quotas)
    number = np.concatenate([np.arange(quota) for quota in quotas])
    # The k-th of q labels of a class lies at (2 k + 1) / 2 q of the list.
    place = (2 * number + 1) / (2 * quotas[labels])
    return labels[np.lexsort((labels, place))].astype(np.int32)


def draw_labels(counts: Counts, size: int, seed: Sequence[int]) -> np.ndarray:
    """`size` labels drawn in proportion to `counts`; NULL_LABEL without classes: int32 [size]."""
    counts = np.array(counts, np.int64)
    if not counts.any():
        return np.full(size, NULL_LABEL, np.int32)
    rng = np.random.default_rng(tuple(seed))
    # Equal counts keep the draws of versions that only had equal shares.
    alike = len(set(counts.tolist())) == 1
    ends = np.arange(1, len(counts) + 1) if alike else np.cumsum(counts)
    rows = rng.integers(ends[-1], size=size)
    return np.searchsorted(ends, rows, side="right").astype(np.int32)
