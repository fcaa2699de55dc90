"""A photograph as a density of the plane: dark places are likely, with detail on every scale.

Its darkness is interpolated linearly between pixels, and falls off as a half normal distribution
beyond the edges. So the density is positive everywhere and continuous, and its normaliser, which
sums over pixels, and its samples are exact.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.ndimage import map_coordinates

from fewstep.densities.density import Density

SIDE = 96  # pixels of the density on each side
HALF = 3.5  # the picture fills [-HALF, HALF]^2
EDGE = 0.3  # deviation beyond an edge
LEAST = 0.02  # darkness of white


def photograph(name: str) -> Density:
    """The darkness of china.jpg, which comes with scikit-learn, from its centre."""
    from sklearn.datasets import load_sample_image

    grey = load_sample_image("china.jpg").astype(np.float64).mean(axis=-1) / 255.0
    block = min(grey.shape) // SIDE
    top, left = ((size - SIDE * block) // 2 for size in grey.shape)
    square = grey[top : top + SIDE * block, left : left + SIDE * block]
    coarse = square.reshape(SIDE, block, SIDE, block).mean(axis=(1, 3))
    # Rows go down the picture; here the first axis goes right, and the second up.
    return picture(name, LEAST + 1.0 - coarse[::-1].T)


def picture(name: str, values: np.ndarray) -> Density:
    """The density that is values[i, j] > 0 at the points of an even grid on [-HALF, HALF]^2.

    values: [N, N], N of 2 or more.
    """
    side = len(values)
    cell = 2.0 * HALF / (side - 1)
    nodes = jnp.asarray(values, jnp.float32)

    def log_density(x: Array) -> Array:
        inside = jnp.clip(x, -HALF, HALF)
        place = (inside + HALF) / cell
        darkness = map_coordinates(nodes, [place[0], place[1]], order=1, mode="nearest")
        return jnp.log(darkness) - 0.5 * jnp.sum((x - inside) ** 2) / EDGE**2

    # Regions between nodes, and beyond those at the edges: [N + 1, N + 1].
    padded = np.pad(values, 1, mode="edge")
    width = np.full(side + 1, cell)
    width[[0, -1]] = EDGE * math.sqrt(0.5 * math.pi)
    corners = padded[:-1, :-1] + padded[1:, :-1] + padded[:-1, 1:] + padded[1:, 1:]
    mass = 0.25 * corners * width[:, None] * width
    total = mass.sum()

    def sample(rng: np.random.Generator, count: int) -> np.ndarray:
        i, j = np.divmod(rng.choice(mass.size, size=count, p=mass.ravel() / total), side + 1)
        low, high = padded[i, j] + padded[i, j + 1], padded[i + 1, j] + padded[i + 1, j + 1]
        u = linear_draw(rng.random(count), low, high)
        start = (1.0 - u) * padded[i, j] + u * padded[i + 1, j]
        end = (1.0 - u) * padded[i, j + 1] + u * padded[i + 1, j + 1]
        v = linear_draw(rng.random(count), start, end)
        return np.stack([placed(rng, i, u), placed(rng, j, v)], axis=1)

    def placed(rng: np.random.Generator, region: np.ndarray, share: np.ndarray) -> np.ndarray:
        beyond = EDGE * np.abs(rng.standard_normal(len(region)))
        within = -HALF + cell * (region - 1 + share)
        return np.where(
            region == 0, -HALF - beyond, np.where(region == side, HALF + beyond, within)
        )

    return Density(name, 2, log_density, 2.0, sample, float(math.log(total)))


def linear_draw(uniform: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Draws from the density on [0, 1] that is linear from `low` to `high`, both positive."""
    root = np.sqrt(low**2 + uniform * (high**2 - low**2))
    return uniform * (low + high) / (low + root)
