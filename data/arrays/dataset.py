"""Data sets: labelled examples with random access, uint8 images or float32 points."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fewstep.data.arrays.identity import Identity, dataset_identity, short_hash, split_identity

NULL_LABEL = -1  # the label of an image without one


class UnknownNameError(ValueError):
    """No data set has this name."""


class Split(NamedTuple):
    """Examples and their labels.

    images: uint8 [N, H, W, C], in memory or memory-mapped; `images[indices]` copies those rows.
        Float32 [N, D] for points (data/spaces/points.py).
    labels: int32 [N], in [0, num_classes), or -1 for an example without a label.
    """

    images: np.ndarray
    labels: np.ndarray


class Posteriors(NamedTuple):
    """Posteriors of the latents of the training images (data/encoded.py).

    array: float16 [N, V, M, h, w, c]. V is 2 (image, mirror image), or 1 (image). M is 2 (mean,
        standard deviation), or 1 (one draw, which is used as a mean without deviation). In memory
        or memory-mapped; `array[indices]` copies those rows.
    codec: the identity of the codec, as JSON values; {} if nobody has recorded it.
    """

    array: np.ndarray
    codec: Mapping[str, Any]


class Dataset(NamedTuple):
    """A training split, a held-out split (None if there is none), and their classes.

    num_classes: 0 for data without labels. classes: their names, () if unknown.
    files: path, bytes and time of each image file of a folder; () for other sources.
    recorded: the identity that decoding computed; None computes it when it is read.
    moments: latents of the training images, on which networks train in their place; None trains on
        the images. The examples of a data set of latents are these posteriors themselves.
    """

    name: str
    train: Split
    test: Split | None
    num_classes: int
    classes: tuple[str, ...] = ()
    recorded: Identity | None = None
    files: Sequence[tuple[str, int, int]] = ()
    moments: Posteriors | None = None

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of a stored example: (height, width, channels), or (dimension,)."""
        return self.train.images.shape[1:]

    @property
    def has_pictures(self) -> bool:
        """Whether there are examples to show and to measure against; latents alone are none."""
        return self.moments is None or self.moments.array is not self.train.images

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by name, without a missing one."""
        return {"train": self.train} | ({} if self.test is None else {"test": self.test})

    @property
    def identity(self) -> Identity:
        """Counts and hashes of the data, as JSON values (data/arrays/identity.py)."""
        if self.recorded is not None:
            return self.recorded
        splits = {name: split_identity(*split) for name, split in self.splits.items()}
        return dataset_identity(self.image_shape, self.classes, splits)

    @property
    def digest(self) -> str:
        """A short hash of the identity."""
        return short_hash(self.identity)


class Pairs(NamedTuple):
    """Noise and the samples that a sampler makes from it.

    eps, x_0: float32 [N, ...]. label: int32 [N], the class of each sample, or -1.
    """

    eps: np.ndarray
    x_0: np.ndarray
    label: np.ndarray
