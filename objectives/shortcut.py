"""Shortcut models (Frans et al. 2024): one network for all step sizes, each taught by half steps.

The network predicts an average velocity u(x_t, t, s) = (x_t - x_s) / (t - s); the step size t - s
is one of its inputs. Time runs from data (0) to noise (1). The paper's time runs the other way:
t_paper = 1 - t, v_paper = -v.

    flow rows        || u(x_t, t, t - 1/M) - (alpha' x_0 + sigma' eps) ||^2          (their eq. 3)
    bootstrap rows   || u(x_t, t, t - 2d) - stop_gradient(u_target) ||^2             (their eq. 5)
                     u_target = (u_1 + u_2) / 2
                     u_1 = u(x_t, t, t - d),   u_2 = u(x_t - d u_1, t - d, t - 2d)

u_target follows from the semigroup property of the flow: two jumps of d are one jump of 2d. The
follower `target` computes it, without dropout as in the code. It never comes from the trained
parameters, so it carries no gradient.

Where the paper, its code and this file differ:

* u_2 is evaluated at the later time t - d. The paper's eq. 5 prints the time of the first half step
  in both terms, which the exact flow map does not satisfy; the paper's code is right.
* Bootstrap rows are 1/4 of the batch in the paper and 1/8 in its code. Here a field sets the share.
* The finest size 1/M stands for d = 0, as in the code. Flow matching trains that size, and the
  first bootstrap level (2/M) starts from it, so an M-step sampler uses trained sizes only.
* Flow rows draw t continuously, as in the paper's text; its code draws multiples of 1/M. At
  s = t - 1/M the model is therefore flow matching, and any solver may use it. Bootstrap rows draw t
  on the grid of their step size, as in the code, because samplers take only those jumps.
* The rows take the step sizes in turn, so every batch has every size, in numbers as equal as
  possible. The code gives each size floor(n / levels) rows and the remainder to the largest.
* Bootstrap and flow rows are different images with different noise. The code uses the same leading
  images and the same keys for both, and never uses the last eighth of a batch.
* Any path from data at t = 0 to pure noise works. The semigroup property holds on each, and step
  sizes divide the path's range of t as they divide [0, 1] in the paper. The paper's path is
  x_t = (1 - t) x_0 + t eps. The code leaves 1e-5 of the noise in the data: in its time
  x_t = (1 - (1 - 1e-5) t) x_0 + t x_1, with x_0 the noise, and the target x_1 - (1 - 1e-5) x_0.
* Nothing is clipped. The code clips the midpoint and the targets to [-4, 4], which moves the fixed
  point wherever |eps - x_0| > 4.
* `target` is an EMA whose decay warms up. With the paper's 0.999 from the first step the target
  stays close to its initial value for a thousand steps. Each of the log2 M levels waits for the one
  below, so short runs never reach one step. With target_decay 0 the target is the current network,
  detached.
* Guidance acts where the half step is the finest size, and larger steps inherit it, as in the code.
  Bootstrap rows keep their labels, and only the finest size is evaluated for the null class.
* With `guidance_range` each row draws a scale, which is an input of the network. The targets of a
  row are guided by its own scale, so no scale is fixed before training. The finest size learns to
  ignore the input, because the targets of flow rows have no guidance. The paper has one scale.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, NamedTuple

import jax
import numpy as np
from jax import Array

from fewstep.diffusion.guidance import (
    Condition,
    draw_scale,
    drop_labels,
    guide_rows,
)
from fewstep.diffusion.path import align
from fewstep.diffusion.time_sampling import (
    ROW_LEVELS,
    TIME_SAMPLERS,
    RowLevels,
    TimeSampler,
    dyadic_steps,
    uniform_times,
)
from fewstep.models.model import Model, check_flow_map
from fewstep.objectives.base import (
    Batch,
    Follower,
    Key,
    LossFn,
    Metrics,
    Objective,
    Params,
    Player,
    batch_condition,
    mean_metric,
    noise_level_means,
)
from fewstep.objectives.consistency import check_guidance_range
from fewstep.objectives.distances import (
    DISTANCES,
    Distance,
    check_compares_any,
    squared_l2,
)
from fewstep.objectives.followers import constant_ema, warmed_ema
from fewstep.objectives.needs import needs
from fewstep.objectives.rows import merge_rows, rows_per_share, split_rows
from fewstep.objectives.shortcut_sampling import jump_sampler, jumps_to_end
from fewstep.parts import Entry, Part

# (x, t, s, condition) -> average velocity
AverageVelocity = Callable[[Array, Array, Array, Condition], Array]


class Regression(NamedTuple):
    """Rows of a regression: the network's inputs x_t, t, s and condition, and its target."""

    x_t: Array
    t: Array
    s: Array
    condition: Condition
    target: Array


