"""Exact samples of densities as data sets of points: references, and data for other methods.

Opening a data set draws its points from a fixed seed. A sampler that learns from the density alone
does not read them.
"""

import jax
import numpy as np

from fewstep.data.arrays.dataset import NULL_LABEL, Dataset, Split
from fewstep.data.spaces.marginals import Truth
from fewstep.data.spaces.points import point_space
from fewstep.data.spaces.scatter import LogDensity
from fewstep.data.spaces.space import Space
from fewstep.densities.density import Density
from fewstep.densities.table import KIND, find_density, is_place

SEED = 0
TRAIN, TEST = 20_000, 4_000


def density_space(name: str, image_size: int = 0, channels: int = 0) -> Space:
    """The space of a density's points, which networks see in units of its scale.

    Raises ValueError for an unknown density and for a size of images.
    """
    if image_size or channels:
        raise ValueError(
            f"data.image_size={image_size} and data.channels={channels} are for images, and "
            f"data.name={KIND}:{name} has points; leave both at 0"
        )
    density = find_density(name)
    behind = contours(density) if density.dim == 2 else None
    return point_space(density.dim, density.scale, behind, exact_points(density))


def exact_points(density: Density) -> Truth | None:
    """What draws exact points for pictures, the same in all of them; None without exact samples."""
    if density.sample is None:
        return None
    return lambda: density.sample(np.random.default_rng(SEED), TEST)


def contours(density: Density) -> LogDensity:
    """The log density of points [N, 2] on the host, [N]."""
    evaluate = jax.jit(density.log_densities)
    return lambda x: np.asarray(evaluate(np.asarray(x, np.float32)))


def density_dataset(name: str) -> Dataset:
    """A training and a held-out split of exact samples, without labels.

    Raises FileNotFoundError for a density without exact samples.
    """
    density, rng = find_density(name), np.random.default_rng(SEED)
    if density.sample is None:
        raise FileNotFoundError(
            f"data.name={KIND}:{name} has no exact samples to train on or to measure against; "
            "samplers of the density alone (dis, dds) need data.num_classes=0"
        )

    def split(count: int) -> Split:
        points = density.sample(rng, count).astype(np.float32)
        return Split(points, np.full(count, NULL_LABEL, np.int32))

    return Dataset(f"{KIND}:{name}", split(TRAIN), split(TEST), 0)


def density_files(argument: str) -> list[str]:
    """The path in the name of a density that a file or a run defines; [] for others."""
    return [argument] if is_place(argument) else []
