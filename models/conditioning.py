"""Embeds the inputs beside x, times, class and guidance scale, into one vector [B, D].

The vector is the sum of the embeddings of time, second time, label and guidance scale. Each scalar
passes through sinusoids and an MLP of its own (Peebles & Xie 2023, arXiv:2212.09748), and each
class has a row of a table. All of this is float32, because bfloat16 cannot tell 1000 t = 500 from
501.
"""

from collections.abc import Callable, Iterable, Mapping

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fewstep.models.network import Array, Condition, Params, check_choice

FREQUENCY_FEATURES = 256  # as published for DiT
TIME_MAX_PERIOD = 10000.0  # as published for DiT
EMBEDDING_STD = 0.02  # of the label table and the weights of the time MLP, as published for DiT
TIME_EMBEDDER, SECOND_TIME = "time_embedder", "second_time_embedder"
GUIDANCE_EMBEDDER = "guidance_embedder"
# Embedders of the ends of the guidance interval, and the entries of the condition that they read.
INTERVAL_EMBEDDERS = {
    "guidance_start_embedder": "guidance_start",
    "guidance_end_embedder": "guidance_end",
}
# Their outputs are zero at first.
ZERO_EMBEDDERS = (GUIDANCE_EMBEDDER, *INTERVAL_EMBEDDERS)
MIN_GAP = 2.0**-12  # keeps the level finite at s = t; below the 2^-7 of Frans et al. 2024

Scalar = Callable[[Array, Array, Condition], Array]


def sinusoid(value: Array) -> Array:
    """[B] -> [B, 256]: [cos(v f), sin(v f)] with f_k = 10000^(-k / 128), k = 0 ... 127."""
    angles = value.astype(jnp.float32)[:, None] * frequencies()
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def frequencies() -> np.ndarray:
    """f_k = 10000^(-k / 128), k = 0 ... 127, float32."""
    half = FREQUENCY_FEATURES // 2
    # In float64: one float32 rounding of f_k changes the angle at v = 1000 by 1e-4.
    return (TIME_MAX_PERIOD ** (-np.arange(half) / half)).astype(np.float32)


def step_level(t: Array, s: Array) -> Array:
    """-log2(t - s), the level of a step: 0 for the whole interval, plus 1 for each halving.

    Shortcut models (Frans et al. 2024, arXiv:2410.12557) embed it. t - s is at least 2^-12.
    """
    return -jnp.log2(jnp.maximum(t - s, MIN_GAP))


def scalar_inputs(
    second_time: str, guidance_input: bool, time_scale: float, guidance_interval: bool = False
) -> dict[str, Scalar]:
    """The scalars that a network embeds, by the names of their embedders.

    second_time: "none"; "time", which embeds s; "interval", which embeds t - s; or "step_size",
        which embeds the level -log2(t - s).
    guidance_input: whether to embed condition["guidance_scale"].
    time_scale: multiplies t, s, t - s and the ends of the guidance interval, but not the level and
        the guidance scale.
    guidance_interval: whether to embed condition["guidance_start"] and condition["guidance_end"].

    Raises ValueError for another second_time, and unless time_scale is positive and finite.
    """
    second_times: Mapping[str, dict[str, Scalar]] = {
        "none": {},
        "time": {SECOND_TIME: lambda t, s, condition: time_scale * s},
        "interval": {SECOND_TIME: lambda t, s, condition: time_scale * (t - s)},
        "step_size": {SECOND_TIME: lambda t, s, condition: step_level(t, s)},
    }
    check_choice("second_time", second_time, second_times)
    if not 0.0 < time_scale < np.inf:
        raise ValueError(f"time_scale={time_scale!r} must be positive and finite.")
    scalars: dict[str, Scalar] = {TIME_EMBEDDER: lambda t, s, condition: time_scale * t}
    scalars |= second_times[second_time]
    if guidance_input:
        scalars[GUIDANCE_EMBEDDER] = lambda t, s, condition: read_condition(
            condition, "guidance_scale", t, jnp.floating
        )
    if guidance_interval:
        for name, entry in INTERVAL_EMBEDDERS.items():
            scalars[name] = lambda t, s, condition, entry=entry: (
                time_scale * read_condition(condition, entry, t, jnp.floating)
            )
    return scalars


