"""What a network is told beside x: times, class and guidance scale, summed into one vector [B, D].

The sum is time + second time + label + guidance. Each scalar passes through sinusoids and an MLP of
its own (Peebles & Xie 2023, arXiv:2212.09748); each class has a row of a table. Everything here is
float32, because bfloat16 cannot tell 1000 t = 500 from 501.
"""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fewstep.models.network import Array, Condition, check_choice

FREQUENCY_FEATURES = 256  # as published for DiT
TIME_MAX_PERIOD = 10000.0  # as published for DiT
EMBEDDING_STD = 0.02  # of the label table and the weights of the time MLP, as published for DiT
GUIDANCE_EMBEDDER = "guidance_embedder"
MIN_GAP = 2.0**-12  # finite level at s = t; below the 2^-7 of Frans et al. 2024

Scalar = Callable[[Array, Array, Condition], Array]


def sinusoid(value: Array) -> Array:
    """[B] -> [B, 256]: [cos(v f), sin(v f)] with f_k = 10000^(-k / 128), k = 0 ... 127."""
    half = FREQUENCY_FEATURES // 2
    # From float64: an error of one float32 rounding in f_k is one of 1e-4 in the angle at v = 1000.
    frequencies = (TIME_MAX_PERIOD ** (-np.arange(half) / half)).astype(np.float32)
    angles = value.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def step_level(t: Array, s: Array) -> Array:
    """-log2(t - s), the level of a step: 0 for the whole interval, one more with each halving.

    Shortcut models (Frans et al. 2024, arXiv:2410.12557) embed it. t - s is floored at 2^-12.
    """
    return -jnp.log2(jnp.maximum(t - s, MIN_GAP))


def scalar_inputs(second_time: str, guidance_input: bool, time_scale: float) -> dict[str, Scalar]:
    """The scalars that a network embeds, by the name of their embedder.

    second_time: "none"; "time" embeds s; "interval" embeds t - s; both multiplied by time_scale
        like t; "step_size" embeds the level -log2(t - s), as it is.
    guidance_input: whether to embed condition["guidance_scale"], as it is.
    Raises ValueError for another second_time, and for a time_scale that is not positive.
    """
    second_times: Mapping[str, dict[str, Scalar]] = {
        "none": {},
        "time": {"second_time_embedder": lambda t, s, condition: time_scale * s},
        "interval": {"second_time_embedder": lambda t, s, condition: time_scale * (t - s)},
        "step_size": {"second_time_embedder": lambda t, s, condition: step_level(t, s)},
    }
    check_choice("second_time", second_time, second_times)
    if not 0.0 < time_scale < np.inf:
        raise ValueError(f"time_scale={time_scale!r} must be positive and finite.")
    scalars: dict[str, Scalar] = {"time_embedder": lambda t, s, condition: time_scale * t}
    scalars |= second_times[second_time]
    if guidance_input:
        scalars[GUIDANCE_EMBEDDER] = lambda t, s, condition: read_condition(
            condition, "guidance_scale", t, jnp.floating
        )
    return scalars


def read_condition(condition: Condition, name: str, t: Array, kind: type) -> Array:
    """condition[name], or ValueError if it is missing, not shaped like t, or not of the kind."""
    if name not in condition:
        raise ValueError(f"condition has no {name!r}, which this network reads; add it, [B].")
    value = condition[name]
    if jnp.shape(value) != jnp.shape(t):
        raise ValueError(
            f"condition[{name!r}] has shape {jnp.shape(value)}; "
            f"give one value per example, {jnp.shape(t)}."
        )
    if not jnp.issubdtype(jnp.result_type(value), kind):
        raise ValueError(
            f"condition[{name!r}] is {jnp.result_type(value)}; it must be {kind.__name__}."
        )
    return jnp.asarray(value)


class ScalarEmbedder(nn.Module):
    """Sinusoids and an MLP with SiLU: [B] -> [B, width]; zero: starts at zero."""

    width: int
    zero: bool = False

    @nn.compact
    def __call__(self, value: Array) -> Array:
        weights = nn.initializers.normal(EMBEDDING_STD)
        hidden = nn.Dense(self.width, kernel_init=weights, name="hidden")(sinusoid(value))
        weights = nn.initializers.zeros if self.zero else weights
        return nn.Dense(self.width, kernel_init=weights, name="output")(nn.silu(hidden))


class LossWeight(nn.Module):
    """A scalar function of time, linear in its sinusoids, zero at first: [B] -> [B]."""

    time_scale: float

    @nn.compact
    def __call__(self, t: Array) -> Array:
        features = sinusoid(self.time_scale * t)
        return nn.Dense(1, kernel_init=nn.initializers.zeros, name="output")(features)[:, 0]


class Conditioning(nn.Module):
    """The sum of the embeddings of the scalars and of the label: [B, width], float32.

    The table has num_classes + 1 rows, the last one for the null class, which label -1 selects by
    counting from the end. A label past the table gives NaN, which stops a training run; a network
    without classes reads no label.
    """

    width: int
    num_classes: int
    scalars: Mapping[str, Scalar]

    @nn.compact
    def __call__(self, t: Array, s: Array, condition: Condition) -> Array:
        total = jnp.zeros((t.shape[0], self.width))
        for name, scalar in self.scalars.items():
            # A guidance scale starts without effect, so that a network which reads it starts as its
            # teacher, which does not.
            embedder = ScalarEmbedder(self.width, zero=name == GUIDANCE_EMBEDDER, name=name)
            total += embedder(scalar(t, s, condition))
        if self.num_classes == 0:
            return total
        table = self.param(
            "label_table",
            nn.initializers.normal(EMBEDDING_STD),
            (self.num_classes + 1, self.width),
        )
        label = read_condition(condition, "label", t, jnp.integer)
        return total + jnp.asarray(table).at[label].get(mode="fill", fill_value=jnp.nan)
