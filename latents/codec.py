"""The contract of codecs: images to latents, and latents to images.

A codec is pure functions of its parameters, as a network is. Its encoder gives a normal
distribution of latents for each image, the posterior. Training draws from it at every visit:

    z = mean + std eps,    eps ~ N(0, 1)

A codec without randomness has std = 0. A codec of pixels, `identity_codec`, changes nothing.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
Key = jax.Array
Shape = tuple[int, ...]
# Each codec has two entries: "encoder", all that `encode` reads, and "decoder", all that `decode`
# reads.
Params = Mapping[str, Any]


class Moments(NamedTuple):
    """Mean and standard deviation of the posterior, both [N, *latent_shape]."""

    mean: Array
    std: Array


def unpacked(moments: Array) -> Moments:
    """The moments in an array whose first axis is (mean, standard deviation), or one draw alone."""
    return Moments(moments[0], moments[1] if len(moments) > 1 else 0.0 * moments[0])


class Codec(NamedTuple):
    """Images to latents and back, without the parameters.

    init: key -> parameters of an untrained codec, nested dicts of float32 arrays below "encoder"
        and "decoder".
    encode: (params, images [N, *shape]) -> Moments, float32. Images are uint8, or floating in
        [-1, 1].
    decode: (params, latents [N, *latent_shape]) -> images [N, *shape], float32. Pixels lie in
        [-1, 1] as far as the codec is exact, and are not clipped.
    shape: of an image, (height, width, channels).
    latent_shape: of its latent, (height, width, channels).

    `encode` needs params["encoder"] alone, and `decode` params["decoder"] alone. Both raise
    ValueError for arrays of another shape or type.
    """

    init: Callable[[Key], Params]
    encode: Callable[[Params, Array], Moments]
    decode: Callable[[Params, Array], Array]
    shape: Shape
    latent_shape: Shape


def checked(codec: Codec) -> Codec:
    """A codec of floats as one that checks its inputs, and takes uint8 images too."""

    def encode(params: Params, images: Array) -> Moments:
        check_array("images", images, codec.shape)
        return codec.encode(params, as_floats(images))

    def decode(params: Params, latents: Array) -> Array:
        check_array("latents", latents, codec.latent_shape)
        if not jnp.issubdtype(latents.dtype, jnp.floating):
            raise ValueError(f"latents are {latents.dtype}; convert them to float32")
        return codec.decode(params, jnp.asarray(latents, jnp.float32))

    return codec._replace(encode=encode, decode=decode)


def check_array(name: str, array: Array, shape: Shape) -> None:
    """Raises ValueError unless the array is [N, *shape]."""
    if array.ndim != len(shape) + 1 or array.shape[1:] != tuple(shape):
        expected = ", ".join(map(str, ("N", *shape)))
        raise ValueError(f"{name} are {list(array.shape)}; this codec takes [{expected}]")


def as_floats(images: Array) -> Array:
    """uint8 images as x / 127.5 - 1, and floating ones as they are, float32.

    Raises ValueError for another type.
    """
    if images.dtype == jnp.uint8:
        return jnp.asarray(images, jnp.float32) / 127.5 - 1.0
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images are {images.dtype}; give uint8, or floats in [-1, 1]")
    return jnp.asarray(images, jnp.float32)


def sample_posterior(key: Key, moments: Moments) -> Array:
    """Latents z = mean + std eps, float32; the moments may be of a shorter type."""
    mean, std = (jnp.asarray(each, jnp.float32) for each in moments)
    return mean + std * jax.random.normal(key, mean.shape)


def latent_shape(shape: Shape, factor: int, channels: int) -> Shape:
    """The shape of latents whose sides are `factor` times shorter than the images'.

    Raises ValueError unless images are [H, W, C] with sides that `factor` divides.
    """
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"images are {list(shape)}; codecs take [height, width, channels]")
    height, width, _ = shape
    if height % factor or width % factor:
        raise ValueError(
            f"images are {height} x {width} pixels; this codec takes sides that {factor} divides, "
            f"such as {-(-height // factor) * factor} x {-(-width // factor) * factor}"
        )
    return height // factor, width // factor, channels


def identity_codec(shape: Shape) -> Codec:
    """The codec of pixels: latents are the images as floats. It has no parameters."""
    latent = latent_shape(shape, factor=1, channels=shape[-1])

    def init(key: Key) -> Params:
        return {"encoder": {}, "decoder": {}}

    def encode(params: Params, images: Array) -> Moments:
        return Moments(images, jnp.zeros_like(images))

    return checked(Codec(init, encode, lambda params, latents: latents, shape, latent))
