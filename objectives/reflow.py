"""Reflow (Liu et al. 2023, arXiv:2209.03003): flow matching on the pairs of a teacher's sampler.

    x_t = alpha x_0 + sigma eps,    x_0 = sampler(eps)
    L   = E || prediction_theta(x_t, t, y) - target(x_0, eps, t) ||^2     (their eq. 1 on a path)

This is denoising.py with another coupling: a teacher's sample belongs to its noise, where data and
noise are else independent. The new trajectories have the same distribution of x_t as these pairs,
and so the same samples, but they cross less: transport costs do not grow (their theorem 3.5). The
minimum of the loss measures what is left to straighten. It is zero if no two pairs cross. Then x_t
determines (x_0, eps), and one step of DDIM, on the linear path of Euler, makes the teacher's sample
exactly (on `ve` up to the signal that sampling neglects at t_max). On Gaussian data one reflow
suffices (tests).

A reflow run predicts data and noise at every time. It teaches like any denoiser, also the next
reflow: their k-rectified flow is a chain of k - 1 runs. Pairs are data: no teacher is evaluated, so
none is detached.

Where the paper, its code and this file differ:

* The code draws t from [1e-3, 1], its time, in which 0 is the noise. Here t covers the path.
* Any path and prediction serve. The paper has the linear path and velocities.
* Labels condition the network, and a `guidance_scale` guides the teacher's samples, as in InstaFlow
  (Liu et al. 2024). Guidance is learned, since no row trains without its label: a guided reflow run
  samples at that scale alone.
* The solver is DDIM, which is exact for straight pairs on every path.
"""

from collections.abc import Mapping
from typing import Annotated

import jax
from jax import Array

from fewstep.diffusion.spacing import SPACINGS, Spacing, uniform_spacing
from fewstep.diffusion.time_sampling import TIME_SAMPLERS, TimeSampler, uniform_times
from fewstep.models.model import LEAST_ALPHA_ONE_STEP, Model, check_decoding
from fewstep.objectives.base import Batch, Key, Metrics, Objective, Params, Player
from fewstep.objectives.denoising import prediction_loss, solver_sampler
from fewstep.objectives.needs import needs
from fewstep.objectives.sampling import denoised_end, learned_guidance
from fewstep.parts import Entry, Part
from fewstep.samplers import SOLVERS
from fewstep.samplers.grids import GRIDS, Grid, grid_to_path_end
from fewstep.samplers.ode import Solver, ddim


@needs()
def reflow(
    model: Model,
    *,
    time_sampler: Annotated[TimeSampler | None, Part(TIME_SAMPLERS, on_path=True)] = None,
    guidance_scale: float = 1.0,
    solver: Annotated[Solver | None, Part(SOLVERS)] = None,
    spacing: Annotated[Spacing | None, Part(SPACINGS, on_path=True)] = None,
    ends_at: Annotated[Grid, Entry(GRIDS)] = grid_to_path_end,
) -> Objective:
    """The reflow objective; learns from pairs of a teacher, and starts from it.

    time_sampler: distribution of t, uniform over the path by default.
    guidance_scale: guidance of the teacher's samples, form A.
    solver, spacing: of sampling, DDIM on a uniform grid by default.
    ends_at: where the last sampling step ends.

    Raises ValueError for a prediction that says too little about the data at pure noise.
    """
    check_decoding(model, LEAST_ALPHA_ONE_STEP)
    times = time_sampler or uniform_times(model.path)

    def loss(
        params: Params, networks: Mapping[str, Params], batch: Batch, key: Key, step: Array
    ) -> tuple[Array, Metrics]:
        key_t, key_dropout = jax.random.split(key)
        eps, x_0, label = (batch["pairs"][name] for name in ("eps", "x_0", "label"))
        t = times(key_t, x_0.shape[0])
        x_t = model.path.interpolate(x_0, eps, t)
        prediction = model.predict(params, x_t, t, t, {"label": label}, train=True, rng=key_dropout)
        return prediction_loss(model, prediction, x_0, eps, t)

    return Objective(
        players={"network": Player(model.network, loss)},
        followers={},
        sample=solver_sampler(
            model,
            solver or ddim(),
            spacing or uniform_spacing(model.path),
            ends_at,
            learned_guidance(guidance_scale),
        ),
        guidance_scale=guidance_scale,
        needs_teacher=True,
        denoises=True,
        end_point=denoised_end(model, learned_guidance(guidance_scale)),
        reads=("pairs",),
    )
