"""Live reflow (Frans et al. 2024, a baseline): one network is a flow and its reflow, from data.

A second input tells the network which flow it computes. At s = t it is the flow of the data, and at
s = t_min the straight flow of pairs that the former makes inside the training step:

    flow rows    || prediction(x_t, t, t) - target(x_0, eps, t) ||^2               (denoising.py)
    live rows    || prediction(x_t, t, t_min) - target(x_0', eps, t) ||^2             (reflow.py)
                 x_0' = stop_gradient(rollout(eps)),  x_t = alpha x_0' + sigma eps

rollout(eps) is the sample of `rollout_steps` steps of DDIM of the flow. It is detached, because it
is the network's own, and it runs without dropout. With `target_decay` an EMA makes it.

Live rows are the reflow loss of these pairs, so at a fixed flow their minimum is that of reflow.py:
zero on Gaussian data. The straight flow then equals the rollout in one step.

Where the paper, its code and this file differ:

* The paper denoises fully at every update, in 128 steps, which rollout_steps=128 does. Its code
  makes eight Euler steps for an eighth of the rows: the defaults here.
* The code marks live rows by the step size 1 and flow rows by 1/128. Here s does. On the linear
  path the velocity of a straight flow is its average to the data, so s = 0 means the same as in
  shortcut.py.
* Any path and prediction serve; on the linear path DDIM is Euler.
* Fewer than `rollout_steps` sampling steps take the straight flow, which has learned
  `guidance_scale`. More take the flow, guided at any scale. The code turns at 128.
* Live and flow rows have different noise and labels; the code shares those of the leading rows.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp
from jax import Array

from fewstep.diffusion.guidance import (
    Condition,
    Predict,
    check_trained_scale,
    drop_labels,
    guide,
)
from fewstep.diffusion.spacing import uniform_spacing
from fewstep.diffusion.time_sampling import TIME_SAMPLERS, TimeSampler, uniform_times
from fewstep.models.model import LEAST_ALPHA_ONE_STEP, Model, check_decoding
from fewstep.objectives.base import (
    Batch,
    Follower,
    Key,
    Metrics,
    Objective,
    Params,
    Player,
    batch_condition,
    mean_metric,
)
from fewstep.objectives.denoising import prediction_loss
from fewstep.objectives.followers import constant_ema
from fewstep.objectives.needs import needs
from fewstep.objectives.rows import check_share, merge_rows, rows_per_share, split_rows
from fewstep.objectives.sampling import end_point_fn, sample_fn
from fewstep.parts import Part
from fewstep.samplers.grids import time_grid
from fewstep.samplers.ode import ddim, ddim_step

# t -> s, which says what flow the network computes
SecondTime = Callable[[Array], Array]


@needs(second_time="interval")
def live_reflow(
    model: Model,
    *,
    rollout_steps: int = 8,
    live_fraction: float = 0.125,
    target_decay: float = 0.0,
    time_sampler: Annotated[TimeSampler | None, Part(TIME_SAMPLERS, on_path=True)] = None,
    label_dropout: float = 0.1,
    guidance_scale: float = 1.0,
) -> Objective:
    """The objective of live reflow.

    rollout_steps: steps of DDIM of a pair, 2 or more.
    live_fraction: share of live rows, one over an integer.
    target_decay: EMA decay of the network that makes the pairs; 0 for the network itself.
    time_sampler: distribution of t, uniform over the path by default.
    label_dropout: probability of the null class in flow rows.
    guidance_scale: guidance of the pairs, form A.

    Raises ValueError for a field out of range, and for a prediction that says too little about the
    data at pure noise.
    """
    check_decoding(model, LEAST_ALPHA_ONE_STEP)
    if rollout_steps < 2:
        raise ValueError(f"objective.rollout_steps={rollout_steps} must be 2 or more")
    every = rows_per_share(live_fraction, "live_fraction")
    times = time_sampler or uniform_times(model.path)
    straight = lambda t: jnp.full_like(t, model.path.t_min)

    def loss(
        params: Params, networks: Mapping[str, Params], batch: Batch, key: Key, step: Array
    ) -> tuple[Array, Metrics]:
        check_share(batch["x"].shape[0], every, "live_fraction")
        key_t, key_eps, key_label, key_dropout = jax.random.split(key, 4)
        t = times(key_t, batch["x"].shape[0])
        eps = jax.random.normal(key_eps, batch["x"].shape)
        (live_t, live_eps, live), (flow_t, _, flow) = split_rows((t, eps, batch), every)
        rest = guide(partial(model.predict, networks.get("target", params)), guidance_scale)
        made = roll_out(model, rest, own_time, live_eps, batch_condition(live), rollout_steps)

        flow_condition = drop_labels(key_label, batch_condition(flow), label_dropout)
        x_0 = merge_rows(jax.lax.stop_gradient(made), flow["x"], every)
        condition = merge_rows(batch_condition(live), flow_condition, every)
        s = merge_rows(straight(live_t), own_time(flow_t), every)
        x_t = model.path.interpolate(x_0, eps, t)
        prediction = model.predict(params, x_t, t, s, condition, train=True, rng=key_dropout)
        error, metrics = prediction_loss(model, prediction, x_0, eps, t)
        live_error, flow_error = split_rows(error, every)
        parts = {"loss_live": mean_metric(live_error), "loss_flow": mean_metric(flow_error)}
        return error, {**metrics, **parts}

    def guidance(predict: Predict, scale: float, steps: int) -> Predict:
        if steps >= rollout_steps:
            return guide(predict, scale)
        check_trained_scale(scale, guidance_scale)
        return predict

    def solve(predict: Predict, eps: Array, condition: Condition, keys: Array, steps: int) -> Array:
        second = own_time if steps >= rollout_steps else straight
        return roll_out(model, predict, second, eps, condition, steps)

    def end(predict: Predict, x_t: Array, t: Array, condition: Condition) -> Array:
        denoise = model.denoiser(lambda x, t, s, c: predict(x, t, straight(t), c), condition)
        return ddim_step(denoise, model.path, x_t, t, straight(t))

    return Objective(
        players={"network": Player(model.network, loss)},
        followers=(
            {"target": Follower("network", constant_ema(target_decay))} if target_decay else {}
        ),
        sample=sample_fn(model.predict, solve, guidance),
        end_point=end_point_fn(model.predict, end, guidance),
        guidance_scale=guidance_scale,
    )


def own_time(t: Array) -> Array:
    """s = t, the second time of the flow of the data."""
    return t


def roll_out(
    model: Model, predict: Predict, second: SecondTime, eps: Array, condition: Condition, steps: int
) -> Array:
    """The sample from eps, [B, ...], in equal steps of DDIM of the flow that `second` chooses."""
    denoise = model.denoiser(lambda x, t, s, c: predict(x, t, second(t), c), condition)
    times = time_grid(uniform_spacing(model.path), steps)
    return ddim()(denoise, model.path, model.path.prior(eps), times, None)
