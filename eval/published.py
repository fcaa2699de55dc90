"""References from a file: statistics of features, images, or both, as ADM publishes them.

`mu` [D] and `sigma` [D, D] are mean and covariance, `arr_0` images, uint8 [N, H, W, C] (Dhariwal &
Nichol 2021). Statistics of the features that are asked for are used; where the file has others or
none, its images are. `mu_s` and `sigma_s`, of spatial features, are not read.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fewstep.data.spaces.space import Space
from fewstep.eval.features.feature_network import check_dimension
from fewstep.eval.features.networks import NETWORKS
from fewstep.eval.metrics.frechet import Statistics
from fewstep.files import read_npz

ASYMMETRY = 1e-3  # of a covariance, relative to its largest entry, as float32 leaves it
NEGATIVE = 1e-4  # of its least eigenvalue, relative to the largest
FEWEST_IMAGES = 2
EXPECTED = (
    "it should have mu [D] and sigma [D, D] of real images, float32 or float64, or images arr_0, "
    "uint8 [N, H, W, C]"
)

Arrays = Mapping[str, np.ndarray]


def check_published(path: Path, features: str, space: Space) -> None:
    """Raises ValueError that names the file, before any compute, if it cannot be measured with."""
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
    """What can be used of a file: mu and sigma, arr_0, or all three.

    Raises ValueError that names it for arrays that are no statistics and no images.
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
    """Why an array is no set of images; "" if it is one."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        return f"arr_0 is {images.dtype} {list(images.shape)}"
    return "" if len(images) >= FEWEST_IMAGES else f"arr_0 has {len(images)} image(s)"


def find_statistics_fault(arrays: Arrays) -> str:
    """Why mu and sigma are no mean and covariance; "" if they are."""
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
    """Why a finite square matrix is no covariance; "" if it is one."""
    if np.abs(matrix - matrix.T).max() > ASYMMETRY * np.abs(matrix).max():
        return "sigma is not symmetric, so it is no covariance"
    values = np.linalg.eigvalsh(matrix)
    if values[0] < -NEGATIVE * max(values[-1], 0.0) or values[-1] <= 0.0:
        return f"sigma has the eigenvalue {values[0]:.3g}, so it is no covariance"
    return ""


def choose_part(path: Path, arrays: Arrays, features: str, dimension: int) -> str:
    """ "mu" if the statistics are of features of this dimension, else "arr_0".

    Raises ValueError if the file has no images either.
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
    """mu and sigma; a file does not say of how many images."""
    return Statistics(*(np.asarray(arrays[name], np.float64) for name in ("mu", "sigma")), 0)


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape in words."""
    return " x ".join(map(str, shape))
