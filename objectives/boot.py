"""BOOT (Gu et al. 2023, arXiv:2306.05544): a one-step generator from a teacher, without data.

The network maps noise alone, x_T = sigma_T eps, and a time t to the signal y_t of the trajectory
that starts there:

    x_t = alpha_t y_t + sigma_t eps,     dy/dt = -lambda' (D(x_t, t) - y_t)          (Signal-ODE)

with D the data that the teacher predicts and lambda = log(sigma / alpha). So y_T is the teacher's
prediction at pure noise, and y at the data end is the sample. Training steps from t to an s nearer
the data, with the network's own y_t as the start:

    L_BS = E d( y_theta(eps, s), stop_gradient((x_s - sigma_s eps) / alpha_s) )
           x_s = one solver step of the teacher from alpha_t y_t + sigma_t eps, from t to s
    L_BC = E d( y_theta(eps, T), D(sigma_T eps, T) )
    L    = L_BS + boundary_weight L_BC

By DDIM the target is y_t + (1 - rho_s / rho_t) (D - y_t), rho = sigma / alpha, which is the paper's
(tests); at t = T it is D. Errors grow from T on, so the boundary condition has a term of its own. A
perfect network makes the samples of the solver in 1 / gap steps. The start y_t is the network
itself, detached, without an average, as in the paper; the teacher is frozen.

y is the data that the network's output stands for at (x_T, T), and t is its second time. A network
that starts as the teacher, without effect of the second time, satisfies the boundary condition.

Where the paper and this file differ: the paper divides L_BS by gap^2, which is constant here and so
a part of boundary_weight, and has perceptual distances, which `objective.distance` offers. s is any
time from data to one gap below T, drawn uniformly in the spacing. The paper published no code.
"""

from collections.abc import Mapping
from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp
from jax import Array

from fewstep.diffusion.guidance import Condition, Predict
from fewstep.diffusion.path import align
from fewstep.diffusion.prediction import endpoints
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
    noise_level_means,
)
from fewstep.objectives.distances import DISTANCES, Distance, squared_l2
from fewstep.objectives.needs import needs
from fewstep.objectives.sampling import learned_guidance, sample_fn
from fewstep.parts import Entry, Part
from fewstep.samplers.grids import StepsError
from fewstep.samplers.ode import STEPS, Step, ddim_step


@needs(second_time="time")
def boot(
    model: Model,
    *,
    gap: float = 0.04,
    spacing: Annotated[Spacing | None, Part(SPACINGS, on_path=True)] = None,
    teacher_solver: Annotated[Step, Entry(STEPS)] = ddim_step,
    distance: Annotated[Distance | None, Part(DISTANCES)] = None,
    boundary_weight: float = 1.0,
    guidance_scale: float = 1.0,
) -> Objective:
    """The BOOT objective; needs a frozen `teacher` of the same model, and reads no images.

    gap: size of the teacher's step, a fraction of the spacing.
    spacing: uniform in the path's time by default.
    teacher_solver: solver step of the teacher (`samplers.ode`).
    distance: d, squared L2 by default.
    boundary_weight: weight of the boundary condition.
    guidance_scale: guidance of the teacher, form A.

    Raises ValueError for a prediction that says nothing about the data at pure noise.
    """
    check_decoding(model, LEAST_ALPHA_ONE_STEP)
    if not 0.0 < gap < 1.0 or boundary_weight < 0.0:
        raise ValueError(
            "objective needs gap between 0 and 1 and boundary_weight of 0 or more, not "
            f"{gap:g} and {boundary_weight:g}"
        )
    path, spacing = model.path, spacing or uniform_spacing(model.path)
    distance = distance or squared_l2()

    def loss(
        params: Params, networks: Mapping[str, Params], batch: Batch, key: Key, step: Array
    ) -> tuple[Array, Metrics]:
        key_t, key_eps, key_dropout, key_boundary = jax.random.split(key, 4)
        condition = batch_condition(batch)
        rows = condition["label"].shape[0]
        eps = jax.random.normal(key_eps, (rows, *model.network.shape))
        u = jax.random.uniform(key_t, (rows,), minval=gap)
        t, s, end = spacing.time(u), spacing.time(u - gap), jnp.full((rows,), path.t_max)
        teacher = model.guide_teacher(partial(model.predict, networks["teacher"]), guidance_scale)
        denoise = model.denoiser(teacher, condition)

        y_t = jax.lax.stop_gradient(
            signal(model, partial(model.predict, params), eps, t, condition)
        )
        x_s = teacher_solver(denoise, path, path.interpolate(y_t, eps, t), t, s)
        target = (x_s - align(path.sigma(s), eps) * eps) / align(path.alpha(s), eps)
        trained = partial(model.predict, params, train=True)
        y_s = signal(model, partial(trained, rng=key_dropout), eps, s, condition)
        y_end = signal(model, partial(trained, rng=key_boundary), eps, end, condition)
        between = distance.given(networks)
        apart = between(y_s, target)
        boundary = between(y_end, denoise(path.prior(eps), end).x_0)
        metrics = noise_level_means("loss", apart, t, path)
        metrics |= {"loss_step": mean_metric(apart), "loss_boundary": mean_metric(boundary)}
        return apart + boundary_weight * boundary, metrics

    return Objective(
        players={"network": Player(model.network, loss)},
        followers={},
        sample=signal_sampler(model, guidance_scale),
        guidance_scale=guidance_scale,
        frozen=("teacher",),
        fixed=distance.networks,
        needs_teacher=True,
        reads=("labels",),
    )


def signal(model: Model, predict: Predict, eps: Array, t: Array, condition: Condition) -> Array:
    """y_t of the trajectory from sigma_T eps: [B, ...]. t: [B]."""
    x, end = model.path.prior(eps), jnp.full_like(t, model.path.t_max)
    return endpoints(model.kind, predict(x, end, t, condition), x, end, model.path).x_0


def signal_sampler(model: Model, trained_scale: float) -> SampleFn:
    """Sampling in one step: the signal at the data end."""

    def check_steps(steps: int) -> None:
        if steps != 1:
            raise StepsError(f"a BOOT student samples in 1 step, not in {steps}")

    def solve(predict: Predict, eps: Array, condition: Condition, keys: Array, steps: int) -> Array:
        return signal(model, predict, eps, jnp.full(eps.shape[:1], model.path.t_min), condition)

    return sample_fn(model.predict, solve, learned_guidance(trained_scale), check_steps)
