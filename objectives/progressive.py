"""Progressive distillation (Salimans & Ho 2022): one step of a student is two of its teacher.

Training has stages. In each stage a student learns to make in N steps of DDIM the samples that its
teacher makes in 2 N steps. The student is the teacher of the next stage; the next student starts
from it, with half the steps: N = M, M / 2, ..., 1. The first teacher is a trained denoiser.

    t = i / N,  i uniform on 1 .. N,     m = t - 1 / (2 N),     s = t - 1 / N
    x_t = alpha_t x_0 + sigma_t eps
    x_s = DDIM(DDIM(x_t; t -> m); m -> s)   by the teacher
    L   = E w(t) || x_target - x_theta(x_t, t) ||^2                    (their algorithm 2)

x_target is the data prediction with which one DDIM step from x_t to s ends in x_s. With l = alpha /
sigma, a DDIM step is an Euler step of x / sigma in l, whose derivative is the predicted data:

    x_s / sigma_s - x_t / sigma_t = (l_m - l_t) x_1 + (l_s - l_m) x_2,
    x_target = w_1 x_1 + (1 - w_1) x_2,     w_1 = (l_m - l_t) / (l_s - l_t),

where x_1 and x_2 are the teacher's predictions at (x_t, t) and (x_m, m). x_target is thus a
weighted mean of the two; their code instead divides a difference of nearby points by a small
number. If s has no noise, l_s is infinite and x_target = x_2, a special case in their code. On the
linear path, with equal steps in t, DDIM is the Euler step, and the velocity to x_target is the mean
of the teacher's two velocities: the bootstrap target of shortcut.py.

The target is a function of x_t, so the minimum of the loss is zero. A perfect student makes the
samples of the first teacher in 2 M steps of DDIM, never better ones. The target comes from the
follower `teacher`, a copy of the student that is made when a stage begins, so it carries no
gradient. The first copy is the network that the student starts from. The student's input is t, not
the size of a step, so it samples in the N steps of its own stage only.

    weighting          w(t), with SNR = (alpha / sigma)^2
    truncated_snr      max(SNR, 1): the larger of the errors of x_0 and eps       (their default)
    snr_plus_one       SNR + 1: the error of v
    velocity           (alpha' - alpha sigma' / sigma)^2: the error of the velocity

Where the paper, its code and this file differ:

* Stages are equally long, as in the code: 50,000 updates on CIFAR-10. The paper makes 100,000 in
  the stages of 2 and 1 steps. Each stage starts a new state of Adam, whose learning rate falls from
  5e-5 to zero; there is no average.
* Times are equally spaced in `spacing`, by default uniform in the path's own time. The paper has
  the time of the cosine path, cut off at log-SNR of -20 and 20; the paths here have no cut-off.
* Nothing is clipped. The paper's training does not clip either; its sampler clips predictions to
  [-1, 1].
* A `guidance_scale` other than 1 guides the first teacher. The first student learns the guided
  prediction and later ones inherit it, so only the first stage computes guidance.
* With `guidance_range` each row draws a scale, which is an input of all students. From a teacher
  that takes the scale as an input (guidance_distillation.py) this is stage two of Meng et al. 2023.
  Their w is ours minus 1, and they also sample with noise between the steps; here DDIM alone.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp
from jax import Array

from fewstep.diffusion.guidance import Condition, Predict, draw_scale
from fewstep.diffusion.path import Path, align
from fewstep.diffusion.prediction import Denoise
from fewstep.diffusion.spacing import SPACINGS, Spacing, uniform_spacing
from fewstep.models.model import LEAST_ALPHA_ONE_STEP, Model, check_decoding
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
    noise_level_means,
    per_example,
)
from fewstep.objectives.consistency import check_guidance_range, velocity_weight
from fewstep.objectives.distances import squared_error
from fewstep.objectives.followers import keep_unchanged
from fewstep.objectives.needs import needs
from fewstep.objectives.sampling import Guidance, learned_guidance, sample_fn
from fewstep.objectives.stages import Stage, stage_index
from fewstep.parts import RUN_LENGTH, Entry, Part
from fewstep.samplers.grids import StepsError, time_grid
from fewstep.samplers.ode import ddim

# (path, t: [B]) -> weight of the error of x_0, [B]
Weighting = Callable[[Path, Array], Array]

WEIGHTINGS: dict[str, Weighting] = {
    "truncated_snr": lambda path, t: jnp.maximum(path.rho(t) ** -2.0, 1.0),
    "snr_plus_one": lambda path, t: path.rho(t) ** -2.0 + 1.0,
    "velocity": velocity_weight,
}


@needs(guidance_input=lambda guidance_range: bool(guidance_range))
def progressive(
    model: Model,
    *,
    total_steps: Annotated[int, RUN_LENGTH],
    max_steps: int = 64,
    weighting: Annotated[Weighting, Entry(WEIGHTINGS)] = WEIGHTINGS["truncated_snr"],
    spacing: Annotated[Spacing | None, Part(SPACINGS, on_path=True)] = None,
    guidance_scale: float = 1.0,
    guidance_range: Sequence[float] = (),
) -> Objective:
    """The progressive-distillation objective; starts from a teacher of the same model.

    total_steps: training steps of all stages, which are equally long.
    max_steps: M, the sampling steps of the first student, a power of two. Its teacher takes 2 M
        (the paper: M = 4,096 on CIFAR-10 and 512 on other data).
    weighting: w(t), the weight of the error of x_0.
    spacing: spacing of the sampling steps, uniform in the path's time by default.
    guidance_scale: guidance of the first teacher, form A; with guidance_range the default of
        sampling.
    guidance_range: (low, high) of the scales that condition the students, or ().
    """
    check_decoding(model, LEAST_ALPHA_ONE_STEP)
    check_guidance_range(guidance_range, guidance_scale)
    stages = halving_stages(max_steps, total_steps)
    spacing = spacing or uniform_spacing(model.path)

    def loss(
        params: Params, networks: Mapping[str, Params], batch: Batch, key: Key, step: Array
    ) -> tuple[Array, Metrics]:
        key_t, key_eps, key_dropout, key_scale = jax.random.split(key, 4)
        x_0, condition = batch["x"], draw_scale(key_scale, batch_condition(batch), guidance_range)
        stage = stage_index(stages, step)
        t, middle, s = draw_times(key_t, x_0.shape[0], max_steps >> stage, spacing)
        x_t = model.path.interpolate(x_0, jax.random.normal(key_eps, x_0.shape), t)
        predict = partial(model.predict, networks["teacher"])
        guided = model.guide_teacher(predict, condition.get("guidance_scale", guidance_scale))
        predict = in_first_stage(guided, predict, stage)
        denoise = model.denoiser(predict, condition)
        target = two_step_target(denoise, model.path, x_t, t, middle, s)
        ends = model.endpoints(params, x_t, t, condition, train=True, rng=key_dropout)
        error = weighting(model.path, t) * per_example(squared_error(ends.x_0, target))
        return error, noise_level_means("loss", error, t, model.path)

    return Objective(
        players={"network": Player(model.network, loss)},
        followers={"teacher": Follower("network", keep_unchanged, restarts=True)},
        sample=ddim_sampler(
            model, spacing, max_steps, learned_guidance(guidance_scale, guidance_range)
        ),
        guidance_scale=guidance_scale,
        needs_teacher=True,
        stages=stages,
    )


def halving_stages(max_steps: int, total_steps: int) -> tuple[Stage, ...]:
    """Equal stages whose networks sample in max_steps, max_steps / 2, ..., 1 steps.

    Raises ValueError unless max_steps is a power of two and each stage has a training step.
    """
    if max_steps < 1 or max_steps & (max_steps - 1):
        raise ValueError(f"objective.max_steps must be a power of two, not {max_steps}")
    count = max_steps.bit_length()
    if total_steps < count:
        raise ValueError(
            f"objective.max_steps={max_steps} has {count} stages, for which {total_steps} training "
            "steps are too few; use at least one step for each stage"
        )
    return tuple(Stage(total_steps * k // count, (max_steps >> k,)) for k in range(count))


def draw_times(key: Key, count: int, steps: Array, spacing: Spacing) -> tuple[Array, Array, Array]:
    """(t, m, s), each [count]: start, middle and end of a random one of `steps` sampling steps."""
    i = jax.random.randint(key, (count,), 1, steps + 1).astype(jnp.float32)
    return tuple(spacing.time((i - part) / steps) for part in (0.0, 0.5, 1.0))


def in_first_stage(guided: Predict, predict: Predict, stage: Array) -> Predict:
    """`guided` in the first stage, `predict` in the others; no branch if they are the same."""
    if guided is predict:
        return predict

    def either(x: Array, t: Array, s: Array, condition: Condition) -> Array:
        return jax.lax.cond(stage == 0, guided, predict, x, t, s, dict(condition))

    return either


def two_step_target(
    denoise: Denoise,
    path: Path,
    x_t: Array,
    t: Array,
    middle: Array,
    s: Array,
    second_denoise: Denoise | None = None,
) -> Array:
    """x_target, [B, ...]: one DDIM step to it from x_t to s ends where two steps end.

    denoise: the network of the first step, and of the second if there is no `second_denoise`; (x,
    t) -> Endpoints. x_t: [B, ...]. t, middle, s: [B], t > middle >= s; at middle = s there is only
    the first step.
    """
    first = denoise(x_t, t)
    second = (second_denoise or denoise)(path.interpolate(*first, middle), middle)
    l_t, l_middle, l_s = (path.alpha(time) / path.sigma(time) for time in (t, middle, s))
    share = align((l_middle - l_t) / (l_s - l_t), x_t)
    mean = share * first.x_0 + (1.0 - share) * second.x_0
    return jnp.where(align(middle == s, x_t), first.x_0, mean)


def ddim_sampler(model: Model, spacing: Spacing, max_steps: int, guidance: Guidance) -> SampleFn:
    """Sampling by DDIM in a power of two of steps; `Stage` has the number of each network."""

    def check_steps(steps: int) -> None:
        if not (0 < steps <= max_steps and max_steps % steps == 0):
            raise StepsError(
                f"a progressive student samples in a power of two of steps up to {max_steps}, "
                f"that of its stage, not in {steps}"
            )

    def solve(predict: Predict, eps: Array, condition: Condition, keys: Array, steps: int) -> Array:
        denoise = model.denoiser(predict, condition)
        return ddim()(denoise, model.path, model.path.prior(eps), time_grid(spacing, steps), keys)

    return sample_fn(model.predict, solve, guidance, check_steps)
