"""Data sets of points from mixtures of Gaussians, whose distributions are known in closed form.

The label of a point is the mode that it was drawn from. Opening a data set draws its points from a
fixed seed.
"""

from typing import NamedTuple

import numpy as np

from fewstep.data.arrays.dataset import Dataset, Split
from fewstep.data.spaces.points import point_space
from fewstep.data.spaces.space import Space
from fewstep.messages import unknown_choice

SEED = 0
TRAIN, TEST = 20_000, 4_000


class Mixture(NamedTuple):
    """sum_k weight_k N(mean_k, deviation^2 I). weight: [K], sums to 1. mean: [K, D]."""

    weight: np.ndarray
    mean: np.ndarray
    deviation: float

    def draw(self, rng: np.random.Generator, count: int) -> Split:
        """`count` points, float32 [count, D], and their modes."""
        modes = rng.choice(len(self.weight), count, p=self.weight)
        noise = rng.standard_normal((count, self.mean.shape[1]))
        points = self.mean[modes] + self.deviation * noise
        return Split(points.astype(np.float32), modes.astype(np.int32))


def ring() -> Mixture:
    """Eight modes on the unit circle, with deviation 0.06. Mode k has the weight k / 36."""
    angle = 2.0 * np.pi * np.arange(8) / 8
    mean = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return Mixture(np.arange(1.0, 9.0) / 36.0, mean, 0.06)


def cube() -> Mixture:
    """Eight modes of equal weight on the corners (+-1, +-1, +-1) of a cube, with deviation 0.1."""
    corners = np.stack(np.meshgrid(*[[-1.0, 1.0]] * 3, indexing="ij"), axis=-1)
    return Mixture(np.full(8, 1 / 8), corners.reshape(8, 3), 0.1)


MIXTURES = {"ring": ring(), "cube": cube()}


def find_mixture(name: str) -> Mixture:
    """The mixture of a name. Raises ValueError for an unknown name."""
    if name not in MIXTURES:
        names = [f"mixture:{known}" for known in MIXTURES]
        raise ValueError(unknown_choice("data.name", f"mixture:{name}", names))
    return MIXTURES[name]


def mixture_space(name: str, image_size: int = 0, channels: int = 0) -> Space:
    """The space of a mixture's points. Raises ValueError for a size of images."""
    if image_size or channels:
        raise ValueError(
            f"data.image_size={image_size} and data.channels={channels} are for images, and "
            f"data.name=mixture:{name} has points; leave both at 0"
        )
    return point_space(find_mixture(name).mean.shape[1])


def mixture_dataset(name: str) -> Dataset:
    """A training and a held-out split of points from a mixture, labelled by mode."""
    mixture, rng = find_mixture(name), np.random.default_rng(SEED)
    train, test = mixture.draw(rng, TRAIN), mixture.draw(rng, TEST)
    modes = len(mixture.weight)
    return Dataset(f"mixture:{name}", train, test, modes, tuple(f"mode {k}" for k in range(modes)))
