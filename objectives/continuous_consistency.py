"""Continuous-time consistency models in TrigFlow: sCT and sCD (Lu & Song 2025).

The path is x_t = cos t x_0 + sin t z with z = sigma_d eps, the velocity of the network V = sigma_d
F_theta(x_t / sigma_d, t), and f = cos t x_t - sin t V. In the limit s -> t the gradient of the
discrete objective is that of a regression of F_theta to F_theta^- + g with the tangent

    g = -cos^2 t (V^- - dx/dt) - r cos t sin t (x_t + dV^-/dt)            (r = 1: cos t df/dt)

    dx/dt = cos t z - sin t x_0                  sCT: of the sample, unbiased
            the teacher's velocity at (x_t, t)   sCD
    dV/dt   along (dx/dt, 1): `jax.jvp` along cos t sin t (dx/dt, 1), finite at both ends

    L = E e^w(t) / D || F_theta - F_theta^- - g / (||g|| + c) ||^2 - w(t)

r rises from 0 to 1 over `tangent_warmup` training steps. At r = 0 the loss is a regression to the
diffusion velocity. g vanishes at the exact consistency function. V^-, g and the normalisation are
detached, because they are the network's own target. One evaluation, the primal of the jvp, gives
both V and V^-. A gradient therefore costs a forward pass, a backward pass and one tangent pass.

||g|| is the norm over all D dimensions, sqrt(D) times the root mean square. Relative to the root
mean square, c = 0.1 counts as 0.1 / sqrt(D), which is 0.002 on 32 x 32 x 3. Tangents of any usual
size are therefore almost fully normalised, to norm 1. (An option of FastGen's code divides ||g|| by
sqrt(D).)

The network learns w(t) too (`model.loss_weight`). The optimal w(t) is minus the log of the error at
t. Before normalisation sCT's g is an unbiased estimate of sCD's g with an exact teacher; after
normalisation it is not (tests).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp
from jax import Array

from fewstep.diffusion.guidance import Condition
from fewstep.diffusion.path import Path, align
from fewstep.diffusion.prediction import KINDS, convert
from fewstep.diffusion.spacing import SPACINGS, Spacing, uniform_spacing
from fewstep.diffusion.time_sampling import TIME_SAMPLERS, TimeSampler, log_normal_times
from fewstep.models.model import Model, check_boundary
from fewstep.objectives.base import (
    Batch,
    Key,
    LossFn,
    Metrics,
    Objective,
    Params,
    Player,
    batch_condition,
    mean_metric,
    noise_level_means,
    per_example,
)
from fewstep.objectives.consistency import Draw, consistency_sampler
from fewstep.objectives.derivatives import forward_derivative
from fewstep.objectives.distances import squared_error
from fewstep.objectives.needs import needs
from fewstep.objectives.sampling import denoised_end, learned_guidance
from fewstep.parts import RUN_LENGTH, Part

Velocity = Callable[[Array, Array], Array]
# (every network by name, draw with s = t) -> dx/dt at (x_t, t)
Direction = Callable[[Mapping[str, Params], Draw], Array]


def tangent(
    velocity: Velocity, x_t: Array, t: Array, x_rate: Array, warmup: Array | float
) -> tuple[Array, Array]:
    """(V, g) at (x_t, t) along dx/dt = x_rate, before normalisation, both [B, ...].

    velocity: (x, t) -> V. warmup: r, in [0, 1]. V keeps its gradient in the parameters; g is
    detached. Raises ValueError if velocity has no forward-mode derivative.
    """
    cos, sin = (align(function(t), x_t) for function in (jnp.cos, jnp.sin))
    directions = cos * sin * x_rate, jnp.cos(t) * jnp.sin(t)
    v, v_rate = forward_derivative(velocity, (x_t, t), directions)
    v_held, v_rate = jax.lax.stop_gradient((v, v_rate))
    return v, -(cos**2) * (v_held - x_rate) - warmup * (cos * sin * x_t + v_rate)


def normalize_tangent(g: Array, c: float) -> Array:
    """g / (||g|| + c): [B, ...], with the norm over all axes but the first."""
    norm = jnp.sqrt(g[0].size * per_example(jnp.square(g)))
    return g / (align(norm, g) + c)


def sample_direction(path: Path) -> Direction:
    """dx/dt of the sample, alpha' x_0 + sigma' eps: sCT."""
    return lambda networks, draw: path.velocity(draw.x_0, draw.eps, draw.t)


def teacher_direction(model: Model, guidance_scale: float) -> Direction:
    """dx/dt at (x_t, t) by the frozen, guided teacher: sCD."""

    def direction(networks: Mapping[str, Params], draw: Draw) -> Array:
        predict = partial(model.predict, networks["teacher"])
        predict = model.guide_teacher(predict, guidance_scale)
        ends = model.denoiser(predict, draw.condition)(draw.x_t, draw.t)
        return model.path.velocity(*ends, draw.t)

    return direction


def network_velocity(model: Model, params: Params, condition: Condition, rng: Key) -> Velocity:
    """V, the velocity that the network predicts, with dropout: (x, t) -> [B, ...]."""

    def velocity(x: Array, t: Array) -> Array:
        prediction = model.predict(params, x, t, t, condition, train=True, rng=rng)
        return convert(prediction, x, t, model.path, source=model.kind, to=KINDS["velocity"])

    return velocity


def tangent_loss(
    model: Model,
    *,
    direction: Direction,
    time_sampler: TimeSampler,
    tangent_warmup: int,
    tangent_scale: float,
    adaptive_weight: bool,
) -> LossFn:
    """The loss of a continuous-time method, made of its parts."""
    path = model.path
    sigma_data = float(path.sigma(jnp.float32(path.t_max)))

    def loss(
        params: Params, networks: Mapping[str, Params], batch: Batch, key: Key, step: Array
    ) -> tuple[Array, Metrics]:
        key_t, key_eps, key_dropout = jax.random.split(key, 3)
        x_0, condition = batch["x"], batch_condition(batch)
        t = time_sampler(key_t, x_0.shape[0])
        eps = jax.random.normal(key_eps, x_0.shape)
        draw = Draw(x_0, eps, path.interpolate(x_0, eps, t), t, t, condition)
        velocity = network_velocity(model, params, condition, key_dropout)
        warmup = jnp.minimum(step / tangent_warmup, 1.0) if tangent_warmup else 1.0
        v, g = tangent(velocity, draw.x_t, t, direction(networks, draw), warmup)
        target = jax.lax.stop_gradient(v) / sigma_data + normalize_tangent(g, tangent_scale)
        error = per_example(squared_error(v / sigma_data, target))
        metrics = noise_level_means("loss", error, t, path)
        metrics |= {"tangent": mean_metric(jnp.sqrt(per_example(jnp.square(g))))}
        if not adaptive_weight:
            return error, metrics
        log_weight = model.network.log_weight(params, path.clock(t))
        return jnp.exp(log_weight) * error - log_weight, metrics

    return loss


def check_continuous_fields(model: Model, tangent_warmup: int, tangent_scale: float) -> None:
    """Raises ValueError for a field out of range, or a model that the method cannot train."""
    if model.path.name != "trigflow":
        raise ValueError(
            f"continuous-time consistency needs path.name=trigflow, not {model.path.name}"
        )
    if tangent_warmup < 0 or tangent_scale <= 0.0:
        raise ValueError(
            "objective needs tangent_warmup >= 0 and tangent_scale > 0, not "
            f"{tangent_warmup} and {tangent_scale}"
        )
    check_boundary(model)


@needs(loss_weight=lambda adaptive_weight: adaptive_weight)
def continuous_training(
    model: Model,
    *,
    time_sampler: Annotated[TimeSampler | None, Part(TIME_SAMPLERS, on_path=True)] = None,
    tangent_warmup: Annotated[int, RUN_LENGTH] = 10_000,
    tangent_scale: float = 0.1,
    adaptive_weight: bool = True,
    spacing: Annotated[Spacing | None, Part(SPACINGS, on_path=True)] = None,
    sample_times: Sequence[float] = (),
) -> Objective:
    """sCT: continuous-time consistency training.

    time_sampler: distribution of t; by default log-normal noise levels, mean -1.0 and std 1.4.
    tangent_warmup: training steps over which r rises to 1.
    tangent_scale: c of the normalisation g / (||g|| + c), with the norm over all dimensions.
    adaptive_weight: whether to learn w(t).
    spacing, sample_times: as for `consistency_sampler`.
    """
    check_continuous_fields(model, tangent_warmup, tangent_scale)
    loss = tangent_loss(
        model,
        direction=sample_direction(model.path),
        time_sampler=time_sampler or log_normal_times(model.path, -1.0, 1.4),
        tangent_warmup=tangent_warmup,
        tangent_scale=tangent_scale,
        adaptive_weight=adaptive_weight,
    )
    return Objective(
        players={"network": Player(model.network, loss, headline="tangent")},
        followers={},
        sample=consistency_sampler(model, spacing or uniform_spacing(model.path), sample_times),
        end_point=denoised_end(model, learned_guidance(1.0)),
    )


@needs(loss_weight=lambda adaptive_weight: adaptive_weight)
def continuous_distillation(
    model: Model,
    *,
    time_sampler: Annotated[TimeSampler | None, Part(TIME_SAMPLERS, on_path=True)] = None,
    tangent_warmup: Annotated[int, RUN_LENGTH] = 10_000,
    tangent_scale: float = 0.1,
    adaptive_weight: bool = True,
    guidance_scale: float = 1.0,
    spacing: Annotated[Spacing | None, Part(SPACINGS, on_path=True)] = None,
    sample_times: Sequence[float] = (),
) -> Objective:
    """sCD: continuous-time consistency distillation of a frozen `teacher` of the same model.

    guidance_scale: guidance of the teacher, form A.

    The other fields are those of `continuous_training`.
    """
    check_continuous_fields(model, tangent_warmup, tangent_scale)
    loss = tangent_loss(
        model,
        direction=teacher_direction(model, guidance_scale),
        time_sampler=time_sampler or log_normal_times(model.path, -1.0, 1.4),
        tangent_warmup=tangent_warmup,
        tangent_scale=tangent_scale,
        adaptive_weight=adaptive_weight,
    )
    spacing = spacing or uniform_spacing(model.path)
    return Objective(
        players={"network": Player(model.network, loss, headline="tangent")},
        followers={},
        sample=consistency_sampler(model, spacing, sample_times, trained_scale=guidance_scale),
        guidance_scale=guidance_scale,
        frozen=("teacher",),
        needs_teacher=True,
        end_point=denoised_end(model, learned_guidance(guidance_scale)),
    )
