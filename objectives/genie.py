"""GENIE (Dockhorn et al. 2022, arXiv:2210.05475): a head in place of a derivative of the network.

With rho = sigma / alpha, y = x / alpha moves along the trajectory by dy / drho = eps(y, rho). A
Taylor step of second order (their section 3, `samplers.ode.taylor_step`) is

    x_s = DDIM(x_t) + alpha_s (rho_s - rho_t)^2 / 2 deps / drho.

deps / drho is the rate of eps along the trajectory, a Jacobian-vector product of the network. A
small head k on the last hidden features of the frozen network learns it (their section 3.1):

    L = E || rho k_psi(x_t, t, y) - rho deps / drho ||^2
    rho k = -h_1 + sigma^2 / (alpha^2 + sigma^2) h_2 + alpha^2 / (alpha^2 + sigma^2) h_3

with the outputs h_1, h_2, h_3 of the head, their mixed parameterisation. The weight rho^2 is
theirs: deps / drho = -(dx_0 / drho) / rho grows as 1 / rho next to the data, and
rho deps / drho = deps / dlog(rho) is finite at both ends of every path:

    deps / dlog(rho) = alpha sigma / (alpha sigma' - alpha' sigma) deps / dt

The target is a function of x_t, so the minimum of the loss is zero; the sampler is then that of the
solver `genie`, without its derivative. On Gaussian data the target is known (tests). A head of zero
output, as it starts, samples by DDIM. So does the step from pure noise, where rho is infinite.

The network is the teacher's and stays so: the loss is differentiated in the head alone
(`Player.trained`). Nothing is detached, since the target has no parameter of the head. The run
predicts data and noise as its teacher does, and so teaches.

Where the paper and this file differ:

* Any path and prediction serve. The paper has eps on the path of DDPM.
* The head reads the features after the last block. Theirs also reads x_t, eps and the time.
* With `guidance_scale` the target is the rate of the guided eps along the guided trajectory, which
  is not linear in the scale. The head then knows that scale alone. Its features are those of the
  evaluation with the label.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp
from jax import Array

from fewstep.diffusion.guidance import Condition, Predict, check_trained_scale, drop_labels, guide
from fewstep.diffusion.path import Path, align
from fewstep.diffusion.prediction import Endpoints, coefficients, endpoints
from fewstep.diffusion.spacing import SPACINGS, Spacing, uniform_spacing
from fewstep.diffusion.time_sampling import TIME_SAMPLERS, TimeSampler, uniform_times
from fewstep.models.heads import add_head
from fewstep.models.model import Model, check_decoding
from fewstep.models.network import Network
from fewstep.models.output_head import output_head
from fewstep.objectives.base import (
    Batch,
    Key,
    LossFn,
    Mean,
    Metrics,
    Objective,
    Params,
    Player,
    SampleFn,
    batch_condition,
    noise_level_means,
    per_example,
)
from fewstep.objectives.derivatives import forward_derivative
from fewstep.objectives.distances import squared_error
from fewstep.objectives.needs import needs
from fewstep.objectives.sampling import Guidance, denoised_end, sample_fn
from fewstep.parts import Entry, Part
from fewstep.samplers.grids import GRIDS, Grid, grid_to_path_end
from fewstep.samplers.ode import curved_step, repeat_step

# The head's entry in the network's parameters, and its number of outputs h.
RATE, OUTPUTS = "rate", 3
# (params, x, t, s, condition) -> [prediction, rho k] on the last axis: [B, ..., 2 C]
Rated = Callable[..., Array]


@needs()
def genie(
    model: Model,
    *,
    head_width: int = 128,
    time_sampler: Annotated[TimeSampler | None, Part(TIME_SAMPLERS, on_path=True)] = None,
    label_dropout: float = 0.1,
    guidance_scale: float = 1.0,
    spacing: Annotated[Spacing | None, Part(SPACINGS, on_path=True)] = None,
    ends_at: Annotated[Grid, Entry(GRIDS)] = grid_to_path_end,
) -> Objective:
    """The GENIE objective; starts from a teacher, whose network it keeps, and trains a head on it.

    head_width: units of the head's hidden layer.
    time_sampler: distribution of t, uniform over the path by default.
    label_dropout: probability of the null class.
    guidance_scale: guidance of the network, form A, in training and in sampling.
    spacing, ends_at: of the sampling steps, uniform in the path's time by default.

    Raises ValueError for a network without hidden features.
    """
    check_decoding(model)
    headed = model._replace(network=with_rate_head(model.network, head_width))
    rated, guidance = partial(rated_prediction, headed), rate_guidance(model, guidance_scale)
    times = time_sampler or uniform_times(model.path)
    return Objective(
        players={
            "network": Player(
                headed.network,
                rate_loss(model, rated, guidance_scale, times, label_dropout),
                headline="unexplained",
                trained=(RATE,),
            )
        },
        followers={},
        sample=taylor_sampler(
            model, rated, spacing or uniform_spacing(model.path), ends_at, guidance
        ),
        guidance_scale=guidance_scale,
        needs_teacher=True,
        denoises=True,
        end_point=denoised_end(model, guidance),
    )


def with_rate_head(network: Network, width: int) -> Network:
    """The network with the head of GENIE. Raises ValueError if it has no hidden features."""
    if not network.hidden:
        raise ValueError("this method reads hidden features, and the network has none; use a DiT")
    module = output_head(network.shape, OUTPUTS, width)
    return add_head(network, RATE, module, reads=network.hidden[-1:])


def rated_prediction(
    headed: Model, params: Params, x: Array, t: Array, s: Array, condition: Condition
) -> Array:
    """The network's output and rho k, by one evaluation: [B, ..., 2 C]. x: [B, ..., C]."""
    head = headed.network.head(RATE)
    prediction, hidden = headed.features(params, x, t, s, condition, head.reads)
    c = coefficients(headed.path, t, x)
    share = c.sigma**2 / (c.alpha**2 + c.sigma**2)
    h_1, h_2, h_3 = jnp.split(head.apply(params, hidden), OUTPUTS, axis=-1)
    return jnp.concatenate([prediction, -h_1 + share * h_2 + (1.0 - share) * h_3], axis=-1)


