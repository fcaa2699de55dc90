"""A residual multilayer perceptron for points [B, D], conditioned like the DiT.

It flattens arrays of another shape, such as images, to points.

Each block computes h + W_2 SiLU((1 + scale) W_1 SiLU(h) + shift). scale and shift are affine in
SiLU(c), where c is the sum of the embedded times, label and guidance scale. The output layer starts
at zero, so the network starts at zero, as the DiT does, or at the score that it is given.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from fewstep.models.conditioning import Conditioning, LossWeight, Scalar, scalar_inputs
from fewstep.models.layers import dense
from fewstep.models.network import (
    DTYPES,
    HIDDEN,
    SOWN,
    Architecture,
    Array,
    Condition,
    Network,
    check_choice,
    check_integers,
    linen_network,
)
from fewstep.models.temporal import TemporalFourier

# With 4 the angles reach 4 rad over t in [0, 1]: enough to follow the velocity between point clouds
# in time. Derivatives in t stay about as large as the output; with 1000 they are far larger.
POINT_TIME_SCALE = 4.0

# A control that grows with x drives paths of many dimensions to infinity early in training.
OUTPUT_CLIP = 100.0


def mlp(
    shape: tuple[int, ...],
    num_classes: int = 0,
    *,
    width: int = 128,
    depth: int = 3,
    second_time: str = "none",
    guidance_input: bool = False,
    guidance_interval: bool = False,
    loss_weight: bool = False,
    time_scale: float = POINT_TIME_SCALE,
    dtype: str = "float32",
    trajectory: int = 1,
    score_input: bool = False,
    score_precision: float = 0.0,
    coordinate_width: int = 0,
    odd: bool = False,
) -> Network:
    """A residual perceptron on points [B, *shape].

    width: units of each block. depth: number of blocks.
    num_classes, second_time, guidance_input, guidance_interval, loss_weight, time_scale,
        trajectory: as for `models.dit.dit`.
    score_input: whether to add gate(t) condition["score"], if it is there, to the clipped output,
        with a gate for each dimension that is 1 at first (Vargas et al. 2023, eq. 21; Berner et al.
        2024).
    score_precision: 1 / variance of a mode, in units of the density's scale, by which that score
        fades as noise is added (`Model.with_score`); 0 fades linearly in time.
    coordinate_width: units of a small network for each coordinate, whose weights come from the
        blocks (`CoordinateNetworks`); 0 for none.
    odd: whether the output is odd in the point, f(-x) = -f(x), at twice the cost: for densities
        with rho(-x) = rho(x), of which a sampler then misses no half.
    dtype: of the matrix products in the blocks, "float32" or "bfloat16"; parameters, residual
        stream, conditioning and output are float32.

    Hidden features are the units [B, width] after each block, "block_0" and so on.
    Raises ValueError for a field out of its range.
    """
    check_integers(1, dimension=math.prod(shape), width=width, depth=depth, trajectory=trajectory)
    check_integers(0, num_classes=num_classes, coordinate_width=coordinate_width)
    check_choice("dtype", dtype, DTYPES)
    if not 0.0 <= score_precision < math.inf:
        raise ValueError(f"score_precision={score_precision!r} must be 0 or more, and finite")
    scalars = scalar_inputs(second_time, guidance_input, time_scale, guidance_interval)
    weight = LossWeight(time_scale) if loss_weight else None
    module = Perceptron(
        width, depth, num_classes, scalars, dtype, trajectory, score_input, coordinate_width, odd
    )
    hidden = tuple(f"block_{index}" for index in range(depth))
    built = linen_network(module, tuple(shape), weight=weight, hidden=hidden)
    return built._replace(
        second_time=second_time,
        guidance_input=guidance_input,
        guidance_interval=guidance_interval,
        trajectory=trajectory,
        score_input=score_input,
        score_precision=score_precision,
    )


# Largest width and depth in a debug run of a minute.
SMALL_WIDTH, SMALL_DEPTH = 64, 2


def shrink(fields: Mapping[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """The fields of a small width and depth."""
    return {
        "width": min(fields["width"], SMALL_WIDTH),
        "depth": min(fields["depth"], SMALL_DEPTH),
    }


def title(fields: Mapping[str, Any]) -> str:
    """The numbers of blocks and of their units, such as "mlp 3 x 128"."""
    return f"mlp {fields['depth']} x {fields['width']}"


MLP = Architecture(mlp, shrink, title)


class Perceptron(nn.Module):
    """The module behind `mlp`; its fields are the checked arguments of that function."""

    width: int
    depth: int
    num_classes: int
    scalars: Mapping[str, Scalar]
    dtype: str
    trajectory: int
    score_input: bool
    coordinate_width: int
    odd: bool

    @nn.compact
    def __call__(self, x: Array, t: Array, s: Array, condition: Condition) -> Array:
        c = Conditioning(self.width, self.num_classes, self.scalars, name="conditioning")(
            t, s, condition
        )
        points, score = x.reshape(x.shape[0], -1).astype(jnp.float32), None
        if self.score_input and "score" in condition:
            score = condition["score"].reshape(points.shape)
        if self.odd:  # both signs in one batch
            points, score = (a if a is None else jnp.concatenate([a, -a]) for a in (points, score))
            c = c if len(c) == 1 else jnp.concatenate([c, c])
        output, hidden = self.predict(points, score, c)
        self.sow(SOWN, HIDDEN, {name: h[: len(x)] for name, h in hidden.items()})
        if self.odd:
            plus, minus = jnp.split(output, 2)
            output = 0.5 * (plus - minus)
        return output.reshape(x.shape)

    def predict(
        self, points: Array, score: Array | None, c: Array
    ) -> tuple[Array, dict[str, Array]]:
        """(output [B, D], hidden features) at points [B, D] beside their score or None.

        c: [B, W] or [1, W].
        """
        h = dense(self.width, "input")(points)
        hidden = {}
        for index in range(self.depth):
            h = PointBlock(self.dtype, name=f"block_{index}")(h, c)
            if self.trajectory > 1:
                h = TemporalFourier(self.trajectory, name=f"temporal_{index}")(h)
            hidden[f"block_{index}"] = h
        output = dense(points.shape[-1], "output", zero=True)(nn.silu(h))
        if self.coordinate_width:
            entries = [points]
            if self.score_input:
                entries.append(jnp.zeros_like(points) if score is None else jnp.arcsinh(score))
            coordinates = CoordinateNetworks(self.coordinate_width, name="coordinates")
            output += coordinates(entries, nn.silu(h + c))
        if score is not None:
            output = jnp.clip(output, -OUTPUT_CLIP, OUTPUT_CLIP)
            gate = 1.0 + dense(points.shape[-1], "score_gate", zero=True)(nn.silu(c))
            output += gate * score
        return output, hidden


class PointBlock(nn.Module):
    """One residual block: h [B, width], c [B, width] -> [B, width]."""

    dtype: str

    @nn.compact
    def __call__(self, h: Array, c: Array) -> Array:
        width = h.shape[-1]
        modulation = dense(2 * width, "modulation", dtype=self.dtype)(nn.silu(c))
        shift, scale = jnp.split(modulation, 2, axis=-1)
        hidden = dense(width, "expand", dtype=self.dtype)(nn.silu(h))
        hidden = nn.silu(hidden * (1.0 + scale) + shift)
        return h + dense(width, "contract", dtype=self.dtype)(hidden)


class CoordinateNetworks(nn.Module):
    """A small network for each coordinate, all with the same weights, which depend on the row.

    With the row's units h [B, W] and entries e_j [B, D], such as the point and its score:

        out_i = sum_k v_k SiLU(c_k(h) + sum_j a_jk(h) e_ji),    a and c affine in h: [B, D]

    So what a coordinate needs does not have to pass through the W units.
    """

    width: int

    @nn.compact
    def __call__(self, entries: Sequence[Array], h: Array) -> Array:
        count = len(entries) + 1
        weights = dense(count * self.width, "weights")(h)[:, None]
        *slopes, hidden = jnp.split(weights, count, axis=-1)
        for entry, slope in zip(entries, slopes, strict=True):
            hidden += entry[..., None] * slope
        return dense(1, "output", zero=True)(nn.silu(hidden))[..., 0]
