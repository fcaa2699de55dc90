"""The U-Nets DDPM++ and NCSN++ (Song et al. 2021, arXiv:2011.13456), as EDM trains them.

EDM (Karras et al. 2022, arXiv:2206.00364) uses them for CIFAR-10, FFHQ and AFHQv2. Initialisation
is that of EDM. Two things differ from its code:

* Labels of augmentations are no input. EDM samples with zeros there, which have no effect.
* A second time and a guidance scale can be inputs too. Their embedders exist only if they are used,
  and are added to the vector that the blocks read.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fewstep.models.conditioning import TIME_EMBEDDER, Scalar, scalar_inputs
from fewstep.models.network import (
    Architecture,
    Array,
    Condition,
    Network,
    check_choice,
    check_integers,
)
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

FOURIER_SCALE = 16.0  # deviation of NCSN++'s random frequencies, Song et al. 2021
FREQUENCIES = "frequencies"  # name of the parameters that have no gradient

xavier = nn.initializers.variance_scaling

DDPMPP = Style(
    taps=(1, 1),
    skip_scale=0.5**0.5,
    epsilon=1e-6,
    modulated=False,
    projected=True,
    head_width=0,
    attention_throughout=False,
    residual_input=False,
    weights=xavier(1.0, "fan_avg", "uniform"),
    last_weights=xavier(1e-10, "fan_avg", "uniform"),  # weights times 1e-5
    attention_weights=xavier(0.2, "fan_avg", "uniform"),
)
VARIANTS: dict[str, Style] = {
    "ddpmpp": DDPMPP,
    "ncsnpp": DDPMPP._replace(taps=(1, 3, 3, 1), residual_input=True),
}


def song_unet(
    shape: tuple[int, ...],
    num_classes: int = 0,
    *,
    variant: str = "ddpmpp",
    width: int = 128,
    multipliers: tuple[int, ...] = (2, 2, 2),
    depth: int = 4,
    attention_sides: tuple[int, ...] = (16,),
    second_time: str = "none",
    guidance_input: bool = False,
    guidance_interval: bool = False,
    loss_weight: bool = False,
    time_scale: float = 1.0,
    dropout: float = 0.0,
    dtype: str = "float32",
    remat: bool = False,
) -> Network:
    """A U-Net on images; by default EDM's for CIFAR-10. For 64 x 64: multipliers=(1, 2, 2, 2).

    shape, num_classes, second_time, guidance_input, guidance_interval, loss_weight: as for
        `models.dit.dit`.
    variant: a key of VARIANTS. "ncsnpp" has random frequencies of time, smoother resampling, and
        adds the halved image to each level. The frequencies are parameters without a gradient,
        which optimizers leave as they are (training/optimizer.py).
    width: channels of the first convolution, a multiple of 32 (of 4 if no layer has more than 128).
    multipliers: channels of each level over width; sides halve between levels.
    depth: residual blocks of a level; the decoder has one more.
    attention_sides: heights of the levels with self-attention. The middle always has it.
    time_scale: multiplies t, s and t - s. EDM's clock log(sigma) / 4 has 1.
    dropout: rate in [0, 1) inside the residual blocks, in training.
    dtype: of the convolutions and attention in the blocks, "float32" or "bfloat16". Parameters,
        sums, normalisations, conditioning and output are float32.
    remat: whether to recompute the blocks in the backward pass.

    Hidden features are the images [B, h, w, D] after each block. Raises ValueError for a field out
    of its range.
    """
    check_integers(0, num_classes=num_classes)
    check_choice("variant", variant, VARIANTS)
    style = VARIANTS[variant]
    plan = plan_unet(shape, width, multipliers, depth, attention_sides, style)
    own = second_time, guidance_input, guidance_interval
    inputs = Inputs(*own, loss_weight, time_scale, dropout, dtype, remat)
    scalars = scalar_inputs(second_time, guidance_input, time_scale, guidance_interval)
    fourier = variant == "ncsnpp"
    features = 2 * width if fourier else width
    mapping = SongMapping(features, EMBEDDING_RATIO * width, num_classes, scalars, fourier, style)
    return build_unet(shape, width, plan, style, mapping, inputs)


class SongMapping(nn.Module):
    """SiLU(affine(SiLU(affine(time + label))) + other scalars): [B, width].

    The null class has no row: the label's part is then its bias alone, as with EDM's labels of
    zeros.
    """

    features: int
    width: int
    num_classes: int
    scalars: Mapping[str, Scalar]
    fourier: bool
    style: Style

    @nn.compact
    def __call__(self, t: Array, s: Array, condition: Condition) -> Array:
        others = {**self.scalars}
        time = others.pop(TIME_EMBEDDER)
        weights = self.style.weights
        angles = time(t, s, condition).astype(jnp.float32)[:, None] * self.frequencies()
        c = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        if self.num_classes:
            table = self.param("label_table", weights, (self.num_classes, self.features))
            bias = self.param("label_bias", nn.initializers.zeros, (self.features,))
            c += label_rows(table, condition, t) * self.num_classes**0.5 + bias
        c = nn.silu(pointwise(self.width, "hidden", weights)(c))
        c = pointwise(self.width, "output", weights)(c)
        return nn.silu(c + embedded_scalars(self.width, others, t, s, condition))

    def frequencies(self) -> Array:
        """Fixed ones with periods up to 2 pi 10000, or random ones, which a file keeps."""
        half = self.features // 2
        if not self.fourier:
            return jnp.asarray(time_frequencies(half, half - 1))
        drawn = self.param(FREQUENCIES, nn.initializers.normal(FOURIER_SCALE), (half,))
        return 2.0 * np.float32(np.pi) * jax.lax.stop_gradient(drawn)


# Width and most levels of a debug run of a minute.
SMALL_WIDTH, FEW_LEVELS = 16, 2


def shrink(fields: Mapping[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """The fields of two narrow levels of one block each.

    In float32, because a CPU takes half an hour to compile the gradient of bfloat16 convolutions.
    """
    return {
        "width": min(fields["width"], SMALL_WIDTH),
        "depth": 1,
        "multipliers": (1,) * min(len(fields["multipliers"]), FEW_LEVELS),
        "dtype": "float32",
    }


def title(fields: Mapping[str, Any]) -> str:
    """The variant with width and multipliers, such as "song_unet ddpmpp 128 x 2-2-2"."""
    return f"song_unet {fields['variant']} {describe_widths(fields)}"


def describe_widths(fields: Mapping[str, Any]) -> str:
    """Width and multipliers, such as "128 x 2-2-2"."""
    return f"{fields['width']} x {'-'.join(map(str, fields['multipliers']))}"


SONG_UNET = Architecture(song_unet, shrink, title)
