"""Halves and doubles images [B, H, W, C] by a filter along each axis, with zeros outside.

A filter has an even number of taps f_0 ... f_(2n-1): (1, 1), a box, or (1, 3, 3, 1). With the pad
p = n - 1, and along one axis,

    halved_i  = sum_k f_k x_(2i + k - p) / sum(f)
    doubled_j = 2 sum_i f_(j - 2i + p) x_i / sum(f)

The box averages, and repeats pixels.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array

AXES = (1, 2)


def halve(x: Array, taps: Sequence[int]) -> Array:
    """The halved images. Sides must be even."""
    pad = len(taps) // 2 - 1
    return halve_inner(jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0))), taps)


def halve_inner(x: Array, taps: Sequence[int]) -> Array:
    """The halved images of x that has a border of p pixels already."""
    for axis in AXES:
        reach = x.shape[axis] - len(taps) + 1
        parts = [tap * jax.lax.slice_in_dim(x, k, k + reach, 2, axis) for k, tap in enumerate(taps)]
        x = sum(parts) / sum(taps)
    return x


def double(x: Array, taps: Sequence[int]) -> Array:
    """The doubled images."""
    pad = len(taps) // 2 - 1
    for axis in AXES:
        size = x.shape[axis]
        border = [(pad, pad) if one == axis else (0, 0) for one in range(x.ndim)]
        wide = jnp.pad(x, border)

        def phase(remainder: int, wide: Array = wide, axis: int = axis, size: int = size) -> Array:
            """The pixels of every second place: of those with k = j + p (mod 2)."""
            first = (remainder + pad) % 2
            return sum(
                taps[k]
                * jax.lax.slice_in_dim(
                    wide, start := pad + (remainder + pad - k) // 2, start + size, axis=axis
                )
                for k in range(first, len(taps), 2)
            )

        stacked = jnp.stack([phase(0), phase(1)], axis=axis + 1) * (2 / sum(taps))
        x = stacked.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])
    return x


def keep(x: Array, taps: Sequence[int]) -> Array:
    """The images as they are."""
    return x


RESAMPLING: dict[str, Callable[[Array, Sequence[int]], Array]] = {
    "keep": keep,
    "halve": halve,
    "double": double,
}
