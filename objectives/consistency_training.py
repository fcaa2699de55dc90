"""Consistency training without a teacher: the original recipe (CT) and the improved one (iCT).

    x_s = alpha_s x_0 + sigma_s eps   with the x_0 and eps of x_t
    L   = E w(t, s) d( f_theta(x_t, t), stop_gradient(f_target(x_s, s)) )

(x_t, t) and (x_s, s) do not lie on one trajectory of the probability-flow ODE. With a squared L2
distance the expected gradient is nevertheless that of distillation by Euler steps with the exact
score: exactly for f affine in x, and otherwise up to a term of relative size O(t - s) (Song et al.
2023, theorem 2). docs/consistency.md has the argument and its limits; tests measure both.

            CT (Song et al. 2023)              iCT (Song & Dhariwal 2023)
    N       square_root, 2 to 150              doubling, 10 to 1280
    cells   equally likely                     discretised log-normal, mean -1.1, std 2.0
    target  EMA, mu(k) = exp(s_0 log mu_0 / N) the network itself
    d       squared L2 (and LPIPS there)       pseudo-Huber, c = 0.00054 sqrt(D)
    w       1                                  1 / (rho_t - rho_s), on `ve` 1 / (t - s)

mu(k) follows the paper's formula with N(k); the paper's code has N(k) - 1. LPIPS is
`objective.distance.name=lpips`, with its published files (docs/consistency.md).
"""

from collections.abc import Callable, Sequence
from typing import Annotated

import jax.numpy as jnp
from jax import Array

from fewstep.diffusion.spacing import SPACINGS, Spacing, karras_spacing
from fewstep.diffusion.time_pairs import CURRICULA, Curriculum, grid_pairs
from fewstep.diffusion.time_sampling import TIME_SAMPLERS, TimeSampler
from fewstep.models.model import Model, check_boundary
from fewstep.objectives.base import Follower, Objective, Player
from fewstep.objectives.consistency import (
    WEIGHTINGS,
    Weighting,
    consistency_sampler,
    noised_points,
    pair_loss,
    same_noise_point,
)
from fewstep.objectives.distances import DISTANCES, Distance, squared_l2
from fewstep.objectives.followers import scheduled_ema
from fewstep.objectives.needs import needs
from fewstep.objectives.sampling import denoised_end, learned_guidance
from fewstep.parts import Entry, Part


def target_decay(curriculum: Curriculum, initial: float) -> Callable[[Array], Array]:
    """mu(k) = exp(s_0 log(mu_0) / N(k)) with s_0 = N(0); it starts at mu_0 and rises with N."""
    return lambda step: jnp.exp(curriculum(jnp.int32(0)) * jnp.log(initial) / curriculum(step))


@needs()
def consistency_training(
    model: Model,
    *,
    curriculum: Annotated[Curriculum, Part(CURRICULA)],
    spacing: Annotated[Spacing | None, Part(SPACINGS, on_path=True)] = None,
    time_sampler: Annotated[TimeSampler | None, Part(TIME_SAMPLERS, on_path=True)] = None,
    distance: Annotated[Distance | None, Part(DISTANCES)] = None,
    weighting: Annotated[Weighting, Entry(WEIGHTINGS)] = WEIGHTINGS["uniform"],
    initial_decay: float = 0.9,
    sample_times: Sequence[float] = (),
) -> Objective:
    """The consistency-training objective.

    curriculum: number of grid points at each training step.
    spacing: spacing of the grid, Karras by default.
    time_sampler: distribution of t, discretised to cells of the grid; by default all cells are
        equally likely.
    distance: d, squared L2 by default. weighting: w(t, s), 1 by default.
    initial_decay: mu_0 (0.9 on CIFAR-10, 0.95 on other data); 0 means no EMA target, as in iCT.
    sample_times: as for `consistency_sampler`.
    """
    check_boundary(model)
    if not 0.0 <= initial_decay < 1.0:
        raise ValueError(f"objective.initial_decay={initial_decay} must be in [0, 1)")
    spacing, distance = spacing or karras_spacing(model.path), distance or squared_l2()
    loss = pair_loss(
        model,
        noised_points(
            model, same_noise_point(model.path), grid_pairs(spacing, curriculum, time_sampler)
        ),
        distance=distance,
        weighting=weighting,
    )
    update = scheduled_ema(target_decay(curriculum, initial_decay))
    return Objective(
        players={"network": Player(model.network, loss)},
        followers={"target": Follower("network", update)} if initial_decay else {},
        sample=consistency_sampler(model, spacing, sample_times, curriculum=curriculum),
        fixed=distance.networks,
        end_point=denoised_end(model, learned_guidance(1.0)),
    )
