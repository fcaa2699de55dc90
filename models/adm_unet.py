"""The U-Net ADM (Dhariwal & Nichol 2021, arXiv:2105.05233), as EDM trains it on ImageNet 64.

Attention has heads of 64 channels, and the vector of time and label scales and shifts the second
normalisation of each block. Four things differ from the code of EDM (Karras et al. 2022):

* Biases start at zero, and not at random.
* Labels of augmentations are no input. EDM samples with zeros there, which have no effect.
* A second time and a guidance scale can be inputs too, added to the vector that the blocks read.
* Levels of fewer than 64 channels attend in one head; there they do not attend.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from fewstep.models.conditioning import TIME_EMBEDDER, Scalar, scalar_inputs
from fewstep.models.network import Architecture, Array, Condition, Network, check_integers
from fewstep.models.song_unet import describe_widths, shrink
from fewstep.models.unet import (
    EMBEDDING_RATIO,
    Inputs,
    build_unet,
    embedded_scalars,
    label_rows,
    plan_unet,
    time_frequencies,
)
from fewstep.models.unet_blocks import Style, pointwise

kaiming = nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")

ADM = Style(
    taps=(1, 1),
    skip_scale=1.0,
    epsilon=1e-5,
    modulated=True,
    projected=False,
    head_width=64,
    attention_throughout=True,
    residual_input=False,
    weights=kaiming,
    last_weights=nn.initializers.zeros,
    attention_weights=kaiming,
)


def adm_unet(
    shape: tuple[int, ...],
    num_classes: int = 0,
    *,
    width: int = 192,
    multipliers: tuple[int, ...] = (1, 2, 3, 4),
    depth: int = 3,
    attention_sides: tuple[int, ...] = (32, 16, 8),
    second_time: str = "none",
    guidance_input: bool = False,
    guidance_interval: bool = False,
    loss_weight: bool = False,
    time_scale: float = 1.0,
    dropout: float = 0.0,
    dtype: str = "float32",
    remat: bool = False,
) -> Network:
    """A U-Net on images; by default EDM's for ImageNet at 64 x 64.

    The arguments are those of `models.song_unet.song_unet`. Hidden features are the images
    [B, h, w, D] after each block. Raises ValueError for a field out of its range.
    """
    check_integers(0, num_classes=num_classes)
    plan = plan_unet(shape, width, multipliers, depth, attention_sides, ADM)
    check_heads(width, multipliers)
    own = second_time, guidance_input, guidance_interval
    inputs = Inputs(*own, loss_weight, time_scale, dropout, dtype, remat)
    scalars = scalar_inputs(second_time, guidance_input, time_scale, guidance_interval)
    mapping = AdmMapping(width, EMBEDDING_RATIO * width, num_classes, scalars)
    return build_unet(shape, width * multipliers[0], plan, ADM, mapping, inputs)


def check_heads(width: int, multipliers: tuple[int, ...]) -> None:
    """Raises ValueError unless the channels of each level are whole heads of one size."""
    for channels in (width * multiplier for multiplier in multipliers):
        heads = max(1, channels // ADM.head_width)
        if channels % heads:
            raise ValueError(f"width={width}: {heads} heads do not divide {channels} channels.")


class AdmMapping(nn.Module):
    """SiLU(affine(SiLU(affine(time))) + label + other scalars): [B, width].

    The null class is the zero vector, as with EDM's labels of zeros.
    """

    features: int
    width: int
    num_classes: int
    scalars: Mapping[str, Scalar]

    @nn.compact
    def __call__(self, t: Array, s: Array, condition: Condition) -> Array:
        others = {**self.scalars}
        time = others.pop(TIME_EMBEDDER)
        half = self.features // 2
        frequencies = jnp.asarray(time_frequencies(half, half))
        angles = time(t, s, condition).astype(jnp.float32)[:, None] * frequencies
        c = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
        c = nn.silu(pointwise(self.width, "hidden", kaiming)(c))
        c = pointwise(self.width, "output", kaiming)(c)
        if self.num_classes:
            rows = nn.initializers.normal(1.0)
            table = self.param("label_table", rows, (self.num_classes, self.width))
            c += label_rows(table, condition, t)
        return nn.silu(c + embedded_scalars(self.width, others, t, s, condition))


def title(fields: Mapping[str, Any]) -> str:
    """Width and multipliers, such as "adm_unet 192 x 1-2-3-4"."""
    return f"adm_unet {describe_widths(fields)}"


ADM_UNET = Architecture(adm_unet, shrink, title)