def check_batch_split(rows: int, every: int, levels: int) -> None:
    """Raises ValueError unless `rows` is a multiple of `every` and each step size gets a row."""
    if rows % every or rows // every < levels:
        least = -(-max(rows, levels * every) // every) * every
        raise ValueError(
            f"{rows} rows, batch_size / micro_batches, with objective.bootstrap_fraction=1/{every} "
            f"cannot give each of the {levels} step sizes a row; use a multiple of {every}, such "
            f"as {least}"
        )


def bootstrap_target(
    velocity: AverageVelocity, x_t: Array, t: Array, size: Array, condition: Condition
) -> Array:
    """The average velocity over a step of `size`, computed from two half steps. t, size: [B]."""
    half = 0.5 * size
    first = velocity(x_t, t, t - half, condition)
    x_middle = x_t - align(half, x_t) * first
    second = velocity(x_middle, t - half, t - size, condition)
    return 0.5 * (first + second)


def check_max_steps(max_steps: int) -> None:
    """Raises ValueError unless step sizes halve down to 1 / max_steps."""
    if max_steps < 2 or max_steps & (max_steps - 1):
        raise ValueError(f"objective.max_steps must be a power of two, 2 or more, not {max_steps}")


def check_shortcut_fields(model: Model, max_steps: int) -> None:
    """Raises ValueError for a field out of range, or a model that the method cannot train."""
    check_max_steps(max_steps)
    check_flow_map(model)


def regression_loss(
    model: Model,
    flow_rows: Callable[[Batch, Key], Regression],
    bootstrap_rows: Callable[[Params, Batch, Key], Regression],
    every: int,
    levels: int,
    distance: Distance,
) -> LossFn:
    """d(u, target) of each row. One row in `every` is a bootstrap row; the others are flow rows."""

    def loss(
        params: Params, networks: Mapping[str, Params], batch: Batch, key: Key, step: Array
    ) -> tuple[Array, Metrics]:
        check_batch_split(batch["x"].shape[0], every, levels)
        key_bootstrap, key_flow, key_dropout = jax.random.split(key, 3)
        bootstrap_batch, flow_batch = split_rows(batch, every)
        rows = merge_rows(
            bootstrap_rows(networks["target"], bootstrap_batch, key_bootstrap),
            flow_rows(flow_batch, key_flow),
            every,
        )
        prediction = model.predict(
            params, rows.x_t, rows.t, rows.s, rows.condition, train=True, rng=key_dropout
        )
        error = distance(prediction, rows.target)
        bootstrap_error, flow_error = split_rows(error, every)
        _, flow_t = split_rows(rows.t, every)
        metrics = noise_level_means("loss", flow_error, flow_t, model.path)
        metrics |= {
            "loss_flow": mean_metric(flow_error),
            "loss_bootstrap": mean_metric(bootstrap_error),
        }
        return error, metrics

    return loss


@needs(second_time="step_size", guidance_input=lambda guidance_range: bool(guidance_range))
def shortcut(
    model: Model,
    *,
    max_steps: int = 128,
    bootstrap_fraction: float = 0.25,
    leftover_rows: Annotated[RowLevels, Entry(ROW_LEVELS)] = ROW_LEVELS["coarse"],
    target_decay: float = 0.999,
    target_warmup: bool = True,
    time_sampler: Annotated[TimeSampler | None, Part(TIME_SAMPLERS, on_path=True)] = None,
    label_dropout: float = 0.1,
    guidance_scale: float = 1.0,
    guidance_range: Sequence[float] = (),
    distance: Annotated[Distance | None, Part(DISTANCES)] = None,
) -> Objective:
    """The shortcut objective.

    max_steps: M, a power of two; step sizes are 1/M, 2/M, ..., 1 of the path's range of t.
    bootstrap_fraction: share of bootstrap rows, one over an integer (paper 1/4, code 1/8).
    leftover_rows: which step sizes get the bootstrap rows that are left when each has as many.
    target_decay: EMA decay of the follower that computes bootstrap targets; 0 for the network
        itself.
    target_warmup: whether this decay warms up.
    time_sampler: distribution of t in flow rows, uniform by default.
    label_dropout: probability of the null class in flow rows.
    guidance_scale: guidance of the bootstrap targets, form A (1.5 on ImageNet in the paper); with
        guidance_range the default of sampling.
    guidance_range: (low, high) of the scales that condition the network, or ().
    distance: between the network and its target, squared L2 by default as in the paper. Only for
        squared L2 is the minimiser of the flow rows the velocity; another distance has another
        fixed point.
    """
    check_shortcut_fields(model, max_steps)
    check_guidance_range(guidance_range, guidance_scale)
    distance = distance or squared_l2()
    check_compares_any(distance, "objective.distance", "velocities")
    path = model.path
    levels, every = (
        max_steps.bit_length() - 1,
        rows_per_share(bootstrap_fraction, "bootstrap_fraction"),
    )
    time_sampler = time_sampler or uniform_times(path)
    span = path.t_max - path.t_min
    finest = span / max_steps

    def flow_rows(batch: Batch, key: Key) -> Regression:
        key_t, key_eps, key_label, key_scale = jax.random.split(key, 4)
        x_0 = batch["x"]
        t = time_sampler(key_t, x_0.shape[0])
        eps = jax.random.normal(key_eps, x_0.shape)
        condition = drop_labels(key_label, batch_condition(batch), label_dropout)
        condition = draw_scale(key_scale, condition, guidance_range)
        x_t = path.interpolate(x_0, eps, t)
        return Regression(x_t, t, t - finest, condition, path.velocity(x_0, eps, t))

    def bootstrap_rows(target: Params, batch: Batch, key: Key) -> Regression:
        key_t, key_eps, key_scale = jax.random.split(key, 3)
        x_0, condition = batch["x"], draw_scale(key_scale, batch_condition(batch), guidance_range)
        row_levels = leftover_rows(x_0.shape[0], levels)
        fraction, share = dyadic_steps(key_t, row_levels)
        t, size = path.t_min + span * fraction, span * share
        x_t = path.interpolate(x_0, jax.random.normal(key_eps, x_0.shape), t)
        guided = np.flatnonzero(row_levels == levels - 1)
        scale = condition.get("guidance_scale", guidance_scale)
        velocity = guide_rows(partial(model.predict, target), guided, scale)
        u_target = bootstrap_target(velocity, x_t, t, size, condition)
        return Regression(x_t, t, t - size, condition, u_target)

    loss = regression_loss(model, flow_rows, bootstrap_rows, every, levels, distance)
    update = warmed_ema(target_decay) if target_warmup else constant_ema(target_decay)
    return Objective(
        players={"network": Player(model.network, loss)},
        followers={"target": Follower("network", update)},
        sample=jump_sampler(model, max_steps, guidance_scale, guidance_range),
        end_point=jumps_to_end(model, max_steps, guidance_scale, guidance_range),
        guidance_scale=guidance_scale,
    )
