"""Classifier-free guidance (Ho & Salimans 2022), as a transform of a prediction function.

The convention is form A: D = D_null + w (D_condition - D_null). w = 1 is the conditional prediction
and w = 0 the unconditional one. Papers that write (1 + w') D_condition - w' D_null have w = 1 + w'.
The formula holds for every kind of prediction, because conversions are affine with an offset that
depends only on x.

A condition is a mapping of arrays with a leading batch axis; `label` -1 is the null class.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fewstep.diffusion.path import align

NULL_LABEL = -1

Condition = Mapping[str, Array]
# (x, t, s, condition) -> prediction like x
Predict = Callable[[Array, Array, Array, Condition], Array]


def null_condition(condition: Condition) -> Condition:
    """The condition with every label set to the null class."""
    return {**condition, "label": jnp.full_like(condition["label"], NULL_LABEL)}


def drop_labels(key: Array, condition: Condition, probability: float) -> Condition:
    """The condition with each label set to the null class with this probability, independently.

    Raises ValueError for a probability outside [0, 1].
    """
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"label_dropout={probability} must be in [0, 1]")
    label = condition["label"]
    dropped = jax.random.bernoulli(key, probability, label.shape)
    return {**condition, "label": jnp.where(dropped, NULL_LABEL, label)}


def draw_scale(key: Array, condition: Condition, guidance_range: Sequence[float]) -> Condition:
    """The condition with a guidance scale of each row, uniform in (low, high); itself for ()."""
    if not guidance_range:
        return condition
    low, high = guidance_range
    scale = jax.random.uniform(key, condition["label"].shape, minval=low, maxval=high)
    return {**condition, "guidance_scale": scale}


def extrapolate(conditional: Array, null: Array, scale: Array | float) -> Array:
    """D_null + w (D_condition - D_null). scale: w, a number or [B]."""
    scale = jnp.asarray(scale, conditional.dtype)
    return null + (align(scale, conditional) if scale.ndim else scale) * (conditional - null)


def guide(predict: Predict, scale: float | Array, channels: int | None = None) -> Predict:
    """The guided prediction function, which calls `predict` once with twice the rows.

    Returns `predict` itself at w = 1. scale: w, a number or [B]. channels: how many leading
    channels are guided; the others keep the conditional prediction. None guides all.
    """
    if isinstance(scale, (int, float)) and scale == 1.0:
        return predict

    def guided(x: Array, t: Array, s: Array, condition: Condition) -> Array:
        t, s = (jnp.broadcast_to(time, x.shape[:1]) for time in (t, s))
        both = jax.tree.map(
            lambda a, b: jnp.concatenate([a, b]),
            (x, t, s, condition),
            (x, t, s, null_condition(condition)),
        )
        # By reshape, since an export to ONNX can split no batch of unknown size.
        predicted = predict(*both)
        conditional, null = predicted.reshape(2, x.shape[0], *predicted.shape[1:])
        result = extrapolate(conditional, null, scale)
        if channels is None:
            return result
        return jnp.concatenate([result[..., :channels], conditional[..., channels:]], axis=-1)

    return guided


def guide_rows(predict: Predict, rows: np.ndarray, scale: float | Array) -> Predict:
    """`guide` for these rows alone, in one call with their null rows; `predict` itself at w = 1.

    rows: indices. scale: w, a number, or [B], one for each row of a batch.
    """
    if isinstance(scale, (int, float)) and scale == 1.0:
        return predict

    def guided(x: Array, t: Array, s: Array, condition: Condition) -> Array:
        inputs = (x, t, s, condition)
        null = jax.tree.map(lambda a: a[rows], (x, t, s, null_condition(condition)))
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), inputs, null)
        conditional, null = jnp.split(predict(*both), [x.shape[0]])
        own = jnp.broadcast_to(jnp.float32(scale), x.shape[:1])[rows]
        return conditional.at[rows].set(extrapolate(conditional[rows], null, own))

    return guided


def check_trained_scale(scale: float, trained: float, guidance_range: Sequence[float] = ()) -> None:
    """Raises ValueError for a guidance scale that a student was not trained at.

    guidance_range: (low, high) for a student conditioned on the scale; () for one trained only at
    the scale `trained`.
    """
    if guidance_range:
        low, high = guidance_range
        if not low <= scale <= high:
            raise ValueError(
                f"guidance scale {scale:g} is outside {low:g} to {high:g}, the range that this "
                "network was trained on (objective.guidance_range)"
            )
    elif scale != trained:
        raise ValueError(
            f"this student was trained at guidance scale {trained:g} only, not {scale:g}; for "
            "other scales use a method that takes the scale as an input (objective.guidance_range)"
        )
