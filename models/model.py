"""A network on a path: scales its inputs, and converts its output to data and noise."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from fewstep.densities.density import Density
from fewstep.diffusion.guidance import Condition, Predict, guide
from fewstep.diffusion.path import Path, align
from fewstep.diffusion.prediction import Denoise, Endpoints, Kind, coefficients, endpoints
from fewstep.models.network import Key, Network, Params
from fewstep.models.user_sampler import UserSampler, stands_for_sampler

# Largest component of a score that a network is given (Vargas et al. 2023, their code).
SCORE_CLIP = 100.0


class Model(NamedTuple):
    """A network whose output is a prediction of `kind` on `path`.

    teacher_scales: (low, high) of the guidance scales that its teacher takes as an input, or ().
    density: what a run without data samples from, or None.
    sampler: reads the sampler that teaches, if a file of the user's does (models/user_sampler.py).
    """

    network: Network
    path: Path
    kind: Kind
    teacher_scales: tuple[float, ...] = ()
    density: Density | None = None
    sampler: Callable[[], UserSampler] | None = None

    def predict(
        self,
        params: Params,
        x_t: Array,
        t: Array,
        s: Array,
        condition: Condition,
        *,
        train: bool = False,
        rng: Key | None = None,
    ) -> Array:
        """The network's output at (x_t, t, s): [B, ...].

        x_t: [B, ...]. t, s: [B] or [1], in the path's time, with s <= t. The network itself gets
        c_in x_t, clock(t) and clock(s). Parameters that stand for the user's sampler give its
        prediction.
        """
        if self.sampler is not None and stands_for_sampler(params):
            rows = jnp.broadcast_to(t, x_t.shape[:1])
            return self.sampler().predict(self.kind, self.path, x_t, rows)
        inputs, condition = self.inputs(x_t, t, s), self.with_score(condition, x_t, t)
        return self.network.apply(params, *inputs, condition, train=train, rng=rng)

    def inputs(self, x_t: Array, t: Array, s: Array) -> tuple[Array, Array, Array]:
        """The network's inputs for x_t, t and s."""
        c_in = self.kind.c_in(coefficients(self.path, t, x_t))
        return c_in * x_t, self.path.clock(t), self.path.clock(s)

    def features(
        self,
        params: Params,
        x_t: Array,
        t: Array,
        s: Array,
        condition: Condition,
        names: Sequence[str],
        **mode: Any,
    ) -> tuple[Array, dict[str, Array]]:
        """(output of `predict`, the network's hidden features of these names)."""
        inputs, condition = self.inputs(x_t, t, s), self.with_score(condition, x_t, t)
        return self.network.features(params, *inputs, condition, names, **mode)

    def with_score(self, condition: Condition, x_t: Array, t: Array) -> Condition:
        """The condition, with the entry "score" that a network with `score_input` reads.

        It is share(t) clip(x + grad log rho(x)), the tilt of the density itself at the data:

            share = alpha / (alpha^2 + lambda sigma^2)     lambda = score_precision of the network
            share = 1 - u, with u from 0 at the data to 1 at the prior     (Berner et al. 2024) if 0

        The first makes it the tilt of the noised density at all times if this is N(0, I / lambda)
        and the path preserves variance. If the score fades more slowly than the density widens, an
        untrained network throws paths far off. A model without density gives none.
        """
        if not self.network.score_input or self.density is None:
            return condition
        # Far out a density may overflow, and its gradient is then no number.
        score = jnp.nan_to_num(self.density.scaled_score(x_t))
        tilt = jnp.clip(x_t + score, -SCORE_CLIP, SCORE_CLIP)
        return {**condition, "score": align(self.score_share(t), x_t) * tilt}

    def score_share(self, t: Array) -> Array:
        """The share of the score in `with_score`: [B]."""
        path, precision = self.path, self.network.score_precision
        if not precision:
            return (path.t_max - t) / (path.t_max - path.t_min)
        alpha, sigma = path.alpha(t), path.sigma(t)
        return alpha / (alpha**2 + precision * sigma**2)

    def endpoints(
        self,
        params: Params,
        x_t: Array,
        t: Array,
        condition: Condition,
        **mode: Any,
    ) -> Endpoints:
        """The data and noise that the network predicts at (x_t, t).

        mode: train and rng, as for `predict`.
        """
        prediction = self.predict(params, x_t, t, t, condition, **mode)
        return endpoints(self.kind, prediction, x_t, t, self.path)

    def denoiser(self, predict: Predict, condition: Condition) -> Denoise:
        """(x, t) -> Endpoints, by a prediction function of this kind, guided or not."""

        def denoise(x: Array, t: Array) -> Endpoints:
            return endpoints(self.kind, predict(x, t, t, condition), x, t, self.path)

        return denoise

    def guide_teacher(self, predict: Predict, scale: Array | float) -> Predict:
        """The teacher's prediction at a guidance scale, form A; all losses guide teachers by this.

        A teacher that takes the scale as an input has it already: in the condition, or, for a
        network without this input, in its parameters (`fix_guidance`). Another teacher is evaluated
        with and without its label (`guide`).
        """
        return predict if self.teacher_scales else guide(predict, scale)

    def consistency(
        self,
        params: Params,
        x_t: Array,
        t: Array,
        condition: Condition,
        **mode: Any,
    ) -> Array:
        """The consistency function f(x_t, t), a DDIM step of the prediction to the data end.

        f = alpha(t_min) x_0 + sigma(t_min) eps. Every prediction satisfies x_t = alpha x_0 + sigma
        eps, so f(x, t_min) = x for any parameters, on any path, for every kind whose decoding is
        finite there (`check_boundary`). On `ve` with kind F the factor of F is that of Song et al.
        2023 (appendix C), (sigma - sigma_min) sigma_data / sqrt(sigma^2 + sigma_data^2). The factor
        of x_t differs from theirs by at most 0.10 percent of 1. With the parameters of a denoiser f
        is its DDIM sampler in one step.

        mode: train and rng, as for `predict`.
        """
        ends = self.endpoints(params, x_t, t, condition, **mode)
        return self.path.interpolate(*ends, jnp.full_like(t, self.path.t_min))


