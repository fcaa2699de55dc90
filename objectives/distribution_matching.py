"""Distribution matching: a one-step generator from a teacher, without data.

    x_g = G_theta(eps_1)          the generator
    x_t = alpha x_g + sigma eps   t from `time_sampler`
    L   = E w(t) surrogate(x_g, fake(x_t), teacher(x_t))         in theta: objectives/divergences.py

There are two players, updated in this order. The fake score is a denoiser of the same model. It
learns by denoising fresh samples of the generator, so that fake(x_t) = E[x_g | x_t]. The generator
makes one update for every `fake_score_updates` updates of the fake score. Both start as copies of
the teacher. The teacher is frozen and may be guided (form A); the fake score is not guided.
Gradients reach the generator through x_g and x_t only, because teacher and fake score are not the
differentiated argument of its loss.

A training step evaluates the generator once. Both losses use the same x_g, each with its own t and
eps. For a fixed fake score this does not change the expected gradient of either loss, but the two
gradients of one step are no longer independent. The order of updates is ours: DMD2's code shares
x_g too but updates the generator first, and the code of SiD and Diff-Instruct draws fresh noise for
the generator. Here the fake score has just made an update on these x_g when the generator uses it.
This biases the generator's gradient by the size of that update over the number of rows: 1e-5 to
3e-5 of the gradient, measured.

With `joint` both losses use the same x_t too. One evaluation of the fake score, before its update,
serves both: this saves one of SIM's ten forward passes per image and removes the bias. (With
micro-batches each player evaluates it again, so nothing is saved. With dropout the generator's loss
uses the fake score's mask.)

Batches have labels only. Methods differ in the divergence and in `normalize`:

    sim             score_implicit_matching                Luo et al. 2024
    sid             score_identity, normalize              Zhou et al. 2024
    diff_instruct   integral_kl                            Luo et al. 2023
    dmd             integral_kl, normalize                 Yin et al. 2024, as in DMD2 (no alpha_t)

`normalize` divides each row by the detached mean absolute error of the teacher, |x_g - teacher|, as
the code of SiD and DMD does. Rows that the teacher predicts worse then count less. The divisor
depends on x_g, not only on x_t and t, so the loss is no longer exactly that of the divergence. A
generator that matches the teacher still has zero gradient.

The loss alone does not show whether a run is healthy; see objectives/health.py.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp
from jax import Array

from fewstep.diffusion.guidance import Condition, Predict, null_condition
from fewstep.diffusion.path import align
from fewstep.diffusion.time_sampling import TIME_SAMPLERS, TimeSampler, log_normal_times
from fewstep.models.model import Model, check_decoding
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
    per_example,
)
from fewstep.objectives.denoising import denoising_loss, prediction_loss
from fewstep.objectives.distances import DISTANCES, Distance, squared_l2
from fewstep.objectives.divergences import DIVERGENCES, Divergence, Point, score_implicit_matching
from fewstep.objectives.generators import Generator, one_step_generator
from fewstep.objectives.health import health_metrics
from fewstep.objectives.needs import needs
from fewstep.objectives.pairs import add_regression
from fewstep.objectives.sampling import learned_guidance, sample_fn
from fewstep.parts import Part
from fewstep.samplers.grids import StepsError

# Smallest divisor of a row, a mean absolute error of the teacher (SiD's code has 1e-5).
LEAST_ERROR = 1e-5


@needs()
def distribution_matching(
    model: Model,
    *,
    divergence: Annotated[Divergence | None, Part(DIVERGENCES)] = None,
    sigma_init: float = 2.5,
    time_sampler: Annotated[TimeSampler | None, Part(TIME_SAMPLERS, on_path=True)] = None,
    fake_time_sampler: Annotated[TimeSampler | None, Part(TIME_SAMPLERS, on_path=True)] = None,
    normalize: bool = False,
    guidance_scale: float = 1.0,
    fake_score_updates: int = 1,
    joint: bool = False,
    regression_weight: float = 0.0,
    regression_distance: Annotated[Distance | None, Part(DISTANCES)] = None,
    generator: Generator | None = None,
) -> Objective:
    """The objective of SIM, SiD, Diff-Instruct, DMD, and of score distillation of samples.

    divergence: one of `objectives.divergences`, SIM by default.
    sigma_init: noise level of the one-step generator.
    time_sampler, fake_time_sampler: distributions of t for the generator and for the fake score, by
        default log-normal noise levels of mean -1.2 and std 1.2.
    normalize: divide rows by the teacher's mean absolute error.
    guidance_scale: guidance of the teacher, form A.
    fake_score_updates: updates of the fake score per update of the generator.
    joint: evaluate the fake score once for both losses, at the generator's t; fake_time_sampler
        must then be None.
    regression_weight: weight of a regression to pairs of the teacher's sampler,
        E d(G(eps_1), sampler(eps_1)): 0.25 in DMD, with LPIPS for d; 0 for none.
    regression_distance: d of the regression, squared L2 by default.
    generator: the generator to train, the model in one step by default.
    """
    check_decoding(model)
    divergence = divergence or score_implicit_matching()
    check_matching_fields(
        divergence, guidance_scale, fake_score_updates, joint, fake_time_sampler, regression_weight
    )
    optimised = generator or one_step_generator(model, sigma_init)
    time_sampler = time_sampler or log_normal_times(model.path)
    shared, players = share_samples(model, optimised, time_sampler), {}
    if joint:
        shared = add_fake_prediction(shared, model, divergence)
        players["fake_score"] = Player(model.network, joint_fake_score_loss(model))
    elif divergence.has_fake_score:
        loss = fake_score_loss(model, fake_time_sampler or log_normal_times(model.path))
        players["fake_score"] = Player(model.network, loss)
    loss = generator_loss(model, divergence, normalize, guidance_scale)
    regression_distance = regression_distance or squared_l2()
    if regression_weight > 0.0:
        loss = add_regression(loss, optimised, regression_weight, regression_distance)
    players["generator"] = Player(optimised.network, loss, fake_score_updates, headline="gap")
    return Objective(
        players=players,
        followers={},
        sample=one_step_sampler(optimised, guidance_scale),
        generator="generator",
        guidance_scale=guidance_scale,
        frozen=("teacher",),
        fixed=regression_distance.networks if regression_weight > 0.0 else (),
        needs_teacher=True,
        share=shared,
        init_from=dict.fromkeys(set(players) - ({"generator"} if generator else set()), "teacher"),
        reads=("labels", "pairs") if regression_weight > 0.0 else ("labels",),
    )


def check_matching_fields(
    divergence: Divergence,
    guidance_scale: float,
    fake_score_updates: int,
    joint: bool,
    fake_time_sampler: TimeSampler | None,
    regression_weight: float,
) -> None:
    """Raises ValueError for a field out of range, and for fields that contradict each other."""
    if regression_weight < 0.0:
        raise ValueError(f"objective.regression_weight={regression_weight:g} must be 0 or more")
    if fake_score_updates < 1:
        raise ValueError(f"objective.fake_score_updates={fake_score_updates} must be 1 or more")
    if fake_score_updates > 1 and not divergence.has_fake_score:
        raise ValueError(
            f"objective.fake_score_updates={fake_score_updates} needs a divergence with a fake "
            "score; score distillation has none: use 1"
        )
    if joint and not divergence.has_fake_score:
        raise ValueError(
            "objective.joint=True needs a divergence with a fake score; use objective.joint=False"
        )
    if joint and fake_time_sampler:
        raise ValueError(
            "objective.joint trains the fake score at the t of objective.time_sampler: set "
            "objective.fake_time_sampler.name=''"
        )
    if divergence.needs_guidance and guidance_scale == 1.0:
        raise ValueError(
            "objective.guidance_scale=1 is too low for noise-free score distillation, whose "
            "direction is the guidance; use a scale above 1"
        )


def share_samples(model: Model, generator: Generator, time_sampler: TimeSampler) -> Share:
    """Shares {"x_g", "t", "eps"}: samples with a batch's labels, and the times and noise of x_t."""

    def share(networks: Mapping[str, Params], batch: Batch, key: Key) -> dict[str, Array]:
        key_g, key_t, key_eps, key_dropout = jax.random.split(key, 4)
        rows, params = batch["label"].shape, networks["generator"]
        eps_1 = jax.random.normal(key_g, (*rows, *model.network.shape))
        x_g = generator.generate(params, eps_1, batch_condition(batch), train=True, rng=key_dropout)
        t, eps = time_sampler(key_t, *rows), jax.random.normal(key_eps, x_g.shape)
        return {"x_g": x_g, "t": t, "eps": eps}

    return share


