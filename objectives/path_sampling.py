"""Samplers of a density by controlled diffusions: what `dis` and `dds` share.

A network controls a diffusion from N(0, I) (samplers/controlled.py), whose paths have weights w
with E w = Z. The control is f = x + score, from the network's prediction of any kind. The optimal f
is that of the noised density, so a trained network predicts data and noise at every time, as a
denoiser does. It teaches every student of denoisers by its probability-flow ODE. No data are read.

    kl             E[-log w] = KL(paths || noised density) - log Z
    log_variance   Var[log w] over the rows of a micro-batch, of paths that the detached network
                   drives (Richter & Berner 2024)

Both are zero (up to log Z) only at the optimum. The gradient of kl goes through the whole path.
That of log_variance does not: its points are detached, so each step is differentiated alone, and a
constant added to log rho changes nothing. Losses are divided by the dimension.

For an imperfect network the samples of the diffusion and those of its ODE differ. The weights, and
so the diagnostics, are of the diffusion; `objective.solver` says what an evaluation samples with.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fewstep.densities.density import Density
from fewstep.diffusion.guidance import Condition
from fewstep.diffusion.spacing import Spacing, uniform_spacing
from fewstep.models.model import Model
from fewstep.objectives.base import (
    Batch,
    Diagnostics,
    Key,
    Mean,
    Metrics,
    Objective,
    Params,
    Player,
    mean_metric,
)
from fewstep.objectives.denoising import solver_sampler
from fewstep.samplers.controlled import (
    Discretisation,
    Trajectory,
    check_noising,
    control_of,
    log_prior,
    simulate,
)
from fewstep.samplers.grids import time_grid
from fewstep.samplers.ode import Solver, heun

# A log weight further from the median than so many median deviations (of 1 or more) is left out.
FARTHEST = 100.0
LARGEST = 1e15  # the sum of squares of larger ones overflows
# Parts of the samples, whose estimates of log Z give its standard error.
LOG_Z_BATCHES = 10


class PathLoss(NamedTuple):
    """A loss of paths. rows: log weights [B] -> loss [B]. drive: as for `simulate`."""

    rows: Callable[[Array], Array]
    drive: Callable[[Array], Array]


def variance_rows(log_w: Array) -> Array:
    """Rows whose mean is the unbiased variance of the weights that `kept_weights` keeps: [B].

    NaN if fewer than two are kept, which ends the run. Raises ValueError for a single row.
    """
    if log_w.size < 2:
        raise ValueError(
            "objective.path_loss=log_variance needs 2 rows or more in a micro-batch; choose a "
            "larger batch_size, fewer micro_batches, or objective.path_loss=kl"
        )
    kept = kept_weights(log_w)
    count = jnp.sum(kept)
    log_w = jnp.where(kept, log_w, 0.0)
    apart = jnp.where(kept, log_w - jnp.sum(log_w) / count, 0.0)
    rows = apart**2 * (log_w.size / jnp.maximum(count - 1, 1))
    return jnp.where(count > 1, rows, jnp.nan)


def kept_weights(log_w: Array) -> Array:
    """bool [B]: whether a row has a square, and is none of a few that would be the whole variance.

    A step that is too long for a steep density throws single paths far away. Their weights are 0,
    but their squares would decide the update (Berner et al.'s code leaves out rows below -1e8). It
    helps where the density overflows, and not where the path itself is no number.
    """
    usable = jnp.abs(log_w) < LARGEST  # False for NaN
    apart = jnp.abs(log_w - jnp.nanmedian(jnp.where(usable, log_w, jnp.nan)))
    typical = jnp.nanmedian(jnp.where(usable, apart, jnp.nan))
    return usable & (apart <= FARTHEST * jnp.maximum(typical, 1.0))


def weight_metrics(log_w: Array) -> dict[str, Mean]:
    """Mean log weight of the rows that are kept, share of those left out, effective share."""
    kept = kept_weights(log_w)
    return {
        "log_weight": Mean(jnp.sum(jnp.where(kept, log_w, 0.0)), jnp.sum(kept)),
        "left_out": mean_metric(1.0 - kept),
        "ess": mean_metric(ess_of(log_w)[None]),
    }


PATH_LOSSES = {
    "log_variance": PathLoss(variance_rows, jax.lax.stop_gradient),
    "kl": PathLoss(jnp.negative, lambda x: x),
}


def path_sampler(
    model: Model,
    discretisation: Discretisation,
    path_loss: PathLoss,
    path_steps: int,
    spacing: Spacing | None,
    solver: Solver | None,
) -> Objective:
    """The objective of a sampler. path_steps: steps of a path in training.

    spacing: of the steps, uniform by default. solver: of sampling, Heun's by default. Raises
    ValueError without a density, and for a path without noising.
    """
    density = density_of(model)
    check_noising(model.path)
    spacing = spacing or uniform_spacing(model.path)
    paths = partial(controlled_paths, model, discretisation, spacing)

    def loss(
        params: Params, networks: Mapping[str, Params], batch: Batch, key: Key, step: Array
    ) -> tuple[Array, Metrics]:
        key_start, key_path, key_dropout = jax.random.split(key, 3)
        rows = batch["label"].shape[0]
        x = jax.random.normal(key_start, (rows, density.dim))
        made = paths(
            partial(model.endpoints, params, train=True, rng=key_dropout),
            x,
            {"label": batch["label"]},
            jax.random.split(key_path, rows),
            path_steps,
            path_loss.drive,
        )
        log_w = path_weights(density, x, made)
        return path_loss.rows(log_w) / density.dim, weight_metrics(log_w)

    return Objective(
        players={"network": Player(model.network, loss)},
        followers={},
        sample=solver_sampler(model, solver or heun(), spacing),
        denoises=True,
        reads=("labels",),
        init_from={},
        diagnostics=Diagnostics(weight_rows(model, paths), partial(weight_numbers, density.log_z)),
    )


def density_of(model: Model) -> Density:
    """The density of a model. Raises ValueError if it has none."""
    if model.density is None:
        raise ValueError(
            "this method samples an unnormalised density: set data.name=density:NAME, such as "
            "density:gmm9"
        )
    return model.density


def controlled_paths(
    model: Model,
    discretisation: Discretisation,
    spacing: Spacing,
    endpoints: Callable[..., Any],
    x: Array,
    condition: Condition,
    keys: Array,
    steps: int,
    drive: Callable[[Array], Array] = lambda x: x,
) -> Trajectory:
    """Paths from x: [B, D], draws from N(0, I). endpoints: (x, t, condition) -> Endpoints."""
    control = control_of(lambda x, t: endpoints(x, t, condition), model.path)
    return simulate(model.path, discretisation, control, x, time_grid(spacing, steps), keys, drive)


def path_weights(density: Density, start: Array, made: Trajectory) -> Array:
    """log w of paths from `start`: [B]."""
    return density.scaled_log_density(made.x) + made.log_ratio - log_prior(start)


def ess_of(log_w: Array) -> Array:
    """(sum w)^2 / (N sum w^2), the effective share of N samples, in (0, 1]."""
    return jnp.exp(
        2.0 * jax.nn.logsumexp(log_w) - jax.nn.logsumexp(2.0 * log_w) - jnp.log(log_w.size)
    )


def weight_rows(model: Model, paths: Callable[..., Trajectory]) -> Callable[..., Any]:
    """The rows of the diagnostics: log w of a path of `steps` steps from each sample's noise."""

    def rows(
        params: Params,
        eps: Array,
        condition: Condition,
        keys: Array,
        *,
        steps: int,
        guidance_scale: float,
    ) -> Mapping[str, Array]:
        made = paths(partial(model.endpoints, params), eps, condition, keys, steps)
        return {"log_w": path_weights(model.density, eps, made)}

    return rows


def weight_numbers(log_z: float | None, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Lower bound and estimate of log Z, with its error over batches, and effective sample size.

    log_z_bias compares with the truth, where that is known.
    """
    log_w = np.asarray(rows["log_w"], np.float64)
    parts = [log_mean(part) for part in np.array_split(log_w, LOG_Z_BATCHES) if len(part)]
    numbers = {
        "elbo": log_w.mean(),
        "log_z": log_mean(log_w),
        "log_z_spread": np.std(parts, ddof=1) / np.sqrt(len(parts)) if len(parts) > 1 else np.nan,
        "ess": np.exp(2 * log_mean(log_w) - log_mean(2 * log_w)),
    }
    return numbers if log_z is None else numbers | {"log_z_bias": numbers["log_z"] - log_z}


def log_mean(log_w: np.ndarray) -> float:
    """The logarithm of the mean of exp(log_w)."""
    top = log_w.max()
    return float(top + np.log(np.mean(np.exp(log_w - top))))
