"""The frame of every method's sampler: checks of steps and guidance scale, and guidance.

A method adds its own `Solve`, which goes from noise to data with a network that is already guided.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array

from fewstep.diffusion.guidance import Condition, Predict, check_trained_scale, guide
from fewstep.diffusion.path import align
from fewstep.models.model import Model
from fewstep.objectives.base import EndPointFn, Params, SampleFn

# A network with its parameters bound: a `Predict` or a one-step generator.
BoundNetwork = Callable[..., Array]
# (network, scale, steps) -> the network guided at that scale. Raises ValueError for other scales.
Guidance = Callable[[Any, float, int], BoundNetwork]
# (guided network, eps, condition, keys, steps) -> x_0 like eps
Solve = Callable[[Any, Array, Condition, Array, int], Array]


# (guided network, x_t, t, condition) -> x_0
End = Callable[[Any, Array, Array, Condition], Array]


def sampling_guidance(
    predict: Predict, scale: float, steps: int, channels: int | None = None
) -> Predict:
    """Guides the network while sampling, at any scale (`diffusion.guidance.guide`)."""
    return guide(predict, scale, channels)


def learned_guidance(scale: float, guidance_range: Sequence[float] = ()) -> Guidance:
    """Guidance that the network has learned: at `scale` only, or at any scale of a range.

    guidance_range: (low, high) of the scales that condition the network, or ().
    """

    def guidance(network: BoundNetwork, asked: float, steps: int) -> BoundNetwork:
        check_trained_scale(asked, scale, guidance_range)
        return condition_on_scale(network, asked) if guidance_range else network

    return guidance


def condition_on_scale(predict: Predict, scale: float) -> Predict:
    """`predict` with the guidance scale in its condition."""

    def guided(x: Array, t: Array, s: Array, condition: Condition) -> Array:
        given = jnp.broadcast_to(jnp.float32(scale), x.shape[:1])
        return predict(x, t, s, {**condition, "guidance_scale": given})

    return guided


def allow_any_steps(steps: int) -> None:
    """Accepts every number of steps; the time grid requires at least one."""


def sample_fn(
    network: Callable[..., Array],
    solve: Solve,
    guidance: Guidance = sampling_guidance,
    check_steps: Callable[[int], None] = allow_any_steps,
) -> SampleFn:
    """The sampler of a method, made of its own `solve`.

    network: a function with the parameters as its first argument, such as `Model.predict`.
    solve: from noise to data with the guided network.
    guidance: guides the network, or checks a scale that it has learned.
    check_steps: raises StepsError for a number of steps that the method cannot sample in.
    """

    def sample(
        params: Params,
        eps: Array,
        condition: Condition,
        keys: Array,
        *,
        steps: int,
        guidance_scale: float,
    ) -> Array:
        check_steps(steps)
        guided = guidance(partial(network, params), guidance_scale, steps)
        return solve(guided, eps, condition, keys, steps)

    return sample


def end_point_fn(network: Callable[..., Array], end: End, guidance: Guidance) -> EndPointFn:
    """`Objective.end_point` by a method's own `end`. Arguments: as for `sample_fn`."""

    def end_point(
        params: Params, x_t: Array, t: Array, condition: Condition, *, guidance_scale: float
    ) -> Array:
        return end(guidance(partial(network, params), guidance_scale, 1), x_t, t, condition)

    return end_point


def denoised_end(model: Model, guidance: Guidance) -> EndPointFn:
    """The end by `Model.consistency`: that of a consistency function, and of a denoiser's DDIM."""

    def end(predict: Predict, x_t: Array, t: Array, condition: Condition) -> Array:
        ends = model.denoiser(predict, condition)(x_t, t)
        return model.path.interpolate(*ends, jnp.full_like(t, model.path.t_min))

    return end_point_fn(model.predict, end, guidance)


def jump_end(model: Model, guidance: Guidance) -> EndPointFn:
    """The end by one jump x - (t - t_min) u(x, t, t_min) of an average velocity."""

    def end(predict: Predict, x_t: Array, t: Array, condition: Condition) -> Array:
        s = jnp.full_like(t, model.path.t_min)
        return x_t - align(t - s, x_t) * predict(x_t, t, s, condition)

    return end_point_fn(model.predict, end, guidance)
