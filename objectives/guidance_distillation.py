"""Guidance distillation (Meng et al. 2023, arXiv:2210.03142), stage one: the scale as an input.

    L = E || prediction_theta(x_t, t, y, w) - guided teacher(x_t, t, y, w) ||^2     (section 3.1)
    guided teacher = teacher(null) + w (teacher(y) - teacher(null)),   w uniform in guidance_range

The student's output is of the teacher's kind, and guidance is the same in all kinds, so the loss
compares outputs. Its weight of the error of x_0 is that of the kind (denoising.py). The target is a
function of the student's inputs, so the minimum of the loss is zero: the student is then the guided
teacher at every scale, in one evaluation where the teacher needs two. The teacher is frozen and
carries no gradient.

The student samples like its teacher, and teaches every method. A method with `guidance_range` gives
it each row's scale; a method with one scale has the teacher at this scale. No method evaluates it
twice (`Model.guide_teacher`). `progressive` from it is stage two.

Where the paper and this file differ:

* Scales have form A, ours is theirs plus 1: they draw theirs from [0, 4].
* They weight the error of x_0, by SNR + 1 or truncated SNR for v on the cosine path. For the kind v
  the weight here is SNR + 1 there.
* Labels are dropped with a small probability. The guided teacher at the null class is the teacher
  at the null class, so the student keeps what unlabelled samples need.
* The embedding of w starts at zero, so the student starts as the unguided teacher.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated

import jax
from jax import Array

from fewstep.diffusion.guidance import draw_scale, drop_labels
from fewstep.diffusion.spacing import SPACINGS, Spacing, uniform_spacing
from fewstep.diffusion.time_sampling import TIME_SAMPLERS, TimeSampler, uniform_times
from fewstep.models.model import Model, check_decoding
from fewstep.objectives.base import (
    Batch,
    Key,
    Metrics,
    Objective,
    Params,
    Player,
    batch_condition,
    noise_level_means,
    per_example,
)
from fewstep.objectives.consistency import check_guidance_range
from fewstep.objectives.denoising import solver_sampler
from fewstep.objectives.distances import squared_error
from fewstep.objectives.needs import needs
from fewstep.objectives.sampling import denoised_end, learned_guidance
from fewstep.parts import Entry, Part
from fewstep.samplers import SOLVERS
from fewstep.samplers.grids import GRIDS, Grid, grid_to_path_end
from fewstep.samplers.ode import Solver, ddim


@needs(guidance_input=True)
def guidance_distillation(
    model: Model,
    *,
    guidance_range: Sequence[float] = (1.0, 5.0),
    guidance_scale: float = 1.0,
    time_sampler: Annotated[TimeSampler | None, Part(TIME_SAMPLERS, on_path=True)] = None,
    label_dropout: float = 0.1,
    solver: Annotated[Solver | None, Part(SOLVERS)] = None,
    spacing: Annotated[Spacing | None, Part(SPACINGS, on_path=True)] = None,
    ends_at: Annotated[Grid, Entry(GRIDS)] = grid_to_path_end,
) -> Objective:
    """The objective of guidance distillation; needs a frozen `teacher` that knows the null class.

    guidance_range: (low, high) of the scales that condition the student.
    guidance_scale: default scale of sampling.
    time_sampler: distribution of t, uniform over the path by default.
    label_dropout: probability of the null class.
    solver, spacing, ends_at: of sampling, DDIM on a uniform grid by default.

    Raises ValueError for an empty or reversed range, and for a scale outside it.
    """
    check_decoding(model)
    if not guidance_range:
        raise ValueError("objective.guidance_range is empty; give (low, high) of the scales")
    check_guidance_range(guidance_range, guidance_scale)
    times = time_sampler or uniform_times(model.path)

    def loss(
        params: Params, networks: Mapping[str, Params], batch: Batch, key: Key, step: Array
    ) -> tuple[Array, Metrics]:
        key_t, key_eps, key_scale, key_label, key_dropout = jax.random.split(key, 5)
        x_0 = batch["x"]
        t = times(key_t, x_0.shape[0])
        x_t = model.path.interpolate(x_0, jax.random.normal(key_eps, x_0.shape), t)
        condition = drop_labels(key_label, batch_condition(batch), label_dropout)
        condition = draw_scale(key_scale, condition, guidance_range)
        teacher = partial(model.predict, networks["teacher"])
        target = model.guide_teacher(teacher, condition["guidance_scale"])(x_t, t, t, condition)
        prediction = model.predict(params, x_t, t, t, condition, train=True, rng=key_dropout)
        error = per_example(squared_error(prediction, target))
        return error, noise_level_means("loss", error, t, model.path)

    return Objective(
        players={"network": Player(model.network, loss)},
        followers={},
        sample=solver_sampler(
            model,
            solver or ddim(),
            spacing or uniform_spacing(model.path),
            ends_at,
            learned_guidance(guidance_scale, guidance_range),
        ),
        guidance_scale=guidance_scale,
        frozen=("teacher",),
        needs_teacher=True,
        denoises=True,
        end_point=denoised_end(model, learned_guidance(guidance_scale, guidance_range)),
    )
