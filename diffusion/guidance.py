"""Classifier-free guidance (Ho & Salimans 2022), as a transform of a prediction function.

The convention is form A throughout: D = D_null + w (D_condition - D_null), so w = 1 is the plain
conditional prediction and w = 0 the unconditional one. Papers that write (1 + w') D_condition -
w' D_null have w = 1 + w'. The formula is the same for every kind of prediction, since conversions
are affine with an offset that depends on x alone.

A condition is a mapping of arrays with a leading batch axis; `label` -1 is the null class.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import Array

from fewstep.diffusion.path import align

NULL_LABEL = -1

Condition = Mapping[str, Array]
# (x, t, s, condition) -> prediction like x
Predict = Callable[[Array, Array, Array, Condition], Array]


def null_condition(condition: Condition) -> Condition:
    """The condition with every label replaced by the null class."""
    return {**condition, "label": jnp.full_like(condition["label"], NULL_LABEL)}


def drop_labels(key: Array, condition: Condition, probability: float) -> Condition:
    """The condition with each label independently replaced by the null class."""
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"label_dropout={probability} is not a probability")
    label = condition["label"]
    dropped = jax.random.bernoulli(key, probability, label.shape)
    return {**condition, "label": jnp.where(dropped, NULL_LABEL, label)}


def extrapolate(conditional: Array, null: Array, scale: Array | float) -> Array:
    """D_null + w (D_condition - D_null). scale: a number or [B]."""
    scale = jnp.asarray(scale, conditional.dtype)
    return null + (align(scale, conditional) if scale.ndim else scale) * (conditional - null)


def guide(predict: Predict, scale: float | Array) -> Predict:
    """The guided prediction function, at twice the rows in one call; `predict` itself at w = 1.

    scale: w, a number or one per row, [B].
    """
    if isinstance(scale, (int, float)) and scale == 1.0:
        return predict

    def guided(x: Array, t: Array, s: Array, condition: Condition) -> Array:
        both = jax.tree.map(
            lambda a, b: jnp.concatenate([a, b]),
            (x, t, s, condition),
            (x, t, s, null_condition(condition)),
        )
        conditional, null = jnp.split(predict(*both), 2)
        return extrapolate(conditional, null, scale)

    return guided


def check_trained_scale(scale: float, trained: float, guidance_range: Sequence[float] = ()) -> None:
    """Raises ValueError for a guidance scale that a student does not know.

    guidance_range: (low, high) of the scales that it is told, or () if it learned `trained` alone.
    """
    if guidance_range:
        low, high = guidance_range
        if not low <= scale <= high:
            raise ValueError(
                f"guidance scale {scale:g} is outside the range {low:g} to {high:g} that this "
                "network is told in training (objective.guidance_range)"
            )
    elif scale != trained:
        raise ValueError(
            f"this student knows guidance scale {trained:g} alone, not {scale:g}; a student of "
            "consistency_distillation can be told the scale (objective.guidance_range)"
        )
