"""The diffusion transformer, DiT (Peebles & Xie 2023, arXiv:2212.09748), with adaLN-Zero.

The network has patches, fixed positions, blocks modulated by the sum of the embedded conditions,
and a modulated final layer. Initialisation is the published one; the output starts at zero. Three
things differ from the publication:

* The output has the channels of x, without the variance channels.
* Time is in [0, 1]; `time_scale` multiplies it, 1000 for the published grid of integer times.
* A second time and a guidance scale can be inputs too. Their embedders exist only if they are used.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec

from fewstep.models.conditioning import Conditioning, LossWeight, Scalar, scalar_inputs
from fewstep.models.layers import (
    ATTENTIONS,
    DiTBlock,
    FinalLayer,
    attention_implementation,
    dense,
    patchify,
    position_table,
    unpatchify,
)
from fewstep.models.network import (
    DTYPES,
    HIDDEN,
    SOWN,
    STACKED,
    Architecture,
    Array,
    Condition,
    Network,
    Params,
    check_choice,
    check_integers,
    linen_network,
)
from fewstep.models.temporal import TemporalFourier


class DiTSize(NamedTuple):
    """Width of a token, number of blocks, and attention heads per block."""

    width: int
    depth: int
    heads: int


# S to XL: Peebles & Xie 2023, table 1. The smaller ones are for CPUs; their heads have 16 to 32
# channels. The first entry is the smallest.
SIZES: dict[str, DiTSize] = {
    "nano": DiTSize(64, 3, 4),
    "micro": DiTSize(96, 4, 4),
    "mini": DiTSize(128, 4, 4),
    "tiny": DiTSize(192, 6, 6),
    "S": DiTSize(384, 12, 6),
    "B": DiTSize(768, 12, 12),
    "L": DiTSize(1024, 24, 16),
    "XL": DiTSize(1152, 28, 16),
}


def dit(
    shape: tuple[int, ...],
    num_classes: int = 0,
    *,
    size: str = "B",
    patch_size: int = 2,
    second_time: str = "none",
    guidance_input: bool = False,
    guidance_interval: bool = False,
    loss_weight: bool = False,
    time_scale: float = 1000.0,
    adaln_zero: bool = True,
    dropout: float = 0.0,
    dtype: str = "float32",
    attention: str = "xla",
    remat: bool = False,
    scan: bool = False,
    trajectory: int = 1,
) -> Network:
    """A DiT on images.

    shape: (height, width, channels) of an image.
    num_classes: number of classes; 0 for a network that reads no label.
    size: a key of SIZES.
    patch_size: side of a patch in pixels, a divisor of height and width.
    second_time: the scalar that is embedded beside t: "none", "time" (s), "interval" (t - s) or
        "step_size" (-log2(t - s) with t - s at least 2^-12, not multiplied by time_scale).
    guidance_input: whether to embed condition["guidance_scale"], which has no effect at first.
    guidance_interval: whether to embed condition["guidance_start"] and condition["guidance_end"],
        the fractions of the path between which it is guided, which have no effect at first.
    loss_weight: whether to learn a log-weight of the loss, a function of t, beside the network.
    time_scale: multiplies t, s and t - s before the sinusoids. The fastest sinusoid turns by
        time_scale radians over [0, 1], and derivatives in t grow with it. Methods that
        differentiate the network in t need a small one.
    adaln_zero: whether the modulation of the blocks starts at zero, as published for DiT. The code
        of shortcut models (Frans et al. 2024) has Xavier-uniform weights there, which learn labels
        and step sizes sooner (docs/figures.md). The final layer starts at zero in both.
    dropout: rate in [0, 1) on the outputs of attention and MLP, in training.
    dtype: type of the matrix products in the blocks, "float32" or "bfloat16". Parameters, residual
        stream, layer normalisation, softmax, conditioning and output are float32.
    attention: "xla"; "cudnn" (fused kernels, on GPUs with dtype "bfloat16", without forward-mode
        derivatives); "chunked" (a few queries at a time: as little memory as fused kernels, on any
        device, but slower); or "auto" ("cudnn" if possible, else "xla").
    remat: whether to recompute the blocks in the backward pass, which keeps only their inputs in
        memory.
    scan: whether to loop over the blocks, so that one compilation serves all. Their parameters are
        then stacked, [depth, ...] in "blocks" instead of "block_0", "block_1", ...
    trajectory: rows that are the times of one trajectory, which temporal layers mix between the
        blocks (models/temporal.py); 1 for none. Needs scan=False.

    Hidden features are the tokens [B, N, D] before the blocks, "embedding", and after each block,
    "block_0" and so on, with scan too.
    Raises ValueError for a field out of its range.
    """
    check_integers(1, patch_size=patch_size, trajectory=trajectory)
    check_integers(0, num_classes=num_classes)
    check_choice("size", size, SIZES)
    check_choice("dtype", dtype, DTYPES)
    check_choice("attention", attention, ATTENTIONS)
    check_geometry(shape, patch_size, SIZES[size])
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout={dropout!r} must be in [0, 1).")
    if scan and trajectory > 1:
        raise ValueError("scan=True has no temporal layers between blocks; use scan=False.")
    module = Transformer(
        shape=tuple(shape),
        size=SIZES[size],
        patch_size=patch_size,
        num_classes=num_classes,
        scalars=scalar_inputs(second_time, guidance_input, time_scale, guidance_interval),
        adaln_zero=adaln_zero,
        dtype=dtype,
        attention=attention_implementation(attention, dtype),
        remat=remat,
        scan=scan,
        trajectory=trajectory,
    )
    training = module.clone(dropout=dropout) if dropout > 0.0 else None
    weight = LossWeight(time_scale) if loss_weight else None
    hidden = ("embedding", *(f"block_{index}" for index in range(SIZES[size].depth)))
    built = linen_network(module, module.shape, training=training, weight=weight, hidden=hidden)
    return built._replace(
        second_time=second_time,
        guidance_input=guidance_input,
        guidance_interval=guidance_interval,
        trajectory=trajectory,
        # Fused kernels need all tokens on a device, and JAX needs one mesh for a program with them.
        token_rows=shape[0] // patch_size if module.attention == "xla" else 1,
    )


def check_geometry(shape: tuple[int, ...], patch_size: int, size: DiTSize) -> None:
    """Raises ValueError unless patches tile the image, and heads and positions divide the width."""
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"a DiT takes images [height, width, channels], not {list(shape)}.")
    if shape[0] % patch_size or shape[1] % patch_size:
        raise ValueError(
            f"patch_size={patch_size} does not divide an image of {shape[0]} x {shape[1]}; choose "
            "a divisor."
        )
    if size.width % size.heads:
        raise ValueError(f"size: {size.heads} heads do not divide the width {size.width}.")
    if size.width % 4:
        raise ValueError(f"size: the 2-D positions need a width divisible by 4, not {size.width}.")


def shrink(fields: Mapping[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """The fields of the smallest size, with patches that make at most 8 x 8 tokens."""
    sides, patch = shape[:2], fields["patch_size"]
    fitting = [
        p
        for p in range(patch, min(sides) + 1)
        if all(side % p == 0 and side // p <= 8 for side in sides)
    ]
    return {"size": next(iter(SIZES)), "patch_size": min(fitting, default=math.gcd(*sides))}


def title(fields: Mapping[str, Any]) -> str:
    """The published name of size and patch size, such as "dit B/2"."""
    return f"dit {fields['size']}/{fields['patch_size']}"


DIT = Architecture(dit, shrink, title, {name: size.width for name, size in SIZES.items()})


class Transformer(nn.Module):
    """The module behind `dit`; its fields are the checked arguments of that function."""

    shape: tuple[int, int, int]
    size: DiTSize
    patch_size: int
    num_classes: int
    scalars: Mapping[str, Scalar]
    adaln_zero: bool
    dtype: str
    attention: str
    remat: bool
    scan: bool
    trajectory: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Array, t: Array, s: Array, condition: Condition) -> Array:
        width, depth, heads = self.size
        rows, columns = (side // self.patch_size for side in self.shape[:2])
        patches = patchify(x.astype(jnp.float32), self.patch_size)
        tokens = dense(width, "patch_embedding")(patches) + position_table(rows, columns, width)
        c = Conditioning(width, self.num_classes, self.scalars, name="conditioning")(
            t, s, condition
        )
        # A loop already keeps XLA from merging the recomputation with the forward pass.
        kind = nn.remat(DiTBlock, prevent_cse=not self.scan) if self.remat else DiTBlock
        if self.scan and not self.is_initializing():
            kind = nn.map_variables(kind, "params", trans_in_fn=gather_params)
        block = partial(kind, heads, self.dtype, self.attention, self.dropout, self.adaln_zero)
        hidden = {"embedding": tokens}
        if self.scan:
            keep = self.is_mutable_collection(SOWN)
            tokens, outputs = scan_blocks(block(name=STACKED), depth, tokens, c, keep)
            hidden |= {f"block_{index}": outputs[index] for index in range(depth)} if keep else {}
        else:
            for index in range(depth):
                tokens = block(name=f"block_{index}")(tokens, c)
                if self.trajectory > 1:
                    tokens = TemporalFourier(self.trajectory, name=f"temporal_{index}")(tokens)
                hidden[f"block_{index}"] = tokens
        self.sow(SOWN, HIDDEN, hidden)
        tokens = FinalLayer(patches.shape[-1], name="final")(tokens, c)
        return unpatchify(tokens, self.shape, self.patch_size)


def scan_blocks(
    block: nn.Module, depth: int, tokens: Array, c: Array, keep: bool
) -> tuple[Array, Array | None]:
    """Applies `depth` blocks in a loop, with stacked parameters.

    Each block has its own initial parameters and dropout masks. Returns the tokens after the last
    block and, if `keep`, the tokens after each block, [depth, B, N, D].
    """

    def layer(block: nn.Module, tokens: Array, c: Array) -> tuple[Array, Array | None]:
        tokens = block(spread_rows(tokens), c)
        return tokens, tokens if keep else None

    layers = nn.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=nn.broadcast,
        length=depth,
    )
    return layers(block, tokens, c)


def gather_params(params: Params) -> Params:
    """Gathers a layer's parameters on every device of the current mesh, if there is one.

    In a loop XLA would otherwise leave them split and exchange activations, which are larger.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return params
    return jax.lax.with_sharding_constraint(params, PartitionSpec())


def spread_rows(x: Array) -> Array:
    """Spreads rows over all devices of the current mesh, if there is one that divides them."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[0] % mesh.size:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(mesh.axis_names))
