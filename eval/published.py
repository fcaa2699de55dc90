"""References from a file: statistics of features, images, or both, as ADM publishes them.

`mu` [D] and `sigma` [D, D] are mean and covariance, and `arr_0` are images, uint8 [N, H, W, C]
(Dhariwal & Nichol 2021). The statistics serve if they are of the requested features; otherwise the
images do. `mu_s` and `sigma_s`, of spatial features, are not read.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fewstep.data.spaces.space import Space
from fewstep.eval.features.feature_network import check_dimension
from fewstep.eval.features.networks import NETWORKS
from fewstep.eval.metrics.frechet import Statistics
from fewstep.files import read_npz

ASYMMETRY = 1e-3  # largest of a float32 covariance, relative to its largest entry
NEGATIVE = 1e-4  # largest negative eigenvalue, relative to the largest eigenvalue
FEWEST_IMAGES = 2
EXPECTED = (
    "it should have mu [D] and sigma [D, D] of real images, float32 or float64, or images arr_0, "
    "uint8 [N, H, W, C]"
)

Arrays = Mapping[str, np.ndarray]


def check_published(path: Path, features: str, space: Space) -> None:
    """Raises ValueError that names the file, before any compute, if it cannot be a reference."""
    arrays, shape = read_published(path), space.example.shape
    dimension = NETWORKS[features].dimension
    if dimension is not None:
        choose_part(path, arrays, features, dimension(shape))
    if "arr_0" in arrays:
        there = arrays["arr_0"].shape[1:]
        if there != shape:
            raise ValueError(
                f"evaluate.reference={path} has images of {shape_text(there)}, and the run "
                f"makes {shape_text(shape)}; use a reference of that size"
            )
        check_dimension(features, space)


def read_published(path: Path) -> Arrays:
    """The arrays of a file that can be used: mu and sigma, arr_0, or all three.

    Raises ValueError that names the file if its arrays are neither statistics nor images.
    """
    arrays = read_npz(path, EXPECTED)
    found = {name: arrays[name] for name in ("mu", "sigma", "arr_0") if name in arrays}
    if "arr_0" not in found and not {"mu", "sigma"} <= found.keys():
        raise ValueError(f"evaluate.reference={path} has {sorted(arrays)}; {EXPECTED}")
    if "arr_0" in found:
        fault = find_image_fault(found["arr_0"])
    if "arr_0" not in found or not fault:
        fault = find_statistics_fault(found) if {"mu", "sigma"} & found.keys() else ""
    if fault:
        raise ValueError(f"evaluate.reference={path}: {fault}; {EXPECTED}")
    return found


def find_image_fault(images: np.ndarray) -> str:
    """What is wrong with an array of images; "" if nothing is."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        return f"arr_0 is {images.dtype} {list(images.shape)}"
    return "" if len(images) >= FEWEST_IMAGES else f"arr_0 has {len(images)} image(s)"


def find_statistics_fault(arrays: Arrays) -> str:
    """What is wrong with mu and sigma; "" if nothing is."""
    if not {"mu", "sigma"} <= arrays.keys():
        return f"it has {'mu' if 'mu' in arrays else 'sigma'} alone"
    mean, covariance = arrays["mu"], arrays["sigma"]
    for name, array in (("mu", mean), ("sigma", covariance)):
        if array.dtype not in (np.float32, np.float64):
            return f"{name} is {array.dtype}"
    if mean.ndim == 2 and covariance.ndim == 1:
        return f"mu is {list(mean.shape)} and sigma {list(covariance.shape)}: they are swapped"
    if mean.ndim != 1 or not mean.size or covariance.shape != (mean.size, mean.size):
        return f"mu is {list(mean.shape)} and sigma {list(covariance.shape)}"
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        return "it has values that are not finite"
    return find_covariance_fault(np.asarray(covariance, np.float64))


def find_covariance_fault(matrix: np.ndarray) -> str:
    """What makes a finite square matrix no covariance; "" if it is one."""
    if np.abs(matrix - matrix.T).max() > ASYMMETRY * np.abs(matrix).max():
        return "sigma is not symmetric, so it is no covariance"
    values = np.linalg.eigvalsh(matrix)
    if values[0] < -NEGATIVE * max(values[-1], 0.0) or values[-1] <= 0.0:
        return f"sigma has the eigenvalue {values[0]:.3g}, so it is no covariance"
    return ""


def choose_part(path: Path, arrays: Arrays, features: str, dimension: int) -> str:
    """The part of a file to measure against: "mu" if its statistics have this dimension.

    Otherwise "arr_0". Raises ValueError if the file has no images either.
    """
    if "mu" in arrays and len(arrays["mu"]) == dimension:
        return "mu"
    if "arr_0" in arrays:
        return "arr_0"
    raise ValueError(
        f"evaluate.reference={path} has statistics of {len(arrays['mu'])} dimensions, and "
        f"evaluate.features={features} has {dimension}; use statistics of the same features"
    )


def published_statistics(arrays: Arrays) -> Statistics:
    """The statistics of a file. Their count is 0, since the file does not say it."""
    return Statistics(*(np.asarray(arrays[name], np.float64) for name in ("mu", "sigma")), 0)


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape as text: 28 x 28 x 1."""
    return " x ".join(map(str, shape))