def rate_guidance(model: Model, trained_scale: float) -> Guidance:
    """Guides the prediction at the scale of training, and leaves the head's output as it is.

    A network that has its teacher's scale in its parameters is not guided again.
    """

    def guidance(predict: Predict, asked: float, steps: int) -> Predict:
        check_trained_scale(asked, trained_scale)
        return guided_rate(model, predict, trained_scale)

    return guidance


def guided_rate(model: Model, predict: Predict, scale: float) -> Predict:
    """A prediction [B, ..., C or more] with its first C channels guided."""
    return predict if model.teacher_scales else guide(predict, scale, model.network.shape[-1])


def rate_loss(
    model: Model, rated: Rated, scale: float, times: TimeSampler, label_dropout: float
) -> LossFn:
    """|| rho k - rho deps / drho ||^2 of `rated`, at a random t of noised data.

    Its metric `unexplained` is the loss divided by that of k = 0, DDIM.
    """

    def loss(
        params: Params, networks: Mapping[str, Params], batch: Batch, key: Key, step: Array
    ) -> tuple[Array, Metrics]:
        key_t, key_eps, key_label = jax.random.split(key, 3)
        x_0 = batch["x"]
        t = times(key_t, x_0.shape[0])
        x_t = model.path.interpolate(x_0, jax.random.normal(key_eps, x_0.shape), t)
        condition = drop_labels(key_label, batch_condition(batch), label_dropout)
        predict = guided_rate(model, partial(rated, params), scale)
        ends, rate = split_rated(model, predict(x_t, t, t, condition), x_t, t)
        plain = model.guide_teacher(partial(model.predict, params), scale)
        target = log_rate(model, plain, ends, x_t, t, condition)
        error, size = per_example(squared_error(rate, target)), per_example(target**2)
        unexplained = Mean(jnp.sum(error), jnp.sum(size))
        bins = noise_level_means("loss", error, t, model.path)
        return error, {"unexplained": unexplained, **bins}

    return loss


def split_rated(model: Model, output: Array, x_t: Array, t: Array) -> tuple[Endpoints, Array]:
    """(data and noise, rho k) of what `rated_prediction` gives."""
    prediction, rate = jnp.split(output, 2, axis=-1)
    return endpoints(model.kind, prediction, x_t, t, model.path), rate


def log_rate(
    model: Model, predict: Predict, ends: Endpoints, x_t: Array, t: Array, condition: Condition
) -> Array:
    """deps / dlog(rho) along the trajectory through x_t. ends: the prediction there.

    Raises ValueError for a network without a forward derivative.
    """
    denoise = model.denoiser(predict, condition)
    directions = model.path.velocity(*ends, t), jnp.ones_like(t)
    _, rate = forward_derivative(lambda x, t: denoise(x, t).eps, (x_t, t), directions)
    return log_rho_time(model.path, x_t, t) * rate


def log_rho_time(path: Path, x_t: Array, t: Array) -> Array:
    """dt / dlog(rho), 0 at the ends of a path from data to pure noise; aligned with x_t."""
    c = coefficients(path, t, x_t)
    return c.alpha * c.sigma / (c.alpha * c.sigma_rate - c.alpha_rate * c.sigma)


def rated_step(
    rated_ends: Callable[[Array, Array], tuple[Endpoints, Array]],
    path: Path,
    x: Array,
    t: Array,
    s: Array,
) -> Array:
    """x_s by Taylor's step. rated_ends: (x, t) -> (data and noise, rho k)."""
    ends, rate = rated_ends(x, t)
    return curved_step(path, ends, rate / align(path.rho(t), x), t, s)


def taylor_sampler(
    model: Model, rated: Rated, spacing: Spacing, grid: Grid, guidance: Guidance
) -> SampleFn:
    """Sampling by Taylor steps with the head's rate. N evaluations in N steps."""

    def solve(predict: Predict, eps: Array, condition: Condition, keys: Array, steps: int) -> Array:
        def rated_ends(x: Array, t: Array) -> tuple[Endpoints, Array]:
            return split_rated(model, predict(x, t, t, condition), x, t)

        times = grid(model.path, spacing, steps)
        return repeat_step(rated_step)(rated_ends, model.path, model.path.prior(eps), times, keys)

    return sample_fn(rated, solve, guidance)
