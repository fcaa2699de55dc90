"""Points of mixtures of Gaussians by name, whose distribution is known in closed form.

Examples are labelled by the mode that they were drawn from. They are drawn when they are opened,
from a fixed seed.
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
    """sum_k weight_k N(mean_k, deviation^2 I). weight: [K], of sum 1; mean: [K, D]."""

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
    """Eight modes of deviation 0.06 on the unit circle, the k-th of weight k / 36."""
    angle = 2.0 * np.pi * np.arange(8) / 8
    mean = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return Mixture(np.arange(1.0, 9.0) / 36.0, mean, 0.06)


def cube() -> Mixture:
    """Eight equal modes of deviation 0.1 on the corners of a cube, (+-1, +-1, +-1)."""
    corners = np.stack(np.meshgrid(*[[-1.0, 1.0]] * 3, indexing="ij"), axis=-1)
    return Mixture(np.full(8, 1 / 8), corners.reshape(8, 3), 0.1)


MIXTURES = {"ring": ring(), "cube": cube()}


def find_mixture(name: str) -> Mixture:
    """The mixture of a name. Raises ValueError for one that does not exist."""
    if name not in MIXTURES:
        raise ValueError(unknown_choice("data.name=mixture", name, MIXTURES))
    return MIXTURES[name]


def mixture_space(name: str, image_size: int = 0, channels: int = 0) -> Space:
    """Points of the mixture's dimension. Raises ValueError if they should be sized as images."""
    if image_size or channels:
        raise ValueError(
            f"data.image_size={image_size} and data.channels={channels} are for images, and "
            f"data.name=mixture:{name} has points; leave both at 0"
        )
    return point_space(find_mixture(name).mean.shape[1])


def mixture_dataset(name: str) -> Dataset:
    """A training and a held-out split of a mixture's points, labelled by mode."""
    mixture, rng = find_mixture(name), np.random.default_rng(SEED)
    train, test = mixture.draw(rng, TRAIN), mixture.draw(rng, TEST)
    modes = len(mixture.weight)
    return Dataset(f"mixture:{name}", train, test, modes, tuple(f"mode {k}" for k in range(modes)))
