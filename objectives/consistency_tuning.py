"""Easy Consistency Tuning (Geng et al. 2024): makes a consistency model of a diffusion model.

    x_s = alpha_s x_0 + sigma_s eps   with the x_0 and eps of x_t
    L   = E 1 / (t - s) d( f_theta(x_t, t), stop_gradient(f_theta(x_s, s)) )

t is log-normal, and `diffusion.time_pairs.shrinking_ratio` computes s from it. At first s is the
data end for most t, which is denoising. The gap then shrinks by a factor q per stage. The target is
the network itself, detached. With a teacher (`teacher=WORKDIR`) the network starts as a trained
denoiser; without one it first learns to denoise.

The paper's distance is the norm (pseudo-Huber with c = 0). Under the norm the first stage learns a
median of the data, not the mean, and at no gap is the gradient that of distillation
(docs/consistency.md). The paper's boundary is 0 in training and sigma_min in evaluation; here both
are the path's own t_min. The weight uses noise levels, rho_t - rho_s, on every path.
"""

from collections.abc import Sequence
from typing import Annotated

from fewstep.diffusion.spacing import SPACINGS, Spacing, karras_spacing
from fewstep.diffusion.time_pairs import shrinking_pairs
from fewstep.diffusion.time_sampling import TIME_SAMPLERS, TimeSampler, log_normal_times
from fewstep.models.model import Model, check_boundary
from fewstep.objectives.base import Objective, Player
from fewstep.objectives.consistency import (
    WEIGHTINGS,
    Weighting,
    consistency_sampler,
    noised_points,
    pair_loss,
    same_noise_point,
)
from fewstep.objectives.distances import DISTANCES, Distance, pseudo_huber
from fewstep.objectives.needs import needs
from fewstep.objectives.sampling import denoised_end, learned_guidance
from fewstep.parts import RUN_LENGTH, Entry, Part


@needs()
def consistency_tuning(
    model: Model,
    *,
    total_steps: Annotated[int, RUN_LENGTH],
    stages: int = 8,
    q: float = 2.0,
    k: float = 8.0,
    b: float = 1.0,
    time_sampler: Annotated[TimeSampler | None, Part(TIME_SAMPLERS, on_path=True)] = None,
    distance: Annotated[Distance | None, Part(DISTANCES)] = None,
    weighting: Annotated[Weighting, Entry(WEIGHTINGS)] = WEIGHTINGS["inverse_gap"],
    spacing: Annotated[Spacing | None, Part(SPACINGS, on_path=True)] = None,
    sample_times: Sequence[float] = (),
) -> Objective:
    """The ECT objective.

    total_steps, stages: the gap shrinks by q after each of `stages` equal parts of total_steps.
    q, k, b: constants of `shrinking_ratio` (2, 8, 1 in the paper; q = 256 for one or two stages in
        its one-hour recipe).
    time_sampler: distribution of t, log-normal with mean -1.1 and std 2.0 by default.
    distance: d, the norm by default. weighting: w(t, s), 1 / (rho_t - rho_s) by default.
    spacing, sample_times: as for `consistency_sampler`.
    """
    check_boundary(model)
    path, distance = model.path, distance or pseudo_huber(0.0)
    draw = time_sampler or log_normal_times(path, -1.1, 2.0)
    pairs = shrinking_pairs(path, draw, total_steps=total_steps, stages=stages, q=q, k=k, b=b)
    points = noised_points(model, same_noise_point(path), pairs)
    loss = pair_loss(model, points, distance=distance, weighting=weighting)
    return Objective(
        players={"network": Player(model.network, loss)},
        followers={},
        sample=consistency_sampler(model, spacing or karras_spacing(path), sample_times),
        fixed=distance.networks,
        end_point=denoised_end(model, learned_guidance(1.0)),
    )
