"""What distances between image sets are measured on: one feature vector per image.

A feature function maps uint8 images [N, H, W, C] to float64 features [N, D]. A distance means
nothing without the name of its features: a Frechet distance on `pixels` is not FID, which is
the same formula on one particular Inception network, and the two cannot be compared.
"""

from collections.abc import Callable

import numpy as np

FeatureFunction = Callable[[np.ndarray], np.ndarray]

# Half the range of a byte: v / 127.5 - 1 takes 0 .. 255 to [-1, 1].
HALF_RANGE = 127.5


def pixels(images: np.ndarray) -> np.ndarray:
    """The images themselves, scaled to [-1, 1] and flattened: [N, H W C], float64.

    Raises ValueError unless images are uint8 [N, H, W, C].
    """
    check_images(images)
    flat = images.reshape(len(images), np.prod(images.shape[1:], dtype=int))
    return flat / HALF_RANGE - 1.0


FEATURES: dict[str, FeatureFunction] = {"pixels": pixels}


def check_images(images: np.ndarray, name: str = "images") -> None:
    """Raises ValueError unless `images` are uint8 [N, H, W, C]."""
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(
            f"{name} must be uint8 [N, H, W, C], not {images.dtype} {list(images.shape)}; "
            "convert from [-1, 1] to bytes first"
        )


def check_features(features: np.ndarray, least: int, name: str = "features") -> None:
    """Raises ValueError unless `features` are finite [N, D] with N >= least."""
    if features.ndim != 2:
        raise ValueError(f"{name} must be [N, D], not {list(features.shape)}")
    if len(features) < least:
        raise ValueError(f"{name} has {len(features)} rows; at least {least} are needed")
    bad = int(np.size(features) - np.count_nonzero(np.isfinite(features)))
    if bad:
        raise ValueError(
            f"{name}: {bad} of {features.size} values are not finite; "
            "look for diverged samples before measuring"
        )


def check_dimensions(
    real: np.ndarray,
    others: np.ndarray,
    name: str = "real features",
    other_name: str = "generated ones",
) -> None:
    """Raises ValueError unless both [N, D] and [M, D'] have the same number of dimensions."""
    if real.shape[1] != others.shape[1]:
        raise ValueError(
            f"{name} have {real.shape[1]} dimensions, {other_name} {others.shape[1]}; "
            "use the same feature function and image size on both sides"
        )
