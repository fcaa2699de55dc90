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

With `velocity` = teacher, v_g is the velocity of a frozen teacher, guided at w where a row has a
label. The target has no noise then, and the network learns the teacher's flow map.

Where the paper, its code and this file differ:

* t and s are the larger and the smaller of two draws. A share of rows has s = t, where the loss is
  flow matching (3/4 in both); their t is still the larger of two draws, as in the code. These rows
  are the first of a batch there. Here they are taken evenly, so devices share the work, and only
  the other rows pay for a derivative; the code differentiates all.
* c is 1e-3 in the paper and 0.01 in its code, as here. || . ||^2 sums over dimensions.
* Rows without label keep v, as in the code; it drops the first rows, here each row has the chance.
* Guidance at all times. The code can leave it out in a part of [0, 1].
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, NamedTuple

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
from fewstep.diffusion.time_sampling import TIME_SAMPLERS, TimeSampler, logit_normal_times
from fewstep.models.model import Model, check_flow_map
from fewstep.objectives.average_velocity import (
    ordered_times,
    solve,
    velocity_error,
    weighted,
)
from fewstep.objectives.base import (
    Batch,
    Key,
    Metrics,
    Objective,
    Params,
    Player,
    batch_condition,
)
from fewstep.objectives.consistency import Draw
from fewstep.objectives.needs import needs
from fewstep.objectives.rows import check_share, rows_per_share
from fewstep.objectives.sampling import jump_end, learned_guidance, sample_fn
from fewstep.parts import Entry, Part


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


def sample_velocity(
    model: Model,
    networks: Mapping[str, Params],
    draw: Draw,
    given: Condition,
    scale: float,
    mixing: float,
) -> Array:
    """v_g of the samples, which is v on rows whose label was dropped; detached."""
    v = model.path.velocity(draw.x_0, draw.eps, draw.t)
    rests = partial(model.predict, networks["network"])
    v_g = guided_velocity(rests, v, draw.x_t, draw.t, draw.condition, scale, mixing)
    return jnp.where(align(given["label"] == NULL_LABEL, v), v, v_g)


def teacher_velocity(
    model: Model,
    networks: Mapping[str, Params],
    draw: Draw,
    given: Condition,
    scale: float,
    mixing: float,
) -> Array:
    """v_g of the frozen teacher, which is that of the null class where the label was dropped."""
    teacher = model.guide_teacher(partial(model.predict, networks["teacher"]), scale)
    return teacher(draw.x_t, draw.t, draw.t, given)


class VelocitySource(NamedTuple):
    """Where v_g comes from.

    guided: (model, networks, draw, condition with dropped labels, scale, mixing) -> v_g. frozen:
    the teachers that it reads.
    """

    guided: Callable[..., Array]
    frozen: tuple[str, ...] = ()


VELOCITIES = {
    "sample": VelocitySource(sample_velocity),
    "teacher": VelocitySource(teacher_velocity, ("teacher",)),
}


@needs(second_time="interval")
def mean_flow(
    model: Model,
    *,
    time_sampler: Annotated[TimeSampler | None, Part(TIME_SAMPLERS, on_path=True)] = None,
    interval_fraction: float = 0.25,
    label_dropout: float = 0.1,
    guidance_scale: float = 1.0,
    mixing: float = 0.0,
    velocity: Annotated[VelocitySource, Entry(VELOCITIES)] = VELOCITIES["sample"],
    weight_power: float = 1.0,
    weight_offset: float = 0.01,
) -> Objective:
    """The MeanFlow objective.

    time_sampler: distribution of both times, logit-normal with mean -0.4 and std 1 by default.
    interval_fraction: share of rows with s < t, one over an integer.
    label_dropout: probability of the null class.
    guidance_scale: w, the scale that the network learns, form A.
    mixing: kappa, the share of the network's own velocity in the target, in [0, 1); 0 with a
        teacher.
    velocity: where v_g comes from, the samples or a frozen teacher of the same model.
    weight_power, weight_offset: p and c; p = 0 is the plain squared error.

    Raises ValueError for a field out of range, and for a model that cannot be a flow map.
    """
    check_flow_map(model)
    if not 0.0 <= mixing < 1.0 or weight_offset <= 0.0:
        raise ValueError(
            "objective needs mixing in [0, 1) and weight_offset > 0, not "
            f"{mixing} and {weight_offset}"
        )
    if mixing > 0.0 and velocity.frozen:
        raise ValueError(
            f"objective.mixing={mixing:g} is for the velocity of samples; with "
            "objective.velocity=teacher use 0"
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
        x_t = model.path.interpolate(x_0, eps, t)
        draw = Draw(x_0, eps, x_t, t, s, condition)
        given = drop_labels(key_label, condition, label_dropout)
        own = {**networks, "network": params}
        v_g = velocity.guided(model, own, draw, given, guidance_scale, mixing)

        train = partial(model.predict, params, train=True)
        rows = x_t, t, s, given, v_g, v_g
        error, metrics = velocity_error(model, train, rows, every, key_flow, key_interval)
        return weighted(error * x_0[0].size, weight_power, weight_offset), metrics

    return Objective(
        players={"network": Player(model.network, loss, headline="error")},
        followers={},
        sample=sample_fn(model.predict, partial(solve, model), learned_guidance(guidance_scale)),
        guidance_scale=guidance_scale,
        frozen=velocity.frozen,
        needs_teacher=bool(velocity.frozen),
        end_point=jump_end(model, learned_guidance(guidance_scale)),
    )
