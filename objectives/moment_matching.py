"""Moment matching (Salimans et al. 2024, arXiv:2406.04103): a generator of a few steps.

The student g maps noised data to a sample x_g; an ancestral step from t to s makes of it a point
with less noise. If the student is right, such points are distributed as noised data:

    z_t = alpha_t x_0 + sigma_t eps,     (x_g, eps_g) = data and noise as g predicts at (z_t, t)
    z_s ~ q(z_s | z_t, x_g):   z_s = alpha_s x_g + sigma_s (r eps_g + sqrt(1 - r^2) n),
                               r = rho_s / rho_t,  rho = sigma / alpha,  n ~ N(0, I)

s is uniform in the spacing, and t lies up to 1 / k of it above, for sampling in k steps or more. In
this form z_s is a noised sample, like that of a one-step generator, with a noise that partly comes
from z_t (tests: it is the posterior of DDPM). Matched are the means E[x_g | z_s] and E[x_0 | z_s],
which is the teacher's prediction D(z_s). A fake score F estimates the first. Algorithm 2 updates
one of the two networks in turn; here both are updated in each step, F first:

    L_F = E || F(z_s) - x_g ||^2 + || F(z_s) - D(z_s) ||^2
    L   = E (F(z_s) - D(z_s))^T x_g,     F(z_s) - D(z_s) detached

Errors in L_F are those of the kind of prediction, as in the training of the teacher; in L they are
errors of x_0. The second term of L_F keeps F near the teacher. The minimiser is the mean of
E[x_g | z_s] and D, so the difference has half the length and the same direction. With z_t of pure
noise alone L is the loss of Diff-Instruct (divergences.py).

parameter_matching.py has the second form of the paper, without F.
"""

from collections.abc import Mapping
from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp
from jax import Array

from fewstep.diffusion.guidance import Condition, Predict
from fewstep.diffusion.path import Path, align
from fewstep.diffusion.spacing import SPACINGS, Spacing, uniform_spacing
from fewstep.models.model import LEAST_ALPHA_ONE_STEP, Model, check_decoding
from fewstep.objectives.base import (
    SHARED,
    Batch,
    Key,
    LossFn,
    Metrics,
    Objective,
    Params,
    Player,
    SampleFn,
    Share,
    batch_condition,
    mean_metric,
    per_example,
)
from fewstep.objectives.denoising import prediction_loss
from fewstep.objectives.distances import squared_error
from fewstep.objectives.distribution_matching import generator_loss
from fewstep.objectives.divergences import integral_kl
from fewstep.objectives.needs import needs
from fewstep.objectives.sampling import learned_guidance, sample_fn
from fewstep.parts import Part
from fewstep.samplers.grids import StepsError, time_grid
from fewstep.samplers.sde import ancestral


@needs()
def moment_matching(
    model: Model,
    *,
    least_steps: int = 8,
    spacing: Annotated[Spacing | None, Part(SPACINGS, on_path=True)] = None,
    guidance_scale: float = 1.0,
) -> Objective:
    """Moment matching with a fake score; needs a frozen `teacher` of the same model.

    least_steps: k, the fewest sampling steps that the student is trained for.
    spacing: of s, t and the sampling steps, uniform in the path's time by default.
    guidance_scale: guidance of the teacher, form A.
    """
    check_decoding(model, LEAST_ALPHA_ONE_STEP)
    spacing = spacing or uniform_spacing(model.path)
    fake_score = Player(model.network, regularised_fake_loss(model, guidance_scale))
    # The minimum of L_F is the middle of E[x_g | z_s] and the teacher.
    mean = lambda point: 2.0 * point.fake - point.teacher
    loss = generator_loss(model, integral_kl(), False, guidance_scale, mean)
    return Objective(
        players={"fake_score": fake_score, "network": Player(model.network, loss, headline="gap")},
        followers={},
        sample=ancestral_sampler(model, spacing, least_steps, guidance_scale),
        guidance_scale=guidance_scale,
        frozen=("teacher",),
        needs_teacher=True,
        share=share_steps(model, least_steps, spacing),
        init_from=dict.fromkeys(("fake_score", "network"), "teacher"),
    )


def share_steps(model: Model, least_steps: int, spacing: Spacing) -> Share:
    """Shares {"x_g", "t", "eps"}: samples of the student, and times s and noise of z_s.

    Raises ValueError for fewer than one step.
    """
    if least_steps < 1:
        raise ValueError(f"objective.least_steps={least_steps} must be 1 or more")

    def share(networks: Mapping[str, Params], batch: Batch, key: Key) -> dict[str, Array]:
        key_s, key_gap, key_eps, key_noise, key_dropout = jax.random.split(key, 5)
        x_0, path = batch["x"], model.path
        low = jax.random.uniform(key_s, x_0.shape[:1])
        gap = (1.0 - jax.random.uniform(key_gap, x_0.shape[:1])) / least_steps  # above 0
        s, t = spacing.time(low), spacing.time(jnp.minimum(low + gap, 1.0))
        z_t = path.interpolate(x_0, jax.random.normal(key_eps, x_0.shape), t)
        ends = model.endpoints(
            networks["network"], z_t, t, batch_condition(batch), train=True, rng=key_dropout
        )
        noise = jax.random.normal(key_noise, x_0.shape)
        return {"x_g": ends.x_0, "t": s, "eps": posterior_noise(path, ends.eps, noise, t, s)}

    return share


def posterior_noise(path: Path, eps: Array, noise: Array, t: Array, s: Array) -> Array:
    """The noise of z_s ~ q(z_s | z_t, x_0), for z_t = alpha_t x_0 + sigma_t eps. t, s: [B]."""
    r = align(path.rho(s) / path.rho(t), eps)
    return r * eps + jnp.sqrt(jnp.maximum(1.0 - r**2, 0.0)) * noise


def regularised_fake_loss(model: Model, guidance_scale: float) -> LossFn:
    """L_F: denoising of the student's samples, and the distance to the teacher."""

    def loss(
        params: Params, networks: Mapping[str, Params], batch: Batch, key: Key, step: Array
    ) -> tuple[Array, Metrics]:
        (key_dropout,) = jax.random.split(key, 1)
        shared, condition = batch[SHARED], batch_condition(batch)
        x_g, s, eps = (shared[name] for name in ("x_g", "t", "eps"))
        z_s = model.path.interpolate(x_g, eps, s)
        fake = model.predict(params, z_s, s, s, condition, train=True, rng=key_dropout)
        denoising, metrics = prediction_loss(model, fake, x_g, eps, s)
        teacher = model.guide_teacher(partial(model.predict, networks["teacher"]), guidance_scale)
        apart = per_example(squared_error(fake, teacher(z_s, s, s, condition)))
        return denoising + apart, metrics | {"teacher_gap": mean_metric(apart)}

    return loss


def ancestral_sampler(
    model: Model, spacing: Spacing, least_steps: int, trained_scale: float
) -> SampleFn:
    """Ancestral sampling in `least_steps` steps or more (their algorithm 1)."""

    def check_steps(steps: int) -> None:
        if steps < least_steps:
            raise StepsError(
                f"this moment-matching student was trained for {least_steps} steps or more "
                f"(objective.least_steps), not for {steps}"
            )

    def solve(predict: Predict, eps: Array, condition: Condition, keys: Array, steps: int) -> Array:
        denoise, path = model.denoiser(predict, condition), model.path
        return ancestral()(denoise, path, path.prior(eps), time_grid(spacing, steps), keys)

    return sample_fn(model.predict, solve, learned_guidance(trained_scale), check_steps)
