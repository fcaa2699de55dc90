"""Average velocities and their derivative: the parts that MeanFlow and its improvement share.

u(x_t, t, s) = (x_t - x_s) / (t - s) is the average over [s, t] of the velocity along a trajectory.
The MeanFlow identity (Geng et al. 2025) makes a target of it: u = v - (t - s) du/dt.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from fewstep.diffusion.guidance import Condition, Predict
from fewstep.diffusion.path import align
from fewstep.diffusion.spacing import uniform_spacing
from fewstep.diffusion.time_sampling import TimeSampler
from fewstep.models.model import Model
from fewstep.objectives.base import Key, Metrics, mean_metric, noise_level_means, per_example
from fewstep.objectives.derivatives import forward_derivative
from fewstep.objectives.distances import squared_error
from fewstep.objectives.rows import merge_rows, split_rows
from fewstep.samplers.flow_map import jump
from fewstep.samplers.grids import time_grid


def ordered_times(sampler: TimeSampler, key: Key, count: int) -> tuple[Array, Array]:
    """(t, s), the larger and the smaller of two draws, each [count]."""
    one, other = (sampler(own, count) for own in jax.random.split(key))
    return jnp.maximum(one, other), jnp.minimum(one, other)


def average_velocity(
    predict: Predict,
    x_t: Array,
    t: Array,
    s: Array,
    condition: Condition,
    velocity: Array,
    direction: Array,
) -> tuple[Array, Array]:
    """(u, target) at (x_t, t, s), both [B, ...]; the target is detached.

    target = velocity - (t - s) du/dt, with du/dt along dx/dt = direction. Raises ValueError if the
    network has no forward derivative.
    """
    u, rate = forward_derivative(
        lambda x, t: predict(x, t, s, condition), (x_t, t), (direction, jnp.ones_like(t))
    )
    return u, jax.lax.stop_gradient(velocity - align(t - s, rate) * rate)


def velocity_error(
    model: Model, train: Callable, rows: tuple, every: int, key_flow: Key, key_interval: Key
) -> tuple[Array, Metrics]:
    """(|| u - target ||^2 / D [B], metrics). One row in `every` has an interval, the others s = t.

    train: the network with its parameters, in training. rows: the arguments of `average_velocity`
    after `predict`; rows with s = t take the velocity alone.
    """
    interval_rows, (x, t, _, condition, velocity, _) = split_rows(rows, every)
    first = average_velocity(partial(train, rng=key_interval), *interval_rows)
    rest = partial(train, rng=key_flow)(x, t, t, condition), velocity
    error = per_example(squared_error(*merge_rows(first, rest, every)))
    interval_error, flow_error = split_rows(error, every)
    metrics = noise_level_means("loss", flow_error, t, model.path)
    return error, metrics | {
        "error": mean_metric(error),
        "loss_flow": mean_metric(flow_error),
        "loss_interval": mean_metric(interval_error),
    }


def weighted(squared: Array, power: float, offset: float) -> Array:
    """squared / stop_gradient(squared + offset)^power: [B]."""
    return squared / jax.lax.stop_gradient(squared + offset) ** power


def solve(
    model: Model, predict: Predict, eps: Array, condition: Condition, keys: Array, steps: int
) -> Array:
    """Jumps from noise to data in equal steps of t."""
    times = time_grid(uniform_spacing(model.path), steps)
    return jump(lambda x, t, s: predict(x, t, s, condition), model.path.prior(eps), times)
