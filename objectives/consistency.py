"""Consistency models: the parts that distillation and training share (Song et al. 2023).

A consistency function f(x_t, t) maps any point of a trajectory of the probability-flow ODE to the
data end of that trajectory. `Model.consistency` satisfies the boundary f(x, t_min) = x by
construction. Training compares f at two times s < t:

    L = E w(t, s) d( f_theta(x_t, t), stop_gradient(f_target(x_s, s)) )

Methods differ in x_s (a solver step of a teacher, or the same data and noise as x_t), in the pair
of times, in the distance d, in the weight w, and in the target. The target is an average of the
network (the follower `target`) or the network itself, detached. It carries no gradient. A gradient
through it would pull both sides together, towards a constant, and would no longer be the gradient
of distillation (docs/consistency.md). Both sides use the same dropout mask, so their difference
does not include that of two masks (Song & Dhariwal 2023; Geng et al. 2024).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fewstep.diffusion.guidance import Condition, Predict, draw_scale
from fewstep.diffusion.path import Path
from fewstep.diffusion.spacing import Spacing
from fewstep.diffusion.time_pairs import Curriculum, PairSampler, last_points, noise_gap
from fewstep.models.model import Model
from fewstep.objectives.base import (
    Batch,
    Key,
    LossFn,
    Metrics,
    Params,
    SampleFn,
    batch_condition,
    mean_metric,
    noise_level_means,
)
from fewstep.objectives.distances import Distance
from fewstep.objectives.sampling import learned_guidance, sample_fn
from fewstep.samplers.grids import StepsError, time_grid
from fewstep.samplers.ode import ddim_step
from fewstep.samplers.renoise import renoise


class Draw(NamedTuple):
    """Points x_t, and the time s <= t of the second point of their row.

    x_t: [B, ...]. t, s: [B]. x_0, eps: data and noise of x_t = alpha x_0 + sigma eps; None if x_t
    was made otherwise.
    """

    x_0: Array | None
    eps: Array | None
    x_t: Array
    t: Array
    s: Array
    condition: Condition


# (every network by name, draw) -> x_s
SecondPoint = Callable[[Mapping[str, Params], Draw], Array]
# (every network by name, batch, key, step) -> (draw, x_s)
PairPoints = Callable[[Mapping[str, Params], Batch, Key, Array], tuple[Draw, Array]]
# (path, t, s) -> w, [B]
Weighting = Callable[[Path, Array, Array], Array]


def velocity_weight(path: Path, t: Array) -> Array:
    """(d velocity / d x_0)^2 at a fixed x_t, [B]: errors of x_0 become those of the velocity.

    On the linear path 1 / t^2.
    """
    return (path.alpha_rate(t) - path.sigma_rate(t) / path.rho(t)) ** 2


WEIGHTINGS: dict[str, Weighting] = {
    "uniform": lambda path, t, s: jnp.ones_like(t),
    "inverse_gap": lambda path, t, s: 1.0 / noise_gap(path, t, s),
    "velocity": lambda path, t, s: velocity_weight(path, t),
}


def same_noise_point(path: Path) -> SecondPoint:
    """x_s = alpha_s x_0 + sigma_s eps, with the data and noise of x_t: consistency training."""
    return lambda networks, draw: path.interpolate(draw.x_0, draw.eps, draw.s)


def consistency_distance(
    model: Model,
    distance: Distance,
    params: Params,
    target: Params,
    draw: Draw,
    x_s: Array,
    rng: Key,
) -> Array:
    """d( f_params(x_t, t), stop_gradient(f_target(x_s, s)) ): [B]. Both sides share one mask."""
    f_t = model.consistency(params, draw.x_t, draw.t, draw.condition, train=True, rng=rng)
    f_s = model.consistency(target, x_s, draw.s, draw.condition, train=True, rng=rng)
    return distance(f_t, jax.lax.stop_gradient(f_s))


def image_rows(batch: Batch) -> tuple[Array, Condition]:
    """(images of a batch, their condition)."""
    return batch["x"], batch_condition(batch)


def noised_points(
    model: Model,
    second_point: SecondPoint,
    pairs: PairSampler,
    guidance_range: Sequence[float] = (),
    rows_of: Callable[[Batch], tuple[Array, Condition]] = image_rows,
) -> PairPoints:
    """Pairs whose first point is a row of the batch with noise.

    guidance_range: (low, high) of a guidance scale that is drawn for each row and that conditions
        the network, or () for none.
    rows_of: batch -> (x_0, condition).
    """

    def points(
        networks: Mapping[str, Params], batch: Batch, key: Key, step: Array
    ) -> tuple[Draw, Array]:
        key_t, key_eps, key_scale = jax.random.split(key, 3)
        x_0, condition = rows_of(batch)
        condition = draw_scale(key_scale, condition, guidance_range)
        t, s = pairs(key_t, x_0.shape[0], step)
        eps = jax.random.normal(key_eps, x_0.shape)
        draw = Draw(x_0, eps, model.path.interpolate(x_0, eps, t), t, s, condition)
        return draw, second_point(networks, draw)

    return points


def pair_loss(
    model: Model, points: PairPoints, *, distance: Distance, weighting: Weighting
) -> LossFn:
    """The loss of a consistency method, made of its parts."""
    path = model.path

    def loss(
        params: Params, networks: Mapping[str, Params], batch: Batch, key: Key, step: Array
    ) -> tuple[Array, Metrics]:
        key_draw, key_dropout = jax.random.split(key)
        draw, x_s = points(networks, batch, key_draw, step)
        # Without a follower the network is its own target.
        target = networks.get("target", params)
        apart = consistency_distance(
            model, distance.given(networks), params, target, draw, x_s, key_dropout
        )
        metrics = noise_level_means("loss", apart, draw.t, path)
        metrics |= {"noise_gap": mean_metric(noise_gap(path, draw.t, draw.s))}
        return weighting(path, draw.t, draw.s) * apart, metrics

    return loss


def consistency_sampler(
    model: Model,
    spacing: Spacing,
    sample_times: Sequence[float] = (),
    *,
    curriculum: Curriculum | None = None,
    trained_scale: float = 1.0,
    guidance_range: Sequence[float] = (),
) -> SampleFn:
    """Consistency sampling: starts at t_max and re-noises to the times in between.

    sample_times: the times after t_max, descending, for len(sample_times) + 1 sampling steps. Any
        other number of steps divides the spacing equally.
    curriculum: sizes of the training grid. Each time moves to the nearest point of the last grid,
        because the network is arbitrary at times that it has not seen. While the grid still grows,
        its last size has such times too.
    trained_scale: the guidance scale of training.
    guidance_range: the scales that may condition the network instead, or ().

    Raises ValueError for times outside the path, and for times that are too close for the grid.
    """
    path = model.path
    cells = last_points(curriculum) - 1 if curriculum else None
    times_of = sampling_times(path, spacing, cells, sample_times)

    def solve(predict: Predict, eps: Array, condition: Condition, keys: Array, steps: int) -> Array:
        denoise = model.denoiser(predict, condition)
        f = lambda x, t: ddim_step(denoise, path, x, t, jnp.full_like(t, path.t_min))
        return renoise(f, path, path.prior(eps), times_of(steps), keys)

    return sample_fn(model.predict, solve, learned_guidance(trained_scale, guidance_range))


def sampling_times(
    path: Path, spacing: Spacing, cells: int | None, sample_times: Sequence[float]
) -> Callable[[int], Array]:
    """Number of sampling steps -> the times at which they start: [steps], descending from t_max.

    cells: of the training grid, to whose points the times move, or None. sample_times: as for
    `consistency_sampler`. Raises ValueError as it does.
    """
    check_times(path, sample_times)

    def times_of(steps: int) -> Array:
        with jax.ensure_compile_time_eval():
            if steps == len(sample_times) + 1:
                times = jnp.asarray([path.t_max, *sample_times], jnp.float32)
            else:
                times = time_grid(spacing, steps)[:-1]
            return snap_to_grid(spacing, cells, times) if cells else times

    times_of(len(sample_times) + 1)  # refuses bad times before any training
    return times_of


def snap_to_grid(spacing: Spacing, cells: int, times: Array) -> Array:
    """The nearest points of a grid of `cells` cells, without its data end: [N].

    times: [N], descending. Raises StepsError for more times than cells, and ValueError for two
    times with the same nearest point.
    """
    if times.shape[0] > cells:
        raise StepsError(
            f"this consistency model was trained on {cells + 1} times, so it samples in at most "
            f"{cells} steps, not in {times.shape[0]}"
        )
    points = np.maximum(np.round(np.asarray(spacing.fraction(times)) * cells), 1.0)
    if (np.diff(points) >= 0).any():
        raise ValueError(
            f"objective.sample_times are too close for the {cells + 1} times that this model was "
            "trained on: two of them have the same nearest time; move them apart"
        )
    return spacing.time(jnp.asarray(points, jnp.float32) / cells)


def check_times(path: Path, times: Sequence[float]) -> None:
    """Raises ValueError unless the times descend and lie inside the path."""
    inside = all(path.t_min < t < path.t_max for t in times)
    if not inside or (np.diff(times) >= 0).any():
        raise ValueError(
            f"objective.sample_times={tuple(times)} must descend strictly between "
            f"t_max={path.t_max:g} and t_min={path.t_min:g} of path.name={path.name}"
        )


def check_guidance_range(guidance_range: Sequence[float], scale: float) -> None:
    """Raises ValueError unless the range is empty, or (low, high) with the scale inside."""
    if not guidance_range:
        return
    if len(guidance_range) != 2 or not 0.0 <= guidance_range[0] <= guidance_range[1]:
        raise ValueError(
            f"objective.guidance_range={tuple(guidance_range)} must be (low, high), "
            "0 <= low <= high"
        )
    low, high = guidance_range
    if not low <= scale <= high:
        raise ValueError(
            f"objective.guidance_scale={scale:g}, the default of sampling, must be in "
            f"objective.guidance_range, {low:g} to {high:g}"
        )
