"""Consistency distillation (Song et al. 2023) and latent consistency models (Luo et al. 2023).

    x_s = one solver step of the frozen teacher from x_t, from t to s
    L   = E d( f_theta(x_t, t), stop_gradient(f_target(x_s, s)) )              (their eq. 7)

x_t is data with noise, or lies on a trajectory of the teacher from the prior, for which no data are
needed (objectives/point_pairs.py). t and s lie `skip` points apart on a grid of N points. At the
exact consistency function of the teacher's ODE, the residual is the error of one solver step: with
gap h, O(h^2) for Euler and DDIM, O(h^3) for Heun (tests). The target is the follower `target`, an
EMA of decay `target_decay`; with decay 0 it is the network itself, detached. The teacher is frozen,
and no gradient flows through its step.

The teacher may be guided (form A; 1 is no guidance). With `guidance_range` = (low, high) each row
draws a scale, which guides the teacher and conditions the student, so one student serves every
scale (Luo et al. 2023, section 4.3; w = 1 + their omega). Otherwise the student learns the one
`guidance_scale`.

`Model.consistency` sets the boundary. LCM's code has c_skip = s_d^2 / (tau^2 + s_d^2) with tau = 10
times the integer time. At the first of 1,000 times c_skip is already 0.25%, so in practice the
boundary is the same.

LCM's code trains at 50 of 1,000 times only: 19, 39, ..., 999, the times of a DDIM sampler of 50
steps. Its four sampling steps start from 999, 759, 499 and 259, which are among them. Here t is any
point of the grid but the first, and four steps of `lcm` start from 999, 749, 500 and 250.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated

from jax import Array

from fewstep.diffusion.spacing import SPACINGS, Spacing, karras_spacing
from fewstep.diffusion.time_pairs import CURRICULA, Curriculum, constant
from fewstep.models.model import Model, check_boundary
from fewstep.objectives.base import Follower, Objective, Params, Player
from fewstep.objectives.consistency import (
    WEIGHTINGS,
    Draw,
    SecondPoint,
    Weighting,
    check_guidance_range,
    consistency_sampler,
    pair_loss,
)
from fewstep.objectives.distances import DISTANCES, Distance, squared_l2
from fewstep.objectives.followers import constant_ema
from fewstep.objectives.needs import needs
from fewstep.objectives.point_pairs import PAIR_SOURCES, PairParts, PairSource, data_source
from fewstep.objectives.sampling import denoised_end, learned_guidance
from fewstep.parts import Entry, Part
from fewstep.samplers.ode import STEPS, Step, heun_step


def teacher_step(
    model: Model,
    solver_step: Step,
    guidance_scale: float = 1.0,
    guided_by_row: bool = False,
) -> SecondPoint:
    """x_s by one solver step of the guided teacher from x_t.

    guided_by_row: use the guidance scale of each row's condition, not `guidance_scale`.
    """

    def second_point(networks: Mapping[str, Params], draw: Draw) -> Array:
        scale = draw.condition["guidance_scale"] if guided_by_row else guidance_scale
        predict = model.guide_teacher(partial(model.predict, networks["teacher"]), scale)
        denoise = model.denoiser(predict, draw.condition)
        return solver_step(denoise, model.path, draw.x_t, draw.t, draw.s)

    return second_point


@needs(guidance_input=lambda guidance_range: bool(guidance_range))
def consistency_distillation(
    model: Model,
    *,
    curriculum: Annotated[Curriculum | None, Part(CURRICULA)] = None,
    spacing: Annotated[Spacing | None, Part(SPACINGS, on_path=True)] = None,
    skip: int = 1,
    teacher_solver: Annotated[Step, Entry(STEPS)] = heun_step,
    distance: Annotated[Distance | None, Part(DISTANCES)] = None,
    weighting: Annotated[Weighting, Entry(WEIGHTINGS)] = WEIGHTINGS["uniform"],
    target_decay: float = 0.95,
    guidance_scale: float = 1.0,
    guidance_range: Sequence[float] = (),
    sample_times: Sequence[float] = (),
    source: Annotated[PairSource | None, Part(PAIR_SOURCES)] = None,
    reads_score: bool = True,
) -> Objective:
    """The consistency-distillation objective; needs a frozen `teacher` of the same model.

    curriculum, spacing: the grid, 18 points in Karras spacing by default.
    skip: points of the grid from t to s (20 of 1,000 in LCM).
    teacher_solver: solver step of the teacher (`samplers.ode`).
    distance: d, squared L2 by default. weighting: w(t, s), 1 by default.
    target_decay: EMA decay of the target (0.95 for LCM, 0 to 0.95 in Song et al. 2023).
    guidance_scale: guidance of the teacher, form A; with guidance_range the default of sampling.
    guidance_range: (low, high) of the scales that condition the student, or ().
    sample_times: as for `consistency_sampler`.
    source: where x_t and x_s come from, data by default; other sources read none.
    reads_score: whether a student of a sampler is given the score of the density, as its teacher
        is. Without it a sample evaluates no gradient.
    """
    check_boundary(model)
    check_guidance_range(guidance_range, guidance_scale)
    spacing, curriculum = spacing or karras_spacing(model.path), curriculum or constant()
    distance = distance or squared_l2()
    source = source or data_source()
    step = teacher_step(model, teacher_solver, guidance_scale, bool(guidance_range))
    parts = PairParts(model, step, spacing, curriculum, skip, tuple(guidance_range))
    student = model if reads_score else model._replace(density=None)
    loss = pair_loss(student, source.points(parts), distance=distance, weighting=weighting)
    return Objective(
        players={"network": Player(model.network, loss)},
        followers=(
            {"target": Follower("network", constant_ema(target_decay))} if target_decay else {}
        ),
        sample=consistency_sampler(
            student,
            spacing,
            sample_times,
            curriculum=curriculum,
            trained_scale=guidance_scale,
            guidance_range=guidance_range,
        ),
        guidance_scale=guidance_scale,
        frozen=("teacher",),
        fixed=distance.networks,
        needs_teacher=True,
        end_point=denoised_end(student, learned_guidance(guidance_scale, guidance_range)),
        reads=source.reads,
    )