def add_fake_prediction(points: Share, model: Model, divergence: Divergence) -> Share:
    """Adds "fake", the fake score's output in training at x_t, to the shared samples.

    x_t is detached if the divergence has no gradient through it.
    """

    def share(networks: Mapping[str, Params], batch: Batch, key: Key) -> dict[str, Array]:
        key_points, key_dropout = jax.random.split(key)
        shared = points(networks, batch, key_points)
        x_t = model.path.interpolate(shared["x_g"], shared["eps"], shared["t"])
        x_t = x_t if divergence.through_scores else jax.lax.stop_gradient(x_t)
        params, times, condition = (
            networks["fake_score"],
            (shared["t"],) * 2,
            batch_condition(batch),
        )
        fake = model.predict(params, x_t, *times, condition, train=True, rng=key_dropout)
        return {**shared, "fake": fake}

    return share


def fake_score_loss(model: Model, time_sampler: TimeSampler) -> LossFn:
    """Denoising of the generator's samples."""
    denoise = denoising_loss(model, time_sampler)

    def loss(
        params: Params, networks: Mapping[str, Params], batch: Batch, key: Key, step: Array
    ) -> tuple[Array, Metrics]:
        return denoise(params, networks, {**batch, "x": batch[SHARED]["x_g"]}, key, step)

    return loss


