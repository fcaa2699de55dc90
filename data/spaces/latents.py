"""The space of latents: a network sees them, everything else sees pictures."""

from collections.abc import Callable

import numpy as np

from fewstep.data.spaces.space import Shape, Space


def latent_space(
    pixels: Space,
    shape: Shape,
    encode: Callable[[np.ndarray], np.ndarray],
    decode: Callable[[np.ndarray], np.ndarray],
    codec: str,
) -> Space:
    """The latents of pictures of the space `pixels`; samples finish as decoded pictures.

    shape: of one latent, as a network sees it. encode: uint8 pictures [N, H, W, C] -> the means of
    their latents. decode: latents [N, *shape] -> pictures in [-1, 1]. codec: its name, for
    protocols.
    """
    return pixels._replace(
        name="latents",
        shape=shape,
        start=encode,
        finish=lambda latents: pixels.finish(decode(latents)),
        rounding=f"decoded by {codec}, then {pixels.rounding}",
    )
