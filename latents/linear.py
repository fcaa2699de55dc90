"""A linear codec: principal components of square patches, whitened.

With mean m, eigenvectors v_k and eigenvalues l_k of the patches' covariance, the largest first,

    z_k = v_k (x - m) / sqrt(l_k),    x = m + sum_k sqrt(l_k) z_k v_k

No other linear code of as many numbers has a smaller squared error. Over the images that it is
fitted to, each channel of its latents has mean 0 and deviation 1, so they need no scale. Fitting is
deterministic and takes seconds, which suits tests of what is built on codecs.
"""

import jax
import jax.numpy as jnp
import numpy as np

from fewstep.latents.codec import Array, Codec, Key, Moments, Params, Shape, checked, latent_shape
from fewstep.latents.patches import depth_to_space, space_to_depth

SMALLEST_SHARE = 1e-9  # of the largest eigenvalue; smaller ones are rounding


def linear_codec(shape: Shape, *, patch_size: int = 4, channels: int = 4) -> Codec:
    """Patches of `patch_size` pixels a side as `channels` numbers each, by two affine maps.

    Raises ValueError unless `patch_size` divides both sides, and for more channels than a patch has
    numbers.
    """
    latent = latent_shape(shape, patch_size, channels)
    depth = patch_size**2 * shape[-1]
    if not 1 <= channels <= depth:
        raise ValueError(f"channels={channels} must be 1 to {depth}, the numbers of a patch")

    def init(key: Key) -> Params:
        """Projection on random orthogonal directions."""
        basis = jnp.linalg.qr(jax.random.normal(key, (depth, channels)))[0]
        return affine_maps(jnp.zeros(depth), basis, jnp.ones(channels))

    def encode(params: Params, images: Array) -> Moments:
        mean = affine(params["encoder"], space_to_depth(images, patch_size))
        return Moments(mean, jnp.zeros_like(mean))

    def decode(params: Params, latents: Array) -> Array:
        return depth_to_space(affine(params["decoder"], latents), patch_size)

    return checked(Codec(init, encode, decode, shape, latent))


def fit_linear_codec(images: np.ndarray, *, patch_size: int = 4, channels: int = 4) -> Params:
    """Parameters of `linear_codec` from images, uint8 [N, H, W, C]; computed in float64.

    Of the two directions of an eigenvector, the one whose largest entry is positive. Raises
    ValueError for other images, and if the patches vary in fewer directions than `channels`.
    """
    if images.dtype != np.uint8:
        raise ValueError(f"images are {images.dtype}; a linear codec is fitted to uint8 images")
    linear_codec(images.shape[1:], patch_size=patch_size, channels=channels)  # checks its fields
    patches = np.asarray(space_to_depth(images, patch_size), np.float64) / 127.5 - 1.0
    patches = patches.reshape(-1, patches.shape[-1])
    mean = patches.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(patches, rowvar=False, bias=True))
    values, vectors = values[::-1], vectors[:, ::-1]
    varying = int(np.sum(values > SMALLEST_SHARE * values[0]))
    if channels > varying:
        raise ValueError(
            f"channels={channels}, and the patches vary in {varying} directions only; give more "
            "images, or ask for fewer channels"
        )
    basis = vectors[:, :channels]
    largest = basis[np.abs(basis).argmax(axis=0), np.arange(channels)]
    maps = affine_maps(mean, basis * np.sign(largest), np.sqrt(values[:channels]))
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), maps)


def affine_maps(mean: Array, basis: Array, deviation: Array) -> Params:
    """The maps x -> z and z -> x; mean: [D], basis: [D, K], deviation: [K]."""
    to_latents = basis / deviation
    return {
        "encoder": {"kernel": to_latents, "bias": -mean @ to_latents},
        "decoder": {"kernel": (basis * deviation).T, "bias": mean},
    }


def affine(params: Params, x: Array) -> Array:
    """x kernel + bias, in full float32 on every device."""
    product = jnp.matmul(x, params["kernel"], precision=jax.lax.Precision.HIGHEST)
    return product + params["bias"]
