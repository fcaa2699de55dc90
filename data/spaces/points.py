"""The space of points in R^d, which are floats everywhere."""

from functools import partial

import numpy as np

from fewstep.data.spaces.marginals import Truth, marginal_panels, marginals
from fewstep.data.spaces.scatter import LogDensity, scatter, scatter_panels
from fewstep.data.spaces.space import Example, Space

FEATURES = ("points",)
SHOWN = 2000


def point_space(
    dimension: int,
    scale: float = 1.0,
    log_density: LogDensity | None = None,
    truth: Truth | None = None,
) -> Space:
    """The space of points with `dimension` coordinates, which networks see divided by `scale`.

    log_density: [N, 2] -> [N], drawn behind points of the plane. truth: exact points [M, D], drawn
    behind marginals of more coordinates. Samples stay floats. Raises ValueError.
    """
    if dimension < 1:
        raise ValueError(f"dimension = {dimension}; it must be at least 1")
    if dimension > 2:
        show, compare = partial(marginals, truth=truth), partial(marginal_panels, truth=truth)
    else:
        show = partial(scatter, log_density=log_density)
        compare = partial(scatter_panels, log_density=log_density)
    return Space(
        name="points",
        shape=(dimension,),
        example=Example((dimension,), np.dtype(np.float32)),
        start=lambda points: to_points(points) / np.float32(scale),
        finish=lambda points: to_points(points) * np.float32(scale),
        rounding="none",
        features=FEATURES,
        image=None,
        show=show,
        compare=compare,
        shown=SHOWN,
        compared=SHOWN,
    )


def to_points(points: np.ndarray) -> np.ndarray:
    """Points as float32. Raises ValueError if one has a NaN."""
    points = np.asarray(points, np.float32)
    if np.isnan(points).any():
        raise ValueError("points hold NaN")
    return points
