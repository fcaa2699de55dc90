"""Consistency trajectory models (Kim et al. 2024, arXiv:2310.02279), without their GAN term.

The network jumps from any t to any earlier s. With (x_0, eps) the endpoints that it predicts from
(x_t, t, s), the jump is a DDIM step to them, on any path:

    G(x_t, t, s) = alpha_s x_0 + sigma_s eps        on `ve`: s / t x_t + (1 - s / t) x_0  (eq. 3)

So G(x, t, t) = x for any network. Training compares two jumps from a trajectory of the teacher, at
the data end ("soft matching", eq. 6):

    x_u   = several solver steps of the teacher from x_t, from t to u,     s <= u < t
    L_CTM = E d( H(G_theta(x_t, t, s)), stop_gradient(H(G(x_u, u, s))) ),   H(x) = G_target(x, s, 0)
    L_DSM = E || prediction_theta(x_t, t, t) - target(x_0, eps, t) ||^2    (denoising.py; eq. 8)
    L     = L_CTM + denoising_weight lambda L_DSM

At u = s it is regression to the solver; with u one step below t and s = 0 it is consistency
distillation (tests). The inner jump of the target has the current weights and the same dropout
mask; H has those of the follower `target`. The target is detached; H passes the gradient on.

lambda = || dL_CTM || / || dL_DSM ||, detached, balances the terms. The code takes the gradients in
the weights of the last layer; here they are those in the output of the network, times the root of
its size, so that lambda depends on neither batch nor image size.

gamma-sampling (their algorithm 3) jumps from t to a noise level sqrt(1 - gamma^2) times that of the
next time, and adds noise up to it. gamma = 0 follows the ODE; gamma = 1 is consistency sampling.

Each row has its own number of solver steps, drawn in proportion to it; the code has one per batch.
Its distance is LPIPS (`objective.distance.name=lpips`, with its published files); here squared L2.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp
from jax import Array

from fewstep.diffusion.guidance import Condition, Predict
from fewstep.diffusion.path import Path
from fewstep.diffusion.spacing import SPACINGS, Spacing, karras_spacing
from fewstep.diffusion.time_sampling import (
    TIME_SAMPLERS,
    TimeSampler,
    karras_times,
    log_normal_times,
)
from fewstep.models.model import Model, check_boundary
from fewstep.objectives.base import (
    Batch,
    Follower,
    Key,
    Metrics,
    Objective,
    Params,
    Player,
    SampleFn,
    batch_condition,
    mean_metric,
    noise_level_means,
)
from fewstep.objectives.consistency import sampling_times
from fewstep.objectives.denoising import prediction_loss
from fewstep.objectives.distances import DISTANCES, Distance, squared_l2
from fewstep.objectives.divergences import inner_product
from fewstep.objectives.followers import constant_ema
from fewstep.objectives.jumps import decode_jump, jump
from fewstep.objectives.needs import needs
from fewstep.objectives.sampling import end_point_fn, learned_guidance, sample_fn
from fewstep.parts import Entry, Part
from fewstep.samplers.ode import STEPS, Step, heun_step, repeat_step
from fewstep.samplers.renoise import renew_noise

# Added to the norm that divides, and largest weight, of the code's lambda.
LEAST_NORM, MOST_BALANCE = 1e-4, 1e4
# The noisier part of Karras spacing from which half of the denoising times come, as in the code.
NOISIER = 0.3


@needs(second_time="time")
def consistency_trajectory(
    model: Model,
    *,
    points: int = 18,
    spacing: Annotated[Spacing | None, Part(SPACINGS, on_path=True)] = None,
    solver_steps: int = 17,
    teacher_solver: Annotated[Step, Entry(STEPS)] = heun_step,
    distance: Annotated[Distance | None, Part(DISTANCES)] = None,
    target_decay: float = 0.999,
    denoising_weight: float = 1.0,
    time_sampler: Annotated[TimeSampler | None, Part(TIME_SAMPLERS, on_path=True)] = None,
    guidance_scale: float = 1.0,
    gamma: float = 0.0,
    sample_times: Sequence[float] = (),
) -> Objective:
    """The CTM objective; needs a frozen `teacher` of the same model.

    points, spacing: the grid of t, u and s, Karras spacing by default (18 on CIFAR-10, else 40).
    solver_steps: most steps of the teacher's solver, from t to u (17 on CIFAR-10, 39 on ImageNet).
    teacher_solver: solver step of the teacher (`samplers.ode`).
    distance: d, squared L2 by default.
    target_decay: EMA decay of the target.
    denoising_weight: weight of the denoising term before its balance; 0 for none.
    time_sampler: t of the denoising term; by default half log-normal, half in the noisier 70
        percent of Karras spacing.
    guidance_scale: guidance of the teacher, form A.
    gamma: share of noise that sampling renews, in [0, 1].
    sample_times: as for `consistency_sampler`.
    """
    check_boundary(model)
    check_trajectory_fields(points, solver_steps, denoising_weight, gamma)
    path, spacing = model.path, spacing or karras_spacing(model.path)
    distance, time_sampler = distance or squared_l2(), time_sampler or denoising_times(path)

    def loss(
        params: Params, networks: Mapping[str, Params], batch: Batch, key: Key, step: Array
    ) -> tuple[Array, Metrics]:
        key_times, key_eps, key_dropout, key_denoising = jax.random.split(key, 4)
        x_0, condition = batch["x"], batch_condition(batch)
        times, s = draw_times(key_times, x_0.shape[0], points - 1, solver_steps, spacing)
        t, u = times[0], times[-1]
        x_t = path.interpolate(x_0, jax.random.normal(key_eps, x_0.shape), t)
        teacher = model.guide_teacher(partial(model.predict, networks["teacher"]), guidance_scale)
        denoise = model.denoiser(teacher, condition)
        x_u = repeat_step(teacher_solver)(denoise, path, x_t, times, None)

        trained = partial(model.predict, params, train=True, rng=key_dropout)
        outer = partial(model.predict, networks["target"])
        end = lambda x: jump(model, outer, x, s, jnp.full_like(s, path.t_min), condition)
        target = jax.lax.stop_gradient(end(jump(model, trained, x_u, u, s, condition)))
        apart = distance.given(networks)
        match = lambda raw: apart(end(decode_jump(model, raw, x_t, t, s)), target)
        rows, norm = with_gradient_norm(match, trained(x_t, t, s, condition))
        metrics = noise_level_means("loss", rows, t, path) | {"loss_match": mean_metric(rows)}
        if denoising_weight == 0.0:
            return rows, metrics
        own, regress = denoising_term(model, params, x_0, condition, time_sampler, key_denoising)
        noise_rows, noise_norm = with_gradient_norm(regress, own)
        balance = jnp.minimum(norm / (noise_norm + LEAST_NORM), MOST_BALANCE)
        metrics |= {"loss_denoising": mean_metric(noise_rows), "balance": mean_metric(balance)}
        return rows + denoising_weight * balance * noise_rows, metrics

    def end_of(predict: Predict, x_t: Array, t: Array, condition: Condition) -> Array:
        return jump(model, predict, x_t, t, jnp.full_like(t, path.t_min), condition)

    return Objective(
        players={"network": Player(model.network, loss, headline="loss_match")},
        followers={"target": Follower("network", constant_ema(target_decay))},
        sample=gamma_sampler(model, spacing, points - 1, gamma, sample_times, guidance_scale),
        guidance_scale=guidance_scale,
        frozen=("teacher",),
        fixed=distance.networks,
        needs_teacher=True,
        end_point=end_point_fn(model.predict, end_of, learned_guidance(guidance_scale)),
    )


def check_trajectory_fields(
    points: int, solver_steps: int, denoising_weight: float, gamma: float
) -> None:
    """Raises ValueError for a field out of range."""
    if points < 2 or not 1 <= solver_steps < points:
        raise ValueError(
            f"objective.solver_steps={solver_steps} must be 1 or more and below "
            f"objective.points={points}"
        )
    if denoising_weight < 0.0 or not 0.0 <= gamma <= 1.0:
        raise ValueError(
            "objective needs denoising_weight of 0 or more and gamma in [0, 1], not "
            f"{denoising_weight:g} and {gamma:g}"
        )


def denoising_term(
    model: Model,
    params: Params,
    x_0: Array,
    condition: Condition,
    time_sampler: TimeSampler,
    key: Key,
) -> tuple[Array, Callable[[Array], Array]]:
    """(output of the network at s = t, the function from it to the denoising loss [B])."""
    key_t, key_eps, key_dropout = jax.random.split(key, 3)
    t, eps = time_sampler(key_t, x_0.shape[0]), jax.random.normal(key_eps, x_0.shape)
    x_t = model.path.interpolate(x_0, eps, t)
    raw = model.predict(params, x_t, t, t, condition, train=True, rng=key_dropout)
    return raw, lambda raw: prediction_loss(model, raw, x_0, eps, t)[0]


def with_gradient_norm(term: Callable[[Array], Array], raw: Array) -> tuple[Array, Array]:
    """(rows of a term of the output `raw`, a norm of d mean(rows) / d raw, detached).

    The norm over the batch is multiplied by the root of its size: for a mean squared error it is
    twice the root mean square error. A row depends on its row of `raw` alone. So one gradient,
    taken here, serves the norm and the loss, whose rows are linear in `raw` with it: `term` may
    hold a network.
    """
    held = jax.lax.stop_gradient(raw)
    rows, pullback = jax.vjp(term, held)
    (slope,) = pullback(jnp.ones_like(rows))
    norm = jnp.sqrt(raw.size * jnp.sum(slope**2)) / rows.size
    return rows + inner_product(slope, raw - held), norm


def draw_times(
    key: Key, count: int, cells: int, most: int, spacing: Spacing
) -> tuple[Array, Array]:
    """(times of the solver from t to u [most + 1, count], s [count]) on a grid of `cells` cells.

    The number n of steps has probability proportional to n, t and s are uniform given n. The times
    of a row with fewer than `most` steps end with several u, and steps of no length change nothing.
    """
    first, second, third = (jax.random.uniform(own, (count,)) for own in jax.random.split(key, 3))
    # The inverse of P(n <= k) = k (k + 1) / (most (most + 1)).
    root = jnp.sqrt(1.0 + 4.0 * first * most * (most + 1))
    n = jnp.clip(jnp.ceil(0.5 * (root - 1.0)), 1, most)
    start = n + jnp.minimum(jnp.floor(second * (cells - n + 1)), cells - n)
    u = start - n
    s = jnp.minimum(jnp.floor(third * (u + 1)), u)
    points = jnp.maximum(start - jnp.arange(most + 1.0)[:, None], u)
    return spacing.time(points / cells), spacing.time(s / cells)


def denoising_times(path: Path) -> TimeSampler:
    """Every second row log-normal, the others uniform in the noisier part of Karras spacing."""
    normal, noisy = log_normal_times(path), karras_times(path, lowest=NOISIER)

    def sample(key: Key, count: int) -> Array:
        keys = jax.random.split(key, 3)
        first = jax.random.bernoulli(keys[2]) if count == 1 else True  # a row alone takes turns
        even = (jnp.arange(count) % 2 == 0) == first
        return jnp.where(even, normal(keys[0], count), noisy(keys[1], count))

    return sample


def gamma_sampler(
    model: Model,
    spacing: Spacing,
    cells: int,
    gamma: float,
    sample_times: Sequence[float],
    trained_scale: float,
) -> SampleFn:
    """gamma-sampling; times as those of `consistency_sampler`, and raises ValueError as it does."""
    path = model.path
    times_of = sampling_times(path, spacing, cells, sample_times)

    def solve(predict: Predict, eps: Array, condition: Condition, keys: Array, steps: int) -> Array:
        own_jump = lambda x, t, s: jump(model, predict, x, t, s, condition)
        times = jnp.append(times_of(steps), path.t_min)
        return renew_noise(own_jump, path, path.prior(eps), times, keys, gamma)

    return sample_fn(model.predict, solve, learned_guidance(trained_scale))
