"""Flow matching (Lipman et al. 2023; Liu et al. 2023): regression to the conditional velocity.

    x_t = alpha x_0 + sigma eps
    L   = E || v_theta(x_t, t, y) - (alpha' x_0 + sigma' eps) ||^2            (mean over dimensions)

Its minimiser is the conditional mean E[alpha' x_0 + sigma' eps | x_t], the velocity of the
probability-flow ODE, so the minimum is not zero: on Gaussian data N(mu, S) in D dimensions and the
linear path it is tr(S C^-1) / D at each t, with C = alpha^2 S + sigma^2 I. Labels are replaced by
the null class with probability `label_dropout`, which is what guidance at sampling needs. Nothing
is detached: the target holds no network.

The loss is taken in velocity whatever path is used; on the linear path that is eps - x_0. x_t
enters the network as it is, which suits paths of bounded scale (all but `ve`).
"""

from collections.abc import Mapping
from functools import partial

import jax
from jax import Array

from diffusion.guidance import Condition, drop_labels, guide
from diffusion.path import Path
from diffusion.time_sampling import TimeSampler, uniform
from models.network import Network
from objectives.base import (
    Batch,
    Key,
    Metrics,
    Objective,
    Params,
    Player,
    condition_of,
    loss_by_noise_level,
    per_example,
)
from objectives.distances import squared_error
from samplers.grids import uniform_grid
from samplers.ode import SOLVERS


def flow_matching(
    network: Network,
    path: Path,
    *,
    time_sampler: TimeSampler | None = None,
    label_dropout: float = 0.1,
    guidance_scale: float = 1.0,
    solver: str = "euler",
) -> Objective:
    """The flow-matching objective.

    time_sampler: how t is drawn, uniform over the path by default.
    label_dropout: probability of the null class (0.1 in Ho & Salimans 2022 and in DiT).
    guidance_scale, solver: how it samples; see `diffusion.guidance` and `samplers.ode`.
    """
    time_sampler = time_sampler or uniform(path)
    solve = SOLVERS[solver]

    def loss(
        params: Params, networks: Mapping[str, Params], batch: Batch, key: Key, step: Array
    ) -> tuple[Array, Metrics]:
        key_t, key_eps, key_label, key_dropout = jax.random.split(key, 4)
        x_0 = batch["x"]
        t = time_sampler(key_t, x_0.shape[0])
        eps = jax.random.normal(key_eps, x_0.shape)
        condition = drop_labels(key_label, condition_of(batch), label_dropout)
        x_t = path.interpolate(x_0, eps, t)
        prediction = network.apply(params, x_t, t, t, condition, train=True, rng=key_dropout)
        error = per_example(squared_error(prediction, path.velocity(x_0, eps, t)))
        return error, loss_by_noise_level(error, t, path)

    def sample(
        params: Params,
        eps: Array,
        condition: Condition,
        keys: Array,
        *,
        steps: int,
        guidance_scale: float,
    ) -> Array:
        predict = guide(partial(network.apply, params), guidance_scale)
        times = uniform_grid(path, steps)
        return solve(lambda x, t: predict(x, t, t, condition), path.prior(eps), times)

    return Objective(
        players={"network": Player(network.init, loss)},
        followers={},
        sample=sample,
        guidance_scale=guidance_scale,
    )
