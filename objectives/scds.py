"""Self-distilled consistent samplers (SCDS; Jutras-Dube et al. 2025, arXiv:2502.07579, 2512.05251).

One network samples a density in any power of two of steps, without data and without a teacher. It
is a diffusion sampler (objectives/path_sampling.py) whose network has the step size as an input,
taught by its own half steps as a shortcut model (objectives/shortcut.py).

On a variance-preserving path the probability-flow ODE has a simple form in alpha,

    dx / d alpha = tilt(x, t),    tilt = x_0 - (alpha / sigma) eps

so the network predicts n(x_t, t, s), the average tilt from t to s, and a jump is

    x_s = x_t + (alpha_s - alpha_t) n(x_t, t, s) = x_t - (t - s) u(x_t, t, s)

with u, the average velocity, in place of that of a shortcut model. At n = 0 samples stay at the
prior. M is `max_steps`; the finest size 1 / M stands for size 0, as in a shortcut model.

    path        the loss of a controlled diffusion in M steps, with n(x, t, t - 1/M) as control
    bootstrap   || n(x_t, t, t - 2d) - stop_gradient(n_target) ||^2
                n_target from two jumps of d, by the follower `target`

x_t lies on the paths of the first loss, so bootstrap rows cost three evaluations more. They are
detached: the second loss does not move the paths. Every row has a step size, in turn.

Samples are maps of noise, so an evaluation weighs them by objectives/flow_weights.py, in any number
of steps.

Where the papers and this file differ:

* A jump is an Euler step in alpha. Theirs is one in time with the rate at its start, which in one
  step multiplies by a rate that changes a hundredfold over the step.
* Errors are those of n, so every size has the same weight; theirs are those of x_s.
* One update for the sum of both losses; their code makes two.
* Targets are those of the current network, detached, as in the first paper. `target_decay` = 0.999
  is the second's. Its losses of volumes and of Jacobians are left out, and so is its warm-up of the
  weight.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax import Array

from fewstep.diffusion.guidance import Condition
from fewstep.diffusion.path import Path, align
from fewstep.diffusion.prediction import Endpoints, endpoints
from fewstep.diffusion.spacing import uniform_spacing
from fewstep.diffusion.time_sampling import ROW_LEVELS, RowLevels, dyadic_steps
from fewstep.models.model import Model
from fewstep.objectives.base import (
    Batch,
    Follower,
    Key,
    Metrics,
    Objective,
    Params,
    Player,
    mean_metric,
    noise_level_means,
)
from fewstep.objectives.distances import DISTANCES, Distance, check_compares_any, squared_l2
from fewstep.objectives.flow_weights import flow_diagnostics
from fewstep.objectives.followers import constant_ema
from fewstep.objectives.needs import needs
from fewstep.objectives.path_sampling import (
    PATH_LOSSES,
    PathLoss,
    controlled_paths,
    density_of,
    path_weights,
    weight_metrics,
)
from fewstep.objectives.shortcut import bootstrap_target, check_max_steps
from fewstep.objectives.shortcut_sampling import jump_sampler, jumps_to_end
from fewstep.parts import Entry, Part
from fewstep.samplers.controlled import check_noising, euler_kernel


def alpha_speed(path: Path, t: Array, s: Array) -> Array:
    """(alpha_s - alpha_t) / (t - s), [B]: the average speed of alpha towards the data."""
    return (path.alpha(s) - path.alpha(t)) / (t - s)


def average_velocity(
    model: Model, params: Params, x_t: Array, t: Array, s: Array, condition: Condition, **mode: Any
) -> Array:
    """u(x_t, t, s) of a network that predicts the average tilt; s < t. As `Model.predict`."""
    tilt = model.predict(params, x_t, t, s, condition, **mode)
    return -align(alpha_speed(model.path, t, s), x_t) * tilt


def finest_endpoints(model: Model, finest: float) -> Callable[..., Endpoints]:
    """`Model.endpoints` of a network whose steps of size `finest` stand for size 0."""

    def at(params: Params, x_t: Array, t: Array, condition: Condition, **mode: Any) -> Endpoints:
        tilt = model.predict(params, x_t, t, t - finest, condition, **mode)
        return endpoints(model.kind, tilt, x_t, t, model.path)

    return at


def check_tilt(model: Model) -> None:
    """Raises ValueError for another prediction than tilt, and for a path without noising."""
    check_noising(model.path)
    if model.kind.name != "tilt":
        raise ValueError(f"this method needs prediction.kind=tilt, not {model.kind.name}")


def tilt_target(
    model: Model, target: Params, x_t: Array, t: Array, size: Array, condition: Condition
) -> Array:
    """The average tilt over a step of `size`, from two half steps of `target`. t, size: [B]."""
    velocity = partial(average_velocity, model, target)
    u = bootstrap_target(velocity, x_t, t, size, condition)
    return -u / align(alpha_speed(model.path, t, t - size), x_t)


@needs(second_time="step_size")
def scds(
    model: Model,
    *,
    max_steps: int = 128,
    path_loss: Annotated[PathLoss, Entry(PATH_LOSSES)] = PATH_LOSSES["log_variance"],
    bootstrap_weight: float = 1.0,
    leftover_rows: Annotated[RowLevels, Entry(ROW_LEVELS)] = ROW_LEVELS["coarse"],
    target_decay: float = 0.0,
    distance: Annotated[Distance | None, Part(DISTANCES)] = None,
) -> Objective:
    """The SCDS objective on a density; reads no data, and needs no teacher.

    max_steps: M, a power of two: steps of a path, and most sampling steps.
    path_loss: log_variance by default, as in the papers; or kl.
    bootstrap_weight: of the second loss.
    leftover_rows: which step sizes get the rows that are left when each has as many.
    target_decay: EMA decay of the follower that computes targets; 0 for the network itself.
    distance: between the network and its target, squared L2 by default.

    Raises ValueError without a density, for another prediction than tilt, and as `check_noising`.
    """
    check_max_steps(max_steps)
    density = density_of(model)
    check_tilt(model)
    distance = distance or squared_l2()
    check_compares_any(distance, "objective.distance", "tilts")
    path, levels = model.path, max_steps.bit_length() - 1
    span = path.t_max - path.t_min
    finest = finest_endpoints(model, span / max_steps)
    paths = partial(controlled_paths, model, euler_kernel, uniform_spacing(path))

    def loss(
        params: Params, networks: Mapping[str, Params], batch: Batch, key: Key, step: Array
    ) -> tuple[Array, Metrics]:
        key_start, key_path, key_time, *keys_dropout = jax.random.split(key, 5)
        condition = {"label": batch["label"]}
        rows = batch["label"].shape[0]
        first, second = ({"train": True, "rng": own} for own in keys_dropout)
        start = jax.random.normal(key_start, (rows, density.dim))
        made = paths(
            partial(finest, params, **first),
            start,
            condition,
            jax.random.split(key_path, rows),
            max_steps,
            path_loss.drive,
        )
        log_w = path_weights(density, start, made)
        path_error = path_loss.rows(log_w) / density.dim

        fraction, share = dyadic_steps(key_time, leftover_rows(rows, levels))
        t, size = path.t_min + span * fraction, span * share
        point = jnp.round(max_steps * (1.0 - fraction)).astype(jnp.int32)
        x_t = jax.lax.stop_gradient(made.states)[point, jnp.arange(rows)]
        target = tilt_target(model, networks["target"], x_t, t, size, condition)
        tilt = model.predict(params, x_t, t, t - size, condition, **second)
        bootstrap_error = distance(tilt, target)

        metrics = noise_level_means("loss_bootstrap", bootstrap_error, t, path) | {
            **weight_metrics(log_w),
            "loss_path": mean_metric(path_error),
            "loss_bootstrap": mean_metric(bootstrap_error),
        }
        return path_error + bootstrap_weight * bootstrap_error, metrics

    velocity = partial(average_velocity, model)
    sample = jump_sampler(model, max_steps, 1.0, velocity=velocity)
    return Objective(
        players={"network": Player(model.network, loss)},
        followers={"target": Follower("network", constant_ema(target_decay))},
        sample=sample,
        reads=("labels",),
        init_from={},
        end_point=jumps_to_end(model, max_steps, 1.0, velocity=velocity),
        diagnostics=flow_diagnostics(density, sample),
    )
