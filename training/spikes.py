"""Skips updates whose loss or gradient jumps (the skip-step optimizer of OLMo 2, 2025).

An update is a spike if its loss, or the global norm of its gradient, lies more than `factor` sample
standard deviations above the mean of the last `window` ones. The window includes spikes, so a
lasting change of level is a spike only for a while. No update is a spike before the window is full.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array


class SpikeState(NamedTuple):
    """inner: state of the wrapped transformation. losses, norms: the last ones, [window].

    seen: updates so far. skipped: spikes among them.
    """

    inner: optax.OptState
    losses: Array
    norms: Array
    seen: Array
    skipped: Array


def skip_spikes(
    inner: optax.GradientTransformation, factor: float, window: int
) -> optax.GradientTransformationExtraArgs:
    """`inner`, but with a zero update and an unchanged state at a spike.

    Its `update` takes the loss as `value`.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> SpikeState:
        past = jnp.zeros((window,), jnp.float32)
        return SpikeState(inner.init(params), past, past.copy(), jnp.int32(0), jnp.int32(0))

    def update(
        gradient: optax.Updates,
        state: SpikeState,
        params: optax.Params | None = None,
        *,
        value: Array,
        **extra: Any,
    ) -> tuple[optax.Updates, SpikeState]:
        norm, oldest = optax.tree.norm(gradient), state.seen % window
        spike = is_above(value, state.losses, factor) | is_above(norm, state.norms, factor)
        spike &= state.seen >= window
        updated = inner.update(gradient, state.inner, params, value=value, **extra)
        unchanged = optax.tree.zeros_like(gradient), state.inner
        updates, inner_state = jax.tree.map(
            lambda new, old: jnp.where(spike, old, new), updated, unchanged
        )
        return updates, SpikeState(
            inner=inner_state,
            losses=state.losses.at[oldest].set(value),
            norms=state.norms.at[oldest].set(norm),
            seen=state.seen + 1,
            skipped=state.skipped + spike,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def is_above(value: Array, past: Array, factor: float) -> Array:
    """Whether a value lies more than `factor` standard deviations above the mean of the past."""
    return value > jnp.mean(past) + factor * jnp.std(past, ddof=1)
