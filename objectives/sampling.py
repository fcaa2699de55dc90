"""What the samplers of all methods share: the steps and scales that they allow, and guidance.

A method adds its own lines, `Solve`: from noise to data by a network that is guided already.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array

from fewstep.diffusion.guidance import Condition, Predict, check_trained_scale, guide
from fewstep.objectives.base import Params, SampleFn

# A network with its parameters, a `Predict` or a one-step generator.
BoundNetwork = Callable[..., Array]
# (network, scale, steps) -> the network at that scale. Raises ValueError for one that it cannot.
Guidance = Callable[[Any, float, int], BoundNetwork]
# (guided network, eps, condition, keys, steps) -> x_0 like eps
Solve = Callable[[Any, Array, Condition, Array, int], Array]


def sampling_guidance(predict: Predict, scale: float, steps: int) -> Predict:
    """Guidance while sampling, at any scale (`diffusion.guidance.guide`)."""
    return guide(predict, scale)


def learned_guidance(scale: float, guidance_range: Sequence[float] = ()) -> Guidance:
    """Guidance that the network has learned: `scale` alone, or a range of scales.

    guidance_range: (low, high) of the scales that it takes as "guidance_scale", or ().
    """

    def guidance(network: BoundNetwork, asked: float, steps: int) -> BoundNetwork:
        check_trained_scale(asked, scale, guidance_range)
        return condition_on_scale(network, asked) if guidance_range else network

    return guidance


def condition_on_scale(predict: Predict, scale: float) -> Predict:
    """The prediction of a network that takes the guidance scale as part of its condition."""

    def guided(x: Array, t: Array, s: Array, condition: Condition) -> Array:
        given = jnp.full(x.shape[:1], scale, jnp.float32)
        return predict(x, t, s, {**condition, "guidance_scale": given})

    return guided


def allow_any_steps(steps: int) -> None:
    """Leaves the number of steps to the time grid, which needs one at least."""


def sample_fn(
    network: Callable[..., Array],
    solve: Solve,
    guidance: Guidance = sampling_guidance,
    check_steps: Callable[[int], None] = allow_any_steps,
) -> SampleFn:
    """How a method samples, from its own `solve`.

    network: of the parameters first, such as `Model.predict`. check_steps: raises ValueError for a
    number of steps in which the method cannot sample.
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
