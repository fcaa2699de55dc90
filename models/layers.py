"""Layers of the diffusion transformer (Peebles & Xie 2023, arXiv:2212.09748, section 3.2).

Parameters are float32 everywhere. `dtype` is the type of the large matrix products inside the
blocks, and of the attention. The parts that rounding harms most stay float32 for every `dtype`: the
residual stream, the statistics of layer normalisation, the softmax, and all of `conditioning.py`.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fewstep.latents.patches import depth_to_space, space_to_depth
from fewstep.models.network import Array

LAYER_NORM_EPSILON = 1e-6  # as published for DiT
MLP_RATIO = 4  # as published for DiT and, before it, for ViT
POSITION_MAX_PERIOD = 10000.0  # Vaswani et al. 2017, arXiv:1706.03762, section 3.5


def dense(features: int, name: str, *, dtype: str = "float32", zero: bool = False) -> nn.Dense:
    """An affine layer with zero bias and Xavier-uniform weights.

    zero: start the weights at zero, for adaLN-Zero.
    """
    weights = nn.initializers.zeros_init() if zero else nn.initializers.xavier_uniform()
    return nn.Dense(features, dtype=jnp.dtype(dtype), kernel_init=weights, name=name)


def normalize_tokens(x: Array) -> Array:
    """Layer normalisation over the last axis without scale or offset, in float32."""
    x = x.astype(jnp.float32)
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + LAYER_NORM_EPSILON)


def modulate(x: Array, shift: Array, scale: Array) -> Array:
    """x (1 + scale) + shift, of tokens x [B, N, D] and one shift and scale per example [B, D]."""
    return x * (1.0 + scale[:, None]) + shift[:, None]


def patchify(x: Array, patch_size: int) -> Array:
    """Images [B, H, W, C] -> tokens [B, N, P P C], row by row; a token has the order (P, P, C)."""
    patches = space_to_depth(x, patch_size)
    return patches.reshape(x.shape[0], -1, patches.shape[-1])


def unpatchify(tokens: Array, shape: tuple[int, ...], patch_size: int) -> Array:
    """The inverse of `patchify`: tokens [B, N, P P C] -> images [B, *shape]."""
    height, width, _ = shape
    patches = tokens.reshape(-1, height // patch_size, width // patch_size, tokens.shape[-1])
    return depth_to_space(patches, patch_size)


def position_table(rows: int, columns: int, width: int) -> np.ndarray:
    """Fixed 2-D sin-cos positions [rows columns, width], row by row, float32.

    With q = width / 4 and omega_k = 10000^(-k / q), the token in row i and column j has
    [sin(j omega), cos(j omega), sin(i omega), cos(i omega)]. The column comes first, as published.
    """
    quarter = width // 4
    frequencies = POSITION_MAX_PERIOD ** (-np.arange(quarter) / quarter)
    row, column = np.divmod(np.arange(rows * columns), columns)
    angles = [np.outer(index, frequencies) for index in (column, row)]
    parts = [function(angle) for angle in angles for function in (np.sin, np.cos)]
    return np.concatenate(parts, axis=1).astype(np.float32)


ATTENTIONS = ("xla", "cudnn", "chunked", "auto")
QUERIES = 16  # per chunk: keeps few attention weights in memory, and the loop short
# Compute capability of Ampere, the first GPUs that cuDNN fuses attention on.
FUSING_CAPABILITY = (8, 0)


def attention_implementation(name: str, dtype: str) -> str:
    """The implementation for a key of ATTENTIONS: "xla", "chunked" or "cudnn".

    "cudnn" means the fused kernels of NVIDIA's GPUs, and "auto" means "cudnn" if this machine and
    dtype allow it, else "xla". The fused kernels have no forward-mode derivative, which
    continuous-time consistency models need. Raises ValueError for "cudnn" if it is not possible.
    """
    device = jax.local_devices()[0]
    usable = has_fused_attention(device) and dtype == "bfloat16"
    if name == "cudnn" and not usable:
        raise ValueError(
            "attention=cudnn needs a GPU with CUDA and compute capability 8.0 or more (Ampere), "
            f"and dtype=bfloat16, not {device.device_kind} and {dtype}; use attention=auto, which "
            "takes xla elsewhere"
        )
    return "cudnn" if usable and name in ("cudnn", "auto") else name.replace("auto", "xla")


def has_fused_attention(device: jax.Device) -> bool:
    """Whether cuDNN has fused attention for a device: a GPU with CUDA, not ROCm, and not older."""
    if device.platform != "gpu" or "cuda" not in device.client.platform_version:
        return False
    return tuple(map(int, device.compute_capability.split("."))) >= FUSING_CAPABILITY


def chunked_attention(query: Array, key: Array, value: Array, scale: float) -> Array:
    """softmax(scale q k^T) v of [B, N, H, D], a few queries at a time.

    The backward pass computes the weights again. As in fused kernels, the [N, N] weights are never
    in memory together; unlike these, it works on any backend.
    """

    @jax.checkpoint
    def attend(row: Array) -> Array:
        attended = jax.nn.dot_product_attention(row[:, None], key, value, scale=scale)
        return attended[:, 0]

    return jnp.moveaxis(jax.lax.map(attend, jnp.moveaxis(query, 1, 0), batch_size=QUERIES), 0, 1)


class Attention(nn.Module):
    """Multi-head self-attention, softmax(q k^T / sqrt(d_head)) v, with biases: [B, N, D] -> same.

    implementation: "chunked", or an implementation of `jax.nn.dot_product_attention`.
    """

    heads: int
    dtype: str
    implementation: str = "xla"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, tokens, width = x.shape
        head = width // self.heads
        qkv = dense(3 * width, "qkv", dtype=self.dtype)(x)
        # Split before heads are apart: a training step of digits takes 0.95 of the time on a CPU.
        query, key, value = (
            part.reshape(batch, tokens, self.heads, head) for part in jnp.split(qkv, 3, axis=-1)
        )
        scale = head**-0.5
        if self.implementation == "chunked":
            mixed = chunked_attention(query, key, value, scale)
        else:
            mixed = jax.nn.dot_product_attention(
                query, key, value, scale=scale, implementation=self.implementation
            )
        return dense(width, "projection", dtype=self.dtype)(mixed.reshape(x.shape))


# The backward pass computes it again from its input, which it needs anyway, and keeps nothing else.
gelu = jax.checkpoint(partial(nn.gelu, approximate=True))


class Mlp(nn.Module):
    """Two affine layers with tanh-form GELU between: [B, N, D] -> [B, N, 4 D] -> [B, N, D]."""

    dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        hidden = dense(MLP_RATIO * x.shape[-1], "expand", dtype=self.dtype)(x)
        return dense(x.shape[-1], "contract", dtype=self.dtype)(gelu(hidden))


class DiTBlock(nn.Module):
    """A transformer block with adaLN conditioning: x [B, N, D], c [B, D] -> [B, N, D].

    x + gate_1 Attention(LN(x) (1 + scale_1) + shift_1), then the same with the MLP. The shifts,
    scales and gates are affine in SiLU(c), in the order (shift, scale, gate) for attention and then
    for the MLP. With adaln_zero they start at zero, so the block starts as the identity.
    """

    heads: int
    dtype: str
    attention: str
    dropout: float
    adaln_zero: bool = True

    @nn.compact
    def __call__(self, x: Array, c: Array) -> Array:
        modulation = dense(6 * x.shape[-1], "modulation", dtype=self.dtype, zero=self.adaln_zero)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = jnp.split(
            modulation(nn.silu(c)), 6, axis=-1
        )
        attention = Attention(self.heads, self.dtype, self.attention, name="attention")
        mlp = Mlp(self.dtype, name="mlp")
        change = attention(modulate(normalize_tokens(x), shift_1, scale_1))
        x = x + gate_1[:, None] * self.drop(change)
        change = mlp(modulate(normalize_tokens(x), shift_2, scale_2))
        return x + gate_2[:, None] * self.drop(change)

    def drop(self, x: Array) -> Array:
        return nn.Dropout(self.dropout, deterministic=False)(x)


class FinalLayer(nn.Module):
    """Modulated layer normalisation and a zero affine layer: [B, N, D], [B, D] -> [B, N, features].

    It is float32 for every type of the blocks, so that the output is not rounded to bfloat16.
    """

    features: int

    @nn.compact
    def __call__(self, x: Array, c: Array) -> Array:
        modulation = dense(2 * x.shape[-1], "modulation", zero=True)
        shift, scale = jnp.split(modulation(nn.silu(c)), 2, axis=-1)
        return dense(self.features, "output", zero=True)(
            modulate(normalize_tokens(x), shift, scale)
        )
