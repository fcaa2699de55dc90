"""A head that makes outputs of the shape of an example from a network's hidden features.

The features of a position, a token or a pixel, are normalised and go through one hidden layer to
the pixels of its patch; units of a perceptron go to the whole point. The last layer starts at zero.
"""

import math
from collections.abc import Mapping, Sequence

from flax import linen as nn

from fewstep.models.layers import dense, normalize_tokens, unpatchify
from fewstep.models.network import Array, check_integers


class OutputHead(nn.Module):
    """{name: features [B, ..., D]} of one name -> `count` outputs, [B, *shape[:-1], count C].

    shape: of an example, (..., C). width: units of the hidden layer. Features are units [B, D],
    tokens [B, N, D] row by row, or images [B, H, W, D], whose sides divide those of the example.
    """

    shape: tuple[int, ...]
    count: int
    width: int

    @nn.compact
    def __call__(self, hidden: Mapping[str, Array]) -> Array:
        (h,) = hidden.values()
        h = h.reshape(h.shape[0], -1, h.shape[-1])  # [B, positions, D]
        patch = self.count * math.prod(self.shape) // h.shape[1]
        h = nn.silu(dense(self.width, "hidden")(normalize_tokens(h)))
        h = dense(patch, "output", zero=True)(h)
        shape, positions = (*self.shape[:-1], self.count * self.shape[-1]), h.shape[1]
        if positions == 1:
            return h.reshape(-1, *shape)
        return unpatchify(h, shape, math.isqrt(shape[0] * shape[1] // positions))


def output_head(shape: Sequence[int], count: int, width: int) -> OutputHead:
    """The module; raises ValueError unless `width` is a positive integer."""
    check_integers(1, head_width=width)
    return OutputHead(tuple(shape), count, width)
