"""Denoising: regression of the network's output to its target, computed from data and noise.

    x_t = alpha x_0 + sigma eps
    L   = E || prediction_theta(x_t, t, y) - target(x_0, eps, t) ||^2        (mean over dimensions)

The target is what the model's kind of prediction stands for, at the known x_0 and eps
(`diffusion.prediction`). The kind fixes the weight of the error of x_0:

    kind      source                     L in terms of || x_0 - D ||^2, D the denoised data
    F         EDM (Karras et al. 2022)   (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 on `ve`
    eps       DDPM (Ho et al. 2020)      alpha^2 / sigma^2
    v         Salimans & Ho 2022         1 + alpha^2 / sigma^2 on variance-preserving paths
    velocity  flow matching              (alpha' - alpha sigma' / sigma)^2
    tilt      students of samplers       that of v, with which it is compared (`compared_as`)

The weight of F is EDM's: lambda(sigma) c_out^2 = 1. The minimiser is the conditional mean of the
target, so the minimum is not zero; on Gaussian data it is known (tests). The null class replaces
labels with probability `label_dropout`, because guided sampling needs a prediction without label.
Nothing is detached, because the target contains no network.
"""

from collections.abc import Mapping
from functools import partial
from typing import Annotated

import jax
from jax import Array

from fewstep.diffusion.guidance import Condition, Predict, drop_labels
from fewstep.diffusion.prediction import compared_as, convert, prediction_target
from fewstep.diffusion.spacing import SPACINGS, Spacing, uniform_spacing
from fewstep.diffusion.time_sampling import TIME_SAMPLERS, TimeSampler, uniform_times
from fewstep.models.model import Model, check_decoding
from fewstep.objectives.base import (
    Batch,
    Key,
    LossFn,
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
from fewstep.objectives.needs import needs
from fewstep.objectives.sampling import Guidance, denoised_end, sample_fn, sampling_guidance
from fewstep.parts import Entry, Part
from fewstep.samplers import SOLVERS
from fewstep.samplers.grids import GRIDS, Grid, grid_to_path_end
from fewstep.samplers.ode import Solver, euler


@needs()
def denoising(
    model: Model,
    *,
    time_sampler: Annotated[TimeSampler | None, Part(TIME_SAMPLERS, on_path=True)] = None,
    label_dropout: float = 0.1,
    guidance_scale: float = 1.0,
    solver: Annotated[Solver | None, Part(SOLVERS)] = None,
    spacing: Annotated[Spacing | None, Part(SPACINGS, on_path=True)] = None,
    ends_at: Annotated[Grid, Entry(GRIDS)] = grid_to_path_end,
    guided_channels: int | None = None,
) -> Objective:
    """The denoising objective: EDM, DDPM or flow matching, by the model's kind and path.

    time_sampler: distribution of t, uniform over the path by default.
    label_dropout: probability of the null class (0.1 in Ho & Salimans 2022 and in DiT).
    guidance_scale: default guidance of sampling, form A.
    solver, spacing: of sampling, Euler on a uniform grid by default.
    ends_at: where the last sampling step ends, at the path's t_min or, as EDM's, at the data.
    guided_channels: how many leading channels are guided in sampling, all by default. The code of
        DiT and SiT guides the first 3 of its 4 channels.
    """
    check_decoding(model)
    loss = denoising_loss(model, time_sampler or uniform_times(model.path), label_dropout)
    return Objective(
        players={"network": Player(model.network, loss)},
        followers={},
        sample=solver_sampler(
            model,
            solver or euler(),
            spacing or uniform_spacing(model.path),
            ends_at,
            partial(sampling_guidance, channels=guided_channels),
        ),
        guidance_scale=guidance_scale,
        denoises=True,
        end_point=denoised_end(model, partial(sampling_guidance, channels=guided_channels)),
    )


def denoising_loss(model: Model, time_sampler: TimeSampler, label_dropout: float = 0.0) -> LossFn:
    """The loss of the network's output at a random t."""

    def loss(
        params: Params, networks: Mapping[str, Params], batch: Batch, key: Key, step: Array
    ) -> tuple[Array, Metrics]:
        key_t, key_eps, key_label, key_dropout = jax.random.split(key, 4)
        x_0 = batch["x"]
        t = time_sampler(key_t, x_0.shape[0])
        eps = jax.random.normal(key_eps, x_0.shape)
        condition = drop_labels(key_label, batch_condition(batch), label_dropout)
        x_t = model.path.interpolate(x_0, eps, t)
        prediction = model.predict(params, x_t, t, t, condition, train=True, rng=key_dropout)
        return prediction_loss(model, prediction, x_0, eps, t)

    return loss


def prediction_loss(
    model: Model, prediction: Array, x_0: Array, eps: Array, t: Array
) -> tuple[Array, Metrics]:
    """(loss [B], metrics) of the network's output at x_t = alpha x_0 + sigma eps."""
    kind, x_t = compared_as(model.kind), model.path.interpolate(x_0, eps, t)
    compared = convert(prediction, x_t, t, model.path, source=model.kind, to=kind)
    target = prediction_target(kind, x_0, eps, t, model.path)
    error = per_example(squared_error(compared, target))
    return error, noise_level_means("loss", error, t, model.path)


def solver_sampler(
    model: Model,
    solver: Solver,
    spacing: Spacing,
    grid: Grid = grid_to_path_end,
    guidance: Guidance = sampling_guidance,
) -> SampleFn:
    """Sampling by the solver, in equal steps of the spacing; by default at any guidance scale."""

    def solve(predict: Predict, eps: Array, condition: Condition, keys: Array, steps: int) -> Array:
        denoise, path = model.denoiser(predict, condition), model.path
        return solver(denoise, path, path.prior(eps), grid(path, spacing, steps), keys)

    return sample_fn(model.predict, solve, guidance)
