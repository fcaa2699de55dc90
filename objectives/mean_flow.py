"""MeanFlow (Geng et al. 2025, arXiv:2505.13447): average velocities, taught by their derivative.

The network predicts u(x_t, t, s) = (x_t - x_s) / (t - s), the average over [s, t] of the velocity v
along a trajectory; one of its inputs is t - s. Differentiating (t - s) u in t along the trajectory
gives the MeanFlow identity, here on any path from data (0) to noise (1):

    u = v - (t - s) (v d_x u + d_t u)                                             (their eq. 6)

    L = E w || u - stop_gradient(v_g - (t - s) (v_g d_x u + d_t u)) ||^2          (eqs. 9 to 11)
    w = stop_gradient(1 / (|| . ||^2 + c)^p)                                      (eq. 22)

The derivative along (v_g, 1) is one `jax.jvp`, whose primal is u. v_g is the velocity of the
sample, v = alpha' x_0 + sigma' eps, of which the target is a linear function: without guidance its
mean is the target of the exact velocity, for any network. With guidance w and mixing kappa

    v_g = kappa u(y) + (1 - kappa) (u(null) + w (v - u(null))),   u(.) = u(x_t, t, t)  (eqs. 13, 20)

so the network learns the velocity guided at w (form A) and samples it at no further cost. Their
omega is w (1 - kappa). The target is detached, because it is the network's own.

Where the paper, its code and this file differ:

* t and s are the larger and the smaller of two draws. A share of rows has s = t, where the loss is
  flow matching (3/4 in both); their t is still the larger of two draws, as in the code. These rows
  are the first of a batch there. Here they are taken evenly, so devices share the work, and only
  the other rows pay for a derivative; the code differentiates all.
* c is 1e-3 in the paper and 0.01 in its code, as here. || . ||^2 sums over dimensions.
* Rows without label keep v, as in the code; it drops the first rows, here each row has the chance.
* Guidance at all times. The code can leave it out in a part of [0, 1].
"""

from collections.abc import Mapping
from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp
from jax import Array

from fewstep.diffusion.guidance import (
    NULL_LABEL,
    Condition,
    Predict,
    drop_labels,
    extrapolate,
    null_condition,
)
from fewstep.diffusion.path import align
from fewstep.diffusion.spacing import uniform_spacing
from fewstep.diffusion.time_sampling import TIME_SAMPLERS, TimeSampler, logit_normal_times
from fewstep.models.model import Model, check_flow_map
from fewstep.objectives.base import (
    Batch,
    Key,
    Metrics,
    Objective,
    Params,
    Player,
    batch_condition,
    mean_metric,
    noise_level_means,
    per_example,
)
from fewstep.objectives.derivatives import forward_derivative
from fewstep.objectives.distances import squared_error
from fewstep.objectives.needs import needs
from fewstep.objectives.rows import check_share, merge_rows, rows_per_share, split_rows
from fewstep.objectives.sampling import learned_guidance, sample_fn
from fewstep.parts import Part
from fewstep.samplers.flow_map import jump
from fewstep.samplers.grids import time_grid


