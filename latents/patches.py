"""Square patches of images as channels, and back; an exact rearrangement."""

import jax

Array = jax.Array


def space_to_depth(x: Array, side: int) -> Array:
    """[B, H, W, C] -> [B, H / side, W / side, side side C]; a patch has the order (row, column, C).

    `side` divides H and W.
    """
    batch, height, width, channels = x.shape
    rows, columns = height // side, width // side
    x = x.reshape(batch, rows, side, columns, side, channels)
    return x.swapaxes(2, 3).reshape(batch, rows, columns, side**2 * channels)


def depth_to_space(x: Array, side: int) -> Array:
    """The inverse of `space_to_depth`: [B, h, w, side side C] -> [B, h side, w side, C]."""
    batch, rows, columns, depth = x.shape
    channels = depth // side**2
    x = x.reshape(batch, rows, columns, side, side, channels)
    return x.swapaxes(2, 3).reshape(batch, rows * side, columns * side, channels)
