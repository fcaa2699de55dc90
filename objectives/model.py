"""A network on a path: what it is given at (x_t, t), and what its output stands for."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from diffusion.guidance import Condition, Predict
from diffusion.path import Path
from diffusion.prediction import Endpoints, Kind, coefficients, endpoints
from models.network import Key, Network, Params
from samplers.ode import Denoise


class Model(NamedTuple):
    """A network whose output on `path` is a prediction of `kind`."""

    network: Network
    path: Path
    kind: Kind

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
        """The network's output at (x_t, t, s), its inputs scaled as the kind and the path ask for.

        x_t: [B, ...]; t, s: [B] in the path's time, s <= t. The network sees c_in x_t, clock(t) and
        clock(s).
        """
        c_in = self.kind.c_in(coefficients(self.path, t, x_t))
        times = self.path.clock(t), self.path.clock(s)
        return self.network.apply(params, c_in * x_t, *times, condition, train=train, rng=rng)

    def endpoints(
        self,
        params: Params,
        x_t: Array,
        t: Array,
        condition: Condition,
        **mode: Any,
    ) -> Endpoints:
        """The data and noise that the network's output at (x_t, t) stands for.

        mode: train and rng, as for `predict`.
        """
        prediction = self.predict(params, x_t, t, t, condition, **mode)
        return endpoints(self.kind, prediction, x_t, t, self.path)

    def denoiser(self, predict: Predict, condition: Condition) -> Denoise:
        """(x, t) -> Endpoints of a prediction function of this kind, guided or not."""

        def denoise(x: Array, t: Array) -> Endpoints:
            return endpoints(self.kind, predict(x, t, t, condition), x, t, self.path)

        return denoise

    def consistency(
        self,
        params: Params,
        x_t: Array,
        t: Array,
        condition: Condition,
        **mode: Any,
    ) -> Array:
        """The consistency function f(x_t, t): the DDIM step of the prediction to the data end.

        f = alpha(t_min) x_0 + sigma(t_min) eps. Because x_t = alpha x_0 + sigma eps whatever the
        network says, f(x, t_min) = x for any parameters, on any path, for every kind whose decoding
        is finite there (`check_boundary`). On `ve` with kind F the factor of F is that of Song et
        al. 2023 (appendix C), (sigma - sigma_min) sigma_data / sqrt(sigma^2 + sigma_data^2); the
        factor of x_t differs from theirs by at most 0.4 percent of 1. With the parameters of a
        denoiser f is its DDIM sampler in one step. mode: train and rng, as for `predict`.
        """
        ends = self.endpoints(params, x_t, t, condition, **mode)
        return self.path.interpolate(*ends, jnp.full_like(t, self.path.t_min))


def check_boundary(model: Model) -> None:
    """Raises ValueError unless f(x, t_min) = x for any network of the model's kind.

    x_0 and score are free where there is no noise, and eps where there is no signal.
    """
    path, kind = model.path, model.kind
    ends = jnp.asarray([path.t_min, path.t_max], jnp.float32)
    sigma_min, alpha_max = path.sigma(ends)[0], path.alpha(ends)[1]
    free = (kind.name in ("x_0", "score") and sigma_min == 0.0) or (
        kind.name in ("eps", "score") and alpha_max < 1e-3
    )
    if free:
        raise ValueError(
            f"prediction.kind={kind.name} does not determine a consistency function at the ends of "
            f"path.name={path.name}; use velocity, v or F"
        )
