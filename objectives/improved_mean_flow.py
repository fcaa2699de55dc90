"""Improved MeanFlow (Geng et al. 2025, arXiv:2512.02012): MeanFlow as regression of a velocity.

The identity of mean_flow.py, read from right to left, makes a velocity of the network's average
velocity u. It is regressed to the velocity of the sample, as in flow matching:

    V = u + (t - s) stop_gradient(v_theta d_x u + d_t u)
    L = E w || V - v_g ||^2,     w = stop_gradient(1 / (|| . ||^2 + c)^p)      (their section 3.2)

The derivative is along v_theta, the network's own velocity u(x_t, t, t), where MeanFlow takes that
of the sample. Given x_t, V is then no function of the sample, so the regression is a usual one, and
its target does not contain the network. The gradient is the same but for the direction of the
derivative (tests), so both share average_velocity.py.

The guidance scale w (form A) is an input, drawn log-uniformly for each row. With it

    v_g = v + (1 - 1 / w) (v_theta(y, w) - v_theta(null))                      (section 3.3)

If v_theta(y, w) is the mean of v_g, it is v(null) + w (v(y) - v(null)): guidance in one evaluation.
v_theta(y, w) is also the direction of the derivative. Rows that lose their label have v_g = v, and
the direction v_theta(null); in the code they keep the direction of their label. Everything that the
network contributes to v_g and to the derivative is detached.

A guided row is so only at the times of an interval [a, b] of fractions of the path, with w = 1
outside. a and b are inputs too (`model.guidance_interval`), drawn from the halves of [0, 1] for
rows with s < t and 0 and 1 for the others, as in the code. Sampling takes a scale and an interval
that the run's config names.

Where the paper, its code and this file differ: v_theta is the network at s = t. The paper's best
networks have a second output for it, whose loss they add. They read conditions as tokens; ours adds
embeddings. Half of the rows have s = t, as in the code.
"""

from collections.abc import Mapping, Sequence
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
    null_condition,
)
from fewstep.diffusion.path import Path, align
from fewstep.diffusion.time_sampling import TIME_SAMPLERS, TimeSampler, logit_normal_times
from fewstep.models.model import Model, check_flow_map
from fewstep.objectives.average_velocity import (
    ordered_times,
    solve,
    velocity_error,
    weighted,
)
from fewstep.objectives.base import Batch, Key, Metrics, Objective, Params, Player, batch_condition
from fewstep.objectives.consistency import check_guidance_range
from fewstep.objectives.needs import needs
from fewstep.objectives.rows import check_share, rows_per_share
from fewstep.objectives.sampling import Guidance, jump_end, learned_guidance, sample_fn
from fewstep.parts import Part


@needs(
    second_time="interval",
    guidance_input=lambda guidance_range: bool(guidance_range),
    guidance_interval=lambda guidance_range: bool(guidance_range),
)
def improved_mean_flow(
    model: Model,
    *,
    time_sampler: Annotated[TimeSampler | None, Part(TIME_SAMPLERS, on_path=True)] = None,
    interval_fraction: float = 0.5,
    label_dropout: float = 0.1,
    guidance_range: Sequence[float] = (1.0, 8.0),
    guidance_scale: float = 1.0,
    guidance_interval: Sequence[float] = (0.0, 1.0),
    weight_power: float = 1.0,
    weight_offset: float = 0.01,
) -> Objective:
    """The improved MeanFlow objective.

    time_sampler, interval_fraction, label_dropout, weight_power, weight_offset: as for `mean_flow`.
    guidance_range: (low, high) of the scales that condition the network, low 1 or more; () for a
        network without guidance.
    guidance_scale: default of sampling, form A.
    guidance_interval: (start, end) of sampling, fractions of the path from data (0) to noise (1);
        start at most 0.5 and end at least 0.5, as in training.

    Raises ValueError for a field out of range, and for a model that cannot be a flow map.
    """
    check_flow_map(model)
    check_guidance_range(guidance_range, guidance_scale)
    check_improved_fields(guidance_range, guidance_interval, weight_offset)
    every = rows_per_share(interval_fraction, "interval_fraction")
    sampler = time_sampler or logit_normal_times(model.path, -0.4, 1.0)

    def loss(
        params: Params, networks: Mapping[str, Params], batch: Batch, key: Key, step: Array
    ) -> tuple[Array, Metrics]:
        check_share(batch["x"].shape[0], every, "interval_fraction")
        key_times, key_eps, key_guidance, *keys = jax.random.split(key, 6)
        key_label, key_flow, key_interval = keys
        x_0, condition = batch["x"], batch_condition(batch)
        t, s = ordered_times(sampler, key_times, x_0.shape[0])
        eps = jax.random.normal(key_eps, x_0.shape)
        x_t, v = model.path.interpolate(x_0, eps, t), model.path.velocity(x_0, eps, t)
        if guidance_range:
            has_interval = jnp.arange(t.size) % every == 0
            condition |= draw_guidance(key_guidance, guidance_range, has_interval)
        rests = partial(model.predict, params)
        v_g, own, null = network_velocities(rests, v, x_t, t, condition, model.path)
        given = drop_labels(key_label, condition, label_dropout)
        if guidance_range:
            dropped = align(given["label"] == NULL_LABEL, v)
            v_g, own = jnp.where(dropped, v, v_g), jnp.where(dropped, null, own)
        train = partial(model.predict, params, train=True)
        rows = x_t, t, s, given, v_g, own
        error, metrics = velocity_error(model, train, rows, every, key_flow, key_interval)
        return weighted(error * x_0[0].size, weight_power, weight_offset), metrics

    guidance = interval_guidance(guidance_scale, guidance_range, guidance_interval)
    return Objective(
        players={"network": Player(model.network, loss, headline="error")},
        followers={},
        sample=sample_fn(model.predict, partial(solve, model), guidance),
        guidance_scale=guidance_scale,
        end_point=jump_end(model, guidance),
    )


