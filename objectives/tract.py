"""TRACT (Berthelot et al. 2023, arXiv:2303.04248): distillation of many steps into one at once.

Training has few stages. In a stage whose teacher takes N steps of DDIM, a student learns to take M:
the N steps form M groups, and from each point of a group the student learns to jump to its end.

    i / N in group j:   t = i / N,   r = (i - 1) / N,   s = (j - 1) / M = the end of the group
    x_r = DDIM(x_t; t -> r)   by the teacher,     x_s = DDIM(x_r; r -> s)   by the target
    L   = E w(t) || x_target - x_theta(x_t, t) ||^2                    (their algorithm 2)

x_target is the data prediction with which one DDIM step from x_t to s ends in x_s, as in
progressive.py. The target is an average of the student, which already jumps from r to s: the method
is self-consistent inside a group, and the teacher enters by one step. At r = s there is no jump,
and x_target is the teacher's. Errors add up over the jumps and not over stages, so few stages do:
1,024, 32, 1 steps in the paper. A perfect student makes the samples of the first teacher.

With two steps in each group and the teacher as target it is progressive distillation. With one
group that ends without noise, x_target is the target's prediction at (x_r, r), and the method is
consistency distillation with a DDIM step (tests).

Teacher and target carry no gradient, because they are followers: `target`, an average of decay
`target_decay`; `teacher`, a copy made when a stage begins of `average`, a longer average of the
student, as in the code. In the first stage it is the network that the student starts from.

Where the paper, its code and this file differ:

* The decay of `average` forgets all but `average_residual` in a stage, as in the code. The run's
  own averages (`ema.decays`) sample.
* Times are equally spaced in `spacing`, by default uniform in the path's own time. The code has the
  cosine path, cut off at log-SNR of -20 and 20.
* Nothing is clipped. The code clips predictions to [-1, 1].
* A `guidance_scale` other than 1 guides the first teacher, as in progressive.py.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Annotated

import jax
import jax.numpy as jnp
from jax import Array

from fewstep.diffusion.guidance import Condition, Predict
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
from fewstep.objectives.distances import squared_error
from fewstep.objectives.followers import constant_ema, keep_unchanged
from fewstep.objectives.needs import needs
from fewstep.objectives.progressive import (
    WEIGHTINGS,
    Weighting,
    in_first_stage,
    two_step_target,
)
from fewstep.objectives.sampling import learned_guidance, sample_fn
from fewstep.objectives.stages import Stage, stage_index
from fewstep.parts import RUN_LENGTH, Entry, Part
from fewstep.samplers.grids import StepsError, time_grid
from fewstep.samplers.ode import ddim


@needs()
def tract(
    model: Model,
    *,
    total_steps: Annotated[int, RUN_LENGTH],
    step_counts: Sequence[int] = (1024, 32, 1),
    weighting: Annotated[Weighting, Entry(WEIGHTINGS)] = WEIGHTINGS["truncated_snr"],
    spacing: Annotated[Spacing | None, Part(SPACINGS, on_path=True)] = None,
    target_decay: float = 0.5,
    average_residual: float = 1e-3,
    guidance_scale: float = 1.0,
) -> Objective:
    """The TRACT objective; starts from a teacher of the same model.

    total_steps: training steps of all stages, which are equally long.
    step_counts: sampling steps of the first teacher, then of the student of each stage.
    weighting: w(t), the weight of the error of x_0.
    spacing: spacing of the sampling steps, uniform in the path's time by default.
    target_decay: EMA decay of the target.
    average_residual: share of a stage's first network in the teacher of the next stage.
    guidance_scale: guidance of the first teacher, form A.
    """
    check_decoding(model, LEAST_ALPHA_ONE_STEP)
    stages = grouping_stages(step_counts, total_steps)
    if not 0.0 < average_residual < 1.0:
        raise ValueError(f"objective.average_residual={average_residual:g} must be between 0 and 1")
    spacing, path = spacing or uniform_spacing(model.path), model.path
    counts = jnp.asarray(step_counts)

    def loss(
        params: Params, networks: Mapping[str, Params], batch: Batch, key: Key, step: Array
    ) -> tuple[Array, Metrics]:
        key_times, key_eps, key_dropout = jax.random.split(key, 3)
        x_0, condition = batch["x"], batch_condition(batch)
        stage = stage_index(stages, step)
        times = draw_times(key_times, x_0.shape[0], counts[stage], counts[stage + 1], spacing)
        t = times[0]
        x_t = path.interpolate(x_0, jax.random.normal(key_eps, x_0.shape), t)
        teacher, target = (partial(model.predict, networks[n]) for n in ("teacher", "target"))
        teacher = in_first_stage(model.guide_teacher(teacher, guidance_scale), teacher, stage)
        denoise, jump = (model.denoiser(predict, condition) for predict in (teacher, target))
        x_target = two_step_target(denoise, path, x_t, *times, second_denoise=jump)
        ends = model.endpoints(params, x_t, t, condition, train=True, rng=key_dropout)
        error = weighting(path, t) * per_example(squared_error(ends.x_0, x_target))
        return error, noise_level_means("loss", error, t, path)

    average = constant_ema(average_residual ** (len(stages) / total_steps))
    return Objective(
        players={"network": Player(model.network, loss)},
        followers={
            "target": Follower("network", constant_ema(target_decay)),
            "average": Follower("network", average),
            "teacher": Follower("average", keep_unchanged, restarts=True),
        },
        sample=group_sampler(model, spacing, step_counts[1:], guidance_scale),
        guidance_scale=guidance_scale,
        needs_teacher=True,
        stages=stages,
    )


def grouping_stages(step_counts: Sequence[int], total_steps: int) -> tuple[Stage, ...]:
    """Equal stages whose networks sample in step_counts[1], step_counts[2], ... steps.

    Raises ValueError unless there are two counts or more, each a divisor of the one before, and
    each stage has a training step.
    """
    divide = all(few > 0 and many > few and many % few == 0 for many, few in pairwise(step_counts))
    if len(step_counts) < 2 or not divide:
        raise ValueError(
            f"objective.step_counts={tuple(step_counts)} must be two numbers of steps or more, "
            "each a smaller divisor of the one before, such as (1024, 32, 1)"
        )
    count = len(step_counts) - 1
    if total_steps < count:
        raise ValueError(
            f"objective.step_counts={tuple(step_counts)} has {count} stages, for which "
            f"{total_steps} training steps are too few; use at least one step for each stage"
        )
    return tuple(
        Stage(total_steps * k // count, (steps,)) for k, steps in enumerate(step_counts[1:])
    )


def draw_times(
    key: Key, count: int, steps: Array, groups: Array, spacing: Spacing
) -> tuple[Array, Array, Array]:
    """(t, r, s), each [count]: start and end of a random one of `steps`, and end of its group."""
    key_group, key_step = jax.random.split(key)
    size = steps // groups
    last = jax.random.randint(key_group, (count,), 0, groups) * size
    first = last + jax.random.randint(key_step, (count,), 1, size + 1)
    return tuple(spacing.time(i / steps) for i in (first, first - 1, last))


def group_sampler(
    model: Model, spacing: Spacing, counts: Sequence[int], trained_scale: float
) -> SampleFn:
    """Sampling by DDIM, from the start of each group to its end."""

    def check_steps(steps: int) -> None:
        if steps not in counts:
            raise StepsError(
                f"a TRACT student samples in the number of steps of its stage, one of "
                f"{', '.join(map(str, counts))}, not in {steps}"
            )

    def solve(predict: Predict, eps: Array, condition: Condition, keys: Array, steps: int) -> Array:
        denoise = model.denoiser(predict, condition)
        return ddim()(denoise, model.path, model.path.prior(eps), time_grid(spacing, steps), keys)

    return sample_fn(model.predict, solve, learned_guidance(trained_scale), check_steps)