def silent_outputs(paths: Iterable[str]) -> list[str]:
    """Those of new parameters, by path, that are zero if a new input has no effect at first.

    They are the last weights of an embedder, whose bias starts at zero.
    """
    ends = [f"{name}/output/kernel" for name in (SECOND_TIME, *ZERO_EMBEDDERS)]
    return [path for path in paths if path.endswith(tuple(ends))]


def fix_guidance(params: Params, scale: float) -> Params:
    """Parameters of the network without the input of the guidance scale that computes this scale.

    The embedding of one scale is a constant, which the bias of the time's embedding takes. Returns
    parameters without this input as they are.
    """
    if GUIDANCE_EMBEDDER not in params:
        return {
            name: fix_guidance(part, scale) if isinstance(part, Mapping) else part
            for name, part in params.items()
        }
    parts = {name: part for name, part in params.items() if name != GUIDANCE_EMBEDDER}
    own = params[GUIDANCE_EMBEDDER]
    width = own["output"]["bias"].shape[0]
    constant = ScalarEmbedder(width).apply({"params": own}, jnp.full((1,), scale, jnp.float32))[0]
    # The time's embedder, or in U-Nets the mapping itself, ends in a layer of this name.
    time = parts.get(TIME_EMBEDDER, parts)
    time = {**time, "output": {**time["output"], "bias": time["output"]["bias"] + constant}}
    return {**parts, TIME_EMBEDDER: time} if TIME_EMBEDDER in parts else time


def read_condition(condition: Condition, name: str, t: Array, kind: type) -> Array:
    """condition[name]: [B]. Raises ValueError if it is missing, or of another shape or type.

    t: [B], or [1] for rows that share their time.
    """
    if name not in condition:
        raise ValueError(f"condition has no {name!r}, which this network reads; add it, [B].")
    value = condition[name]
    if np.ndim(value) != 1 or np.size(t) not in (1, np.size(value)):
        raise ValueError(
            f"condition[{name!r}] has shape {np.shape(value)}; "
            f"give one value per example, {np.shape(t)}."
        )
    if not jnp.issubdtype(jnp.result_type(value), kind):
        raise ValueError(
            f"condition[{name!r}] is {jnp.result_type(value)}; it must be {kind.__name__}."
        )
    return jnp.asarray(value)


class ScalarEmbedder(nn.Module):
    """Sinusoids and an MLP with SiLU: [B] -> [B, width].

    zero: whether its output starts at zero.
    """

    width: int
    zero: bool = False

    @nn.compact
    def __call__(self, value: Array) -> Array:
        weights = nn.initializers.normal(EMBEDDING_STD)
        hidden = nn.Dense(self.width, kernel_init=weights, name="hidden")(sinusoid(value))
        weights = nn.initializers.zeros if self.zero else weights
        return nn.Dense(self.width, kernel_init=weights, name="output")(nn.silu(hidden))


class LossWeight(nn.Module):
    """A scalar function of time, linear in the sinusoids of time: [B] -> [B]. It starts at zero."""

    time_scale: float

    @nn.compact
    def __call__(self, t: Array) -> Array:
        features = sinusoid(self.time_scale * t)
        return nn.Dense(1, kernel_init=nn.initializers.zeros, name="output")(features)[:, 0]


class Conditioning(nn.Module):
    """The sum of the embeddings of the scalars and of the label: [B, width], float32.

    The label table has num_classes + 1 rows. The last row is the null class, which label -1 selects
    because it counts from the end. A label past the table gives NaN, which stops a training run. A
    network without classes reads no label.
    """

    width: int
    num_classes: int
    scalars: Mapping[str, Scalar]

    @nn.compact
    def __call__(self, t: Array, s: Array, condition: Condition) -> Array:
        total = jnp.zeros((t.shape[0], self.width))
        for name, scalar in self.scalars.items():
            # Guidance has no effect at first. A network that reads it can then start as a copy of
            # a teacher that does not.
            embedder = ScalarEmbedder(self.width, zero=name in ZERO_EMBEDDERS, name=name)
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