def joint_fake_score_loss(model: Model) -> LossFn:
    """Denoising of the generator's samples, by the shared output of the fake score."""

    def loss(
        params: Params, networks: Mapping[str, Params], batch: Batch, key: Key, step: Array
    ) -> tuple[Array, Metrics]:
        shared = batch[SHARED]
        return prediction_loss(model, shared["fake"], shared["x_g"], shared["eps"], shared["t"])

    return loss


def generator_loss(
    model: Model,
    divergence: Divergence,
    normalize: bool,
    guidance_scale: float,
    mean: Callable[[Point], Array] = lambda point: point.fake,
) -> LossFn:
    """The surrogate of the divergence at noised samples of the generator.

    mean: what an exact fake score says of E[x_g | x_t], for the health metrics.
    """

    def loss(
        params: Params, networks: Mapping[str, Params], batch: Batch, key: Key, step: Array
    ) -> tuple[Array, Metrics]:
        shared = batch[SHARED]
        predict = {name: partial(model.predict, own) for name, own in networks.items()}
        if "fake" in shared:
            predict["fake_score"] = lambda *point: shared["fake"]
        x_g, t, eps = (shared[name] for name in ("x_g", "t", "eps"))
        point = evaluate_point(model, predict, x_g, eps, t, batch_condition(batch), guidance_scale)
        error = per_example(jnp.abs(x_g - point.teacher))
        scale = jax.lax.stop_gradient(jnp.maximum(error, LEAST_ERROR)) if normalize else 1.0
        health = health_metrics(point._replace(fake=mean(point)), t, model.path)
        return divergence.surrogate(point) / scale, health

    return loss


def evaluate_point(
    model: Model,
    predict: Mapping[str, Predict],
    x_g: Array,
    eps: Array,
    t: Array,
    condition: Condition,
    guidance_scale: float,
) -> Point:
    """The predictions of fake score and teacher at x_t = alpha x_g + sigma eps.

    predict: prediction functions by name, "teacher" and, if there is one, "fake_score". Without a
    fake score `fake` is x_g, as if the generator's distribution were the single point x_g.
    """
    x_t = model.path.interpolate(x_g, eps, t)
    rho = align(model.path.rho(t), x_g)

    def denoised(predict: Predict, condition: Condition) -> Array:
        return model.denoiser(predict, condition)(x_t, t).x_0

    teacher = predict["teacher"]

    return Point(
        x_g=x_g,
        noise=rho * eps,
        rho=rho,
        fake=denoised(predict["fake_score"], condition) if "fake_score" in predict else x_g,
        teacher=denoised(model.guide_teacher(teacher, guidance_scale), condition),
        null=denoised(teacher, null_condition(condition)),
    )


def one_step_sampler(generator: Generator, trained_scale: float) -> SampleFn:
    """Sampling by the generator, in one step."""

    def check_steps(steps: int) -> None:
        if steps != 1:
            raise StepsError(f"a one-step generator samples in 1 step, not in {steps}")

    def solve(
        generate: Callable[..., Array], eps: Array, condition: Condition, keys: Array, steps: int
    ) -> Array:
        return generate(eps, condition)

    return sample_fn(generator.generate, solve, learned_guidance(trained_scale), check_steps)
