"""What a data set is: labelled uint8 images with random access."""

from typing import NamedTuple

import numpy as np

NULL_LABEL = -1  # the label of an image without one


class Split(NamedTuple):
    """Images and their labels.

    images: uint8 [N, H, W, C], in memory or memory-mapped; `images[indices]` copies those rows.
    labels: int32 [N], in [0, num_classes), or -1 where there is none.
    """

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """A training split, a held-out split (None if the data has none) and the number of classes.

    num_classes is 0 for data without labels.
    """

    name: str
    train: Split
    test: Split | None
    num_classes: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.train.images.shape[1:]


class Pairs(NamedTuple):
    """Noise and the images that a sampler makes of it.

    eps, x_0: float32 [N, H, W, C]. label: int32 [N], what each was made for, or -1.
    """

    eps: np.ndarray
    x_0: np.ndarray
    label: np.ndarray
