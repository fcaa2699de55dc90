"""DSNO (Zheng et al. 2023, arXiv:2211.13449): a whole trajectory of the teacher in one evaluation.

The network maps noise x_T = sigma_T eps and M times at once to the M points of the trajectory of
the teacher's solver that starts there. Each time is a row, and temporal Fourier layers between the
blocks mix the rows of a trajectory (models/temporal.py, `model.trajectory` = M).

    x_m = the solver's point at t_m,   t_1 > ... > t_M = t_min
    L   = mean over m of w(t_m) d( G_theta(x_T, T, t_m), x_m ),    w = alpha / sigma in [1, 1e4]

G is the jump of jumps.py: a DDIM step from T to t_m, with the network's prediction at x_T. So the
network may start as the teacher. The target carries no gradient, because the teacher is frozen; it
is a function of eps, so the minimum of the loss is zero. Sampling evaluates all times together and
takes the last. With one time it is regression to the solver's samples (tests).

Where the paper, its code and this file differ: the trajectories are computed for each batch and not
stored; they cost `solver_steps` evaluations of the teacher. The times are equally spaced in
`spacing`; the code has on CIFAR-10 a quadratic grid of its 512 steps, denser at the data end, and
on ImageNet-64 an equal one of 16. d is squared L2, where the code has features of a VGG network on
CIFAR-10, and L1 on ImageNet-64.
"""

from collections.abc import Mapping
from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp
from jax import Array

from fewstep.diffusion.guidance import Condition, Predict
from fewstep.diffusion.path import Path
from fewstep.diffusion.spacing import SPACINGS, Spacing, uniform_spacing
from fewstep.models.model import LEAST_ALPHA_ONE_STEP, Model, check_decoding
from fewstep.objectives.base import (
    Batch,
    Key,
    Metrics,
    Objective,
    Params,
    Player,
    SampleFn,
    batch_condition,
    mean_metric,
)
from fewstep.objectives.distances import DISTANCES, Distance, check_compares_any, squared_l2
from fewstep.objectives.jumps import jump
from fewstep.objectives.needs import needs
from fewstep.objectives.sampling import learned_guidance, sample_fn
from fewstep.parts import Entry, Part
from fewstep.samplers.grids import StepsError, time_grid
from fewstep.samplers.ode import STEPS, Step, ddim_step, repeat_step

# Largest weight w (the paper's code).
MOST_WEIGHT = 1e4


@needs(second_time="time", trajectory=lambda times: times)
def dsno(
    model: Model,
    *,
    times: int = 4,
    solver_steps: int = 64,
    teacher_solver: Annotated[Step, Entry(STEPS)] = ddim_step,
    spacing: Annotated[Spacing | None, Part(SPACINGS, on_path=True)] = None,
    distance: Annotated[Distance | None, Part(DISTANCES)] = None,
    guidance_scale: float = 1.0,
) -> Objective:
    """The DSNO objective; needs a frozen `teacher` of the same model, and reads no images.

    times: M, the points of a trajectory.
    solver_steps: steps of the teacher's solver, a multiple of `times`.
    teacher_solver: solver step of the teacher (`samplers.ode`).
    spacing: of the solver's steps, uniform in the path's time by default.
    distance: d, squared L2 by default.
    guidance_scale: guidance of the teacher, form A.

    Batches need a multiple of `times` rows.
    """
    check_decoding(model, LEAST_ALPHA_ONE_STEP)
    if times < 1 or solver_steps < 1 or solver_steps % times:
        raise ValueError(
            f"objective.solver_steps={solver_steps} must be a multiple of objective.times={times}, "
            "both 1 or more"
        )
    path, distance = model.path, distance or squared_l2()
    check_compares_any(distance, "objective.distance", "noisy points of trajectories")
    spacing = spacing or uniform_spacing(path)

    def loss(
        params: Params, networks: Mapping[str, Params], batch: Batch, key: Key, step: Array
    ) -> tuple[Array, Metrics]:
        key_eps, key_dropout = jax.random.split(key)
        condition = batch_condition(batch)
        eps = jax.random.normal(key_eps, (*condition["label"].shape, *model.network.shape))
        teacher = model.guide_teacher(partial(model.predict, networks["teacher"]), guidance_scale)
        denoise, grid = model.denoiser(teacher, condition), time_grid(spacing, solver_steps)
        ends, x, size = [], path.prior(eps), solver_steps // times
        for m in range(times):
            part = grid[m * size : (m + 1) * size + 1]
            x = repeat_step(teacher_solver)(denoise, path, x, part, None)
            ends.append(x)
        target = jnp.stack(ends, axis=1).reshape(-1, *eps.shape[1:])
        trained = partial(model.predict, params, train=True, rng=key_dropout)
        made = trajectory(model, trained, eps, grid[size::size], condition)
        apart = distance(made, target).reshape(-1, times)
        weights = root_snr(path, grid[size::size])
        metrics = {f"error_{m + 1}": mean_metric(apart[:, m]) for m in range(times)}
        return jnp.mean(weights * apart, axis=1), metrics

    return Objective(
        players={"network": Player(model.network, loss)},
        followers={},
        sample=last_time_sampler(model, time_grid(spacing, times)[1:], guidance_scale),
        guidance_scale=guidance_scale,
        frozen=("teacher",),
        needs_teacher=True,
        reads=("labels",),
    )


def root_snr(path: Path, t: Array) -> Array:
    """w(t) = alpha / sigma, between 1 and 1e4."""
    return jnp.clip(1.0 / path.rho(t), 1.0, MOST_WEIGHT)


def trajectory(
    model: Model, predict: Predict, eps: Array, times: Array, condition: Condition
) -> Array:
    """The points of the trajectories of eps [B, ...] at `times` [M]: [B M, ...], rows by time."""
    count, rows = times.shape[0], eps.shape[0]
    repeated = jax.tree.map(
        lambda a: jnp.repeat(a, count, axis=0), (model.path.prior(eps), condition)
    )
    end = jnp.full(rows * count, model.path.t_max)
    return jump(model, predict, repeated[0], end, jnp.tile(times, rows), repeated[1])


def last_time_sampler(model: Model, times: Array, trained_scale: float) -> SampleFn:
    """Sampling in one evaluation of all times: the point at the last."""

    def check_steps(steps: int) -> None:
        if steps != 1:
            raise StepsError(f"a DSNO student samples in 1 step, not in {steps}")

    def solve(predict: Predict, eps: Array, condition: Condition, keys: Array, steps: int) -> Array:
        return trajectory(model, predict, eps, times, condition)[
            times.shape[0] - 1 :: times.shape[0]
        ]

    return sample_fn(model.predict, solve, learned_guidance(trained_scale), check_steps)