@needs(second_time="interval")
def mean_flow(
    model: Model,
    *,
    time_sampler: Annotated[TimeSampler | None, Part(TIME_SAMPLERS, on_path=True)] = None,
    interval_fraction: float = 0.25,
    label_dropout: float = 0.1,
    guidance_scale: float = 1.0,
    mixing: float = 0.0,
    weight_power: float = 1.0,
    weight_offset: float = 0.01,
) -> Objective:
    """The MeanFlow objective.

    time_sampler: distribution of both times, logit-normal with mean -0.4 and std 1 by default.
    interval_fraction: share of rows with s < t, one over an integer.
    label_dropout: probability of the null class.
    guidance_scale: w, the scale that the network learns, form A.
    mixing: kappa, the share of the network's own velocity in the target, in [0, 1).
    weight_power, weight_offset: p and c; p = 0 is the plain squared error.

    Raises ValueError for a field out of range, and for a model that cannot be a flow map.
    """
    check_flow_map(model)
    if not 0.0 <= mixing < 1.0 or weight_offset <= 0.0:
        raise ValueError(
            "objective needs mixing in [0, 1) and weight_offset > 0, not "
            f"{mixing} and {weight_offset}"
        )
    every = rows_per_share(interval_fraction, "interval_fraction")
    sampler = time_sampler or logit_normal_times(model.path, -0.4, 1.0)

    def loss(
        params: Params, networks: Mapping[str, Params], batch: Batch, key: Key, step: Array
    ) -> tuple[Array, Metrics]:
        check_share(batch["x"].shape[0], every, "interval_fraction")
        key_times, key_eps, key_label, key_flow, key_interval = jax.random.split(key, 5)
        x_0, condition = batch["x"], batch_condition(batch)
        t, s = ordered_times(sampler, key_times, x_0.shape[0])
        eps = jax.random.normal(key_eps, x_0.shape)
        x_t, v = model.path.interpolate(x_0, eps, t), model.path.velocity(x_0, eps, t)
        rests = partial(model.predict, params)
        v_g = guided_velocity(rests, v, x_t, t, condition, guidance_scale, mixing)
        given = drop_labels(key_label, condition, label_dropout)
        v_g = jnp.where(align(given["label"] == NULL_LABEL, v), v, v_g)

        interval_rows, flow_rows = split_rows((x_t, t, s, given, v_g), every)
        flow = partial(model.predict, params, train=True, rng=key_flow)
        x, time, _, own, direction = flow_rows
        rest = flow(x, time, time, own), direction
        interval = partial(model.predict, params, train=True, rng=key_interval)
        first = average_velocity(interval, *interval_rows)

        u, target = merge_rows(first, rest, every)
        error = per_example(squared_error(u, target))
        interval_error, flow_error = split_rows(error, every)
        metrics = noise_level_means("loss", flow_error, time, model.path)
        metrics |= {
            "error": mean_metric(error),
            "loss_flow": mean_metric(flow_error),
            "loss_interval": mean_metric(interval_error),
        }
        return weighted(error * u[0].size, weight_power, weight_offset), metrics

    return Objective(
        players={"network": Player(model.network, loss, headline="error")},
        followers={},
        sample=sample_fn(model.predict, partial(solve, model), learned_guidance(guidance_scale)),
        guidance_scale=guidance_scale,
    )


def ordered_times(sampler: TimeSampler, key: Key, count: int) -> tuple[Array, Array]:
    """(t, s), the larger and the smaller of two draws, each [count]."""
    one, other = (sampler(own, count) for own in jax.random.split(key))
    return jnp.maximum(one, other), jnp.minimum(one, other)


def guided_velocity(
    predict: Predict,
    v: Array,
    x_t: Array,
    t: Array,
    condition: Condition,
    scale: float,
    mixing: float,
) -> Array:
    """v_g: [B, ...], detached; v itself without guidance and mixing.

    predict: the network, without dropout. v: velocity of the samples at x_t.
    """
    if scale != 1.0:
        v = extrapolate(v, predict(x_t, t, t, null_condition(condition)), scale)
    if mixing > 0.0:
        v = mixing * predict(x_t, t, t, condition) + (1.0 - mixing) * v
    return jax.lax.stop_gradient(v)


def average_velocity(
    predict: Predict, x_t: Array, t: Array, s: Array, condition: Condition, direction: Array
) -> tuple[Array, Array]:
    """(u, target) at (x_t, t, s), both [B, ...]. The target, from dx/dt = direction, is detached.

    Raises ValueError if the network has no forward derivative.
    """
    u, rate = forward_derivative(
        lambda x, t: predict(x, t, s, condition), (x_t, t), (direction, jnp.ones_like(t))
    )
    return u, jax.lax.stop_gradient(direction - align(t - s, rate) * rate)


def weighted(squared: Array, power: float, offset: float) -> Array:
    """squared / stop_gradient(squared + offset)^power: [B]."""
    return squared / jax.lax.stop_gradient(squared + offset) ** power


def solve(
    model: Model, predict: Predict, eps: Array, condition: Condition, keys: Array, steps: int
) -> Array:
    """Jumps from noise to data in equal steps of t."""
    times = time_grid(uniform_spacing(model.path), steps)
    return jump(lambda x, t, s: predict(x, t, s, condition), model.path.prior(eps), times)