# Smallest alpha(t_max) at which a prediction of eps determines the data, (x - sigma eps) / alpha.
# A sampler of many steps recovers from a factor of 150 (vp_ddpm); a single step does not.
LEAST_ALPHA_SAMPLED, LEAST_ALPHA_ONE_STEP = 1e-3, 0.05


def check_decoding(model: Model, least_alpha: float = LEAST_ALPHA_SAMPLED) -> None:
    """Raises ValueError unless a prediction determines the data at t_max, where sampling starts."""
    where = f"the noise end of path.name={model.path.name}"
    check_decoding_at(model, model.path.t_max, where, least_alpha)


def check_decoding_at(model: Model, t: Array | float, where: str, least_alpha: float) -> None:
    """Raises ValueError unless a prediction determines the data at t, which `where` names."""
    with jax.ensure_compile_time_eval():
        alpha = float(model.path.alpha(jnp.float32(t)))
    if model.kind.name in ("eps", "score") and alpha < least_alpha:
        raise ValueError(
            f"prediction.kind={model.kind.name} says too little about the data at {where}, where "
            f"alpha is {max(alpha, 0.0):.2g}; use velocity, v or F"
        )


def check_boundary(model: Model) -> None:
    """Raises ValueError unless `Model.consistency` is the identity at t_min for any network.

    If sigma(t_min) is 0, f(x, t_min) is the network's own prediction of x_0, which need not be x,
    and a score has no finite target.
    """
    check_decoding(model, LEAST_ALPHA_ONE_STEP)
    sigma = float(model.path.sigma(jnp.float32(model.path.t_min)))
    if model.kind.name in ("x_0", "score") and sigma == 0.0:
        raise ValueError(
            f"prediction.kind={model.kind.name} does not make a consistency function the identity "
            f"at the data end of path.name={model.path.name}; use velocity, v or F"
        )


# Largest alpha(t_max) at which a path counts as ending at pure noise.
PURE_NOISE = 1e-3


def check_flow_map(model: Model) -> None:
    """Raises ValueError unless a network can predict average velocities from noise to data."""
    path, kind = model.path, model.kind
    if kind.name != "velocity":
        raise ValueError(f"this method needs prediction.kind=velocity, not {kind.name}")
    if path.t_min != 0.0 or abs(float(path.alpha(jnp.float32(path.t_max)))) > PURE_NOISE:
        raise ValueError(
            "this method needs a path from data at t = 0 to pure noise, with a bounded velocity: "
            f"path.name=linear, vp_cosine or trigflow, not {path.name}"
        )


# Fields of a config that decide whether a method uses a part of the network.
REASONS = {
    "second_time": "",
    "guidance_input": " (objective.guidance_range uses it)",
    "guidance_interval": "",
    "trajectory": " (objective.times uses it)",
    "loss_weight": " (objective.adaptive_weight uses it)",
}


def check_needs(
    model: Model,
    *,
    second_time: str = "none",
    guidance_input: bool = False,
    guidance_interval: bool = False,
    trajectory: int = 1,
    loss_weight: bool = False,
    reconstructs: bool = False,
) -> None:
    """Raises ValueError unless the network has the parts that a method uses, and no others.

    reconstructs: whether it may be a codec. The other arguments are the required values of fields
    of the config's `model`.
    """
    network = model.network
    if network.codec is not None and not reconstructs:
        raise ValueError("model.name=codec is no denoiser; only the method autoencoder trains it")
    has = {
        "second_time": network.second_time,
        "guidance_input": network.guidance_input,
        "guidance_interval": network.guidance_interval,
        "trajectory": network.trajectory,
        "loss_weight": network.log_weight is not None,
    }
    uses = {
        "second_time": second_time,
        "guidance_input": guidance_input,
        "guidance_interval": guidance_interval,
        "trajectory": trajectory,
        "loss_weight": loss_weight,
    }
    for field, value in uses.items():
        if has[field] != value:
            raise ValueError(
                f"this method needs model.{field}={value}, not {has[field]}{REASONS[field]}: it "
                "cannot use a missing part, and would not train an unused one"
            )
