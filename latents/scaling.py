"""Scales of latents, which bring each channel to the spread that a network expects.

    z' = scale (z - shift),    z = z' / scale + shift,    per channel

A codec's own latents are raw. Raw moments are what is worth storing, since the same ones serve
networks with different scales.
"""

from typing import NamedTuple

import jax
import numpy as np

from fewstep.latents.codec import Codec, Moments, Params

Array = jax.Array


class Scaling(NamedTuple):
    """scale, shift: one number for all channels, or one for each. Scales are positive."""

    scale: tuple[float, ...] = (1.0,)
    shift: tuple[float, ...] = (0.0,)


def standardizing(
    mean: tuple[float, ...], std: tuple[float, ...], deviation: float = 1.0
) -> Scaling:
    """The scaling to mean 0 and the given deviation, from mean and deviation of raw channels."""
    return Scaling(tuple(deviation / each for each in std), mean)


# By their published users. Only "edm2" has channels of mean 0 and deviation 0.5, the sigma_data of
# EDM and of consistency models; with "sd" the deviations are 0.6 to 0.84, and the means 1.06, 0.59,
# 0.02 and -0.39.
SCALINGS = {
    "none": Scaling(),
    "sd": Scaling((0.18215,)),  # Rombach et al. 2022, arXiv:2112.10752; DiT, SiT, REPA, MeanFlow
    "sdxl": Scaling((0.13025,)),  # Podell et al. 2023, arXiv:2307.01952
    "sd3": Scaling((1.5305,), (0.0609,)),  # Esser et al. 2024, arXiv:2403.03206
    "flux": Scaling((0.3611,), (0.1159,)),  # Black Forest Labs 2024
    # Of the latents of sd-vae-ft-mse; Karras et al. 2024, arXiv:2312.02696, training/encoders.py
    "edm2": standardizing((5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28), deviation=0.5),
}


def scale_latents(scaling: Scaling, latents: Array) -> Array:
    """Raw latents [..., C] as a network sees them."""
    return (latents - per_channel(scaling.shift)) * per_channel(scaling.scale)


def unscale_latents(scaling: Scaling, latents: Array) -> Array:
    """The inverse of `scale_latents`."""
    return latents / per_channel(scaling.scale) + per_channel(scaling.shift)


def scale_moments(scaling: Scaling, moments: Moments) -> Moments:
    """The moments of scaled latents from those of raw ones."""
    return Moments(scale_latents(scaling, moments.mean), moments.std * per_channel(scaling.scale))


def per_channel(values: tuple[float, ...]) -> np.ndarray:
    return np.asarray(values, np.float32)


def scaled(codec: Codec, scaling: Scaling) -> Codec:
    """The codec whose latents are scaled.

    Raises ValueError for scales that are not positive, and for a number of values that is neither 1
    nor that of the channels.
    """
    check_scaling(scaling, codec.latent_shape[-1])

    def encode(params: Params, images: Array) -> Moments:
        return scale_moments(scaling, codec.encode(params, images))

    def decode(params: Params, latents: Array) -> Array:
        return codec.decode(params, unscale_latents(scaling, latents))

    return codec._replace(encode=encode, decode=decode)


def check_scaling(scaling: Scaling, channels: int) -> None:
    """Raises ValueError unless a scaling fits latents of so many channels."""
    for field, values in zip(scaling._fields, scaling, strict=True):
        if len(values) not in (1, channels):
            raise ValueError(
                f"{field} has {len(values)} values; latents of {channels} channels take 1 or "
                f"{channels}"
            )
        if not np.isfinite(values).all():
            raise ValueError(f"{field}={values} has a value that is not finite")
    if min(scaling.scale) <= 0.0:
        raise ValueError(f"scale={scaling.scale} must be positive")