def check_improved_fields(
    guidance_range: Sequence[float], guidance_interval: Sequence[float], weight_offset: float
) -> None:
    """Raises ValueError for a field out of range."""
    if guidance_range and guidance_range[0] < 1.0:
        raise ValueError(
            f"objective.guidance_range={tuple(guidance_range)} must begin at 1 or more, which is "
            "no guidance"
        )
    if len(guidance_interval) != 2 or not (
        0.0 <= guidance_interval[0] <= 0.5 <= guidance_interval[1] <= 1.0
    ):
        raise ValueError(
            f"objective.guidance_interval={tuple(guidance_interval)} must be (start, end) with "
            "start from 0 to 0.5 and end from 0.5 to 1"
        )
    if weight_offset <= 0.0:
        raise ValueError(f"objective.weight_offset={weight_offset:g} must be above 0")


def draw_guidance(
    key: Key, guidance_range: Sequence[float], has_interval: Array
) -> dict[str, Array]:
    """Guidance of each row: a log-uniform scale, and an interval where `has_interval`; all [B]."""
    key_scale, key_start, key_end = jax.random.split(key, 3)
    low, high = (jnp.log(bound) for bound in guidance_range)
    rows = has_interval.shape
    scale = jnp.exp(jax.random.uniform(key_scale, rows, minval=low, maxval=high))
    start = jax.random.uniform(key_start, rows, maxval=0.5)
    end = jax.random.uniform(key_end, rows, minval=0.5)
    return {
        "guidance_scale": scale,
        "guidance_start": jnp.where(has_interval, start, 0.0),
        "guidance_end": jnp.where(has_interval, end, 1.0),
    }


def network_velocities(
    predict: Predict, v: Array, x_t: Array, t: Array, condition: Condition, path: Path
) -> tuple[Array, Array, Array]:
    """(v_g, the network's velocity for the label, and for the null class), detached.

    predict: the network, without dropout. Without a guidance scale v_g is v, and both velocities
    are that of the label.
    """
    if "guidance_scale" not in condition:
        own = predict(x_t, t, t, condition)
        return jax.lax.stop_gradient((v, own, own))
    fraction = (t - path.t_min) / (path.t_max - path.t_min)
    guided = (condition["guidance_start"] <= fraction) & (fraction <= condition["guidance_end"])
    scale = jnp.where(guided, condition["guidance_scale"], 1.0)
    whole = {"guidance_start": jnp.zeros_like(t), "guidance_end": jnp.ones_like(t)}
    labelled = {**condition, **whole, "guidance_scale": scale}
    plain = {**null_condition(labelled), "guidance_scale": jnp.ones_like(t)}
    both = jax.tree.map(
        lambda a, b: jnp.concatenate([a, b]), (x_t, t, t, labelled), (x_t, t, t, plain)
    )
    own, null = predict(*both).reshape(2, *v.shape)
    v_g = v + align(1.0 - 1.0 / scale, v) * (own - null)
    return jax.lax.stop_gradient((v_g, own, null))


def interval_guidance(
    scale: float, guidance_range: Sequence[float], interval: Sequence[float]
) -> Guidance:
    """Guidance that the network has learned, at any scale of the range and in this interval."""
    learned = learned_guidance(scale, guidance_range)

    def guidance(network: Predict, asked: float, steps: int) -> Predict:
        predict = learned(network, asked, steps)
        if not guidance_range:
            return predict

        def guided(x: Array, t: Array, s: Array, condition: Condition) -> Array:
            ends = (jnp.broadcast_to(jnp.float32(end), x.shape[:1]) for end in interval)
            entries = zip(("guidance_start", "guidance_end"), ends, strict=True)
            return predict(x, t, s, {**condition, **dict(entries)})

        return guided

    return guidance
