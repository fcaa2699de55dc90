"""Feature networks: one feature vector per sample, for distances between sets of samples.

A distance means nothing without the name of its features. FID is the Frechet distance on one
particular Inception network; the same formula on `pixels` cannot be compared with it.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from fewstep.data.arrays.pixels import check_images
from fewstep.data.spaces.space import Space
from fewstep.training.sharding import batch_sharding, replicated_sharding

# Half the range of a byte: v / 127.5 - 1 takes 0 .. 255 to [-1, 1].
HALF_RANGE = 127.5


class FeatureOutputs(NamedTuple):
    """features: [B, D] float32. logits: [B, classes]; None if the network has none."""

    features: Array
    logits: Array | None = None


class FeatureNetwork(NamedTuple):
    """A network whose features compare samples.

    apply: (params, finished samples [B, ...], such as uint8 images) -> FeatureOutputs; pure, can be
    jitted. Raises ValueError for samples of another space.
    dimension: D. weights: SHA-256 of the parameters or of their file; "" without parameters.
    preprocessing: how samples become inputs, in words. published: whether the weights are the
    published ones that others measure with.
    """

    name: str
    params: Any
    apply: Callable[[Any, Array], FeatureOutputs]
    dimension: int
    weights: str
    preprocessing: str
    published: bool = False


# A Frechet distance on more dimensions takes minutes.
LARGEST_DIMENSION = 4096

# finished samples [N, ...] -> (features [N, D], logits [N, classes] or None)
Extract = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]


def pixel_features(image_shape: tuple[int, ...]) -> FeatureNetwork:
    """The feature network "pixels": images scaled to [-1, 1] and flattened, D = H W C."""

    def apply(params: None, images: Array) -> FeatureOutputs:
        check_images(images)
        return FeatureOutputs(images.reshape(len(images), -1) / jnp.float32(HALF_RANGE) - 1.0)

    dimension = int(np.prod(image_shape))
    return FeatureNetwork("pixels", None, apply, dimension, "", "x / 127.5 - 1")


def point_features(shape: tuple[int, ...]) -> FeatureNetwork:
    """The points themselves, [B, *shape], flattened."""

    def apply(params: None, samples: Array) -> FeatureOutputs:
        if samples.dtype != np.float32 or samples.shape[1:] != tuple(shape):
            raise ValueError(
                f"points must be float32 {['N', *shape]}, not {samples.dtype} {list(samples.shape)}"
            )
        return FeatureOutputs(samples.reshape(len(samples), -1))

    return FeatureNetwork("points", None, apply, int(np.prod(shape)), "", "none")


def extractor(network: FeatureNetwork, mesh: Mesh, batch_size: int) -> Extract:
    """A function that runs the network in batches of samples, split over all processes' devices.

    All processes call it with the same samples and get all features. The last batch is filled up by
    repeating samples, so one compiled program computes every sample, however many there are.
    """
    everywhere = replicated_sharding(mesh)
    params = jax.device_put(network.params, everywhere)

    @partial(jax.jit, in_shardings=(None, everywhere), out_shardings=everywhere)
    def apply(params: Any, samples: Array) -> FeatureOutputs:
        samples = jax.lax.with_sharding_constraint(samples, batch_sharding(mesh))
        return network.apply(params, samples)

    def extract(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        rows = np.arange(-(-len(samples) // batch_size) * batch_size) % len(samples)
        parts = [
            jax.device_get(apply(params, samples[part])) for part in rows.reshape(-1, batch_size)
        ]
        return jax.tree.map(lambda *arrays: np.concatenate(arrays)[: len(samples)], *parts)

    return extract


def check_dimension(features: str, space: Space) -> None:
    """Raises ValueError if samples are too large to be compared number by number."""
    dimension = math.prod(space.example.shape)
    if features in ("pixels", "points") and dimension > LARGEST_DIMENSION:
        others = [name for name in space.features if name != features]
        raise ValueError(
            f"evaluate.features={features} has {dimension} dimensions for these samples, more than "
            f"{LARGEST_DIMENSION}; use {', '.join([*others, 'none'])}"
        )


def check_colours(images: np.ndarray) -> None:
    """Raises ValueError unless `images` are uint8 [N, H, W, C] with 1 or 3 channels."""
    check_images(images)
    if images.shape[-1] not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels, not {images.shape[-1]}")


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
