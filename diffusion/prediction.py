"""Kinds of predictions, each converted to and from (x_0, eps).

For x_t = alpha x_0 + sigma eps with rates alpha', sigma', the kinds are

    x_0         the data
    eps         the noise
    velocity    alpha' x_0 + sigma' eps                       (flow matching, on any path)
    v           (alpha eps - sigma x_0) / sqrt(alpha^2 + sigma^2)      (Salimans & Ho 2022)
    score       -eps / sigma
    F           (x_0 - c_skip x) / c_out at x = x_t / alpha, sigma / alpha   (EDM's raw output)
    tilt        x_0 - (alpha / sigma) eps

On variance-preserving paths alpha tilt = x + score, the gradient of log(p_t / N(0, I)): the control
of denoising diffusion samplers (Vargas et al. 2023). It is 0 for the prior, and
x_0 = alpha x_t + sigma^2 tilt.

Each kind is affine in (x_0, eps) given x_t, so converting a conditional mean gives the conditional
mean of the converted kind. A kind cannot be decoded where it carries no information: eps at
alpha = 0, x_0 and score at sigma = 0.

The input of a network of kind F is c_in x = x_t / sqrt((alpha sigma_data)^2 + sigma^2), as in EDM.
For the other kinds it is x_t, which suits paths of bounded scale (all but `ve`).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from fewstep.diffusion.path import Path, align

# Standard deviation of natural images in [-1, 1] (Karras et al. 2022, table 1).
SIGMA_DATA = 0.5


class Endpoints(NamedTuple):
    """The data and noise that a prediction implies: x_t = alpha x_0 + sigma eps."""

    x_0: Array
    eps: Array


# (x: [B, ...], t: [B]) -> Endpoints, for a network of any kind on any path
Denoise = Callable[[Array, Array], Endpoints]


class Coefficients(NamedTuple):
    """Path coefficients at t, aligned with x_t."""

    alpha: Array
    sigma: Array
    alpha_rate: Array
    sigma_rate: Array


class Kind(NamedTuple):
    """What a network predicts.

    decode: (prediction, x_t, coefficients) -> Endpoints.
    encode: (endpoints, x_t, coefficients) -> prediction.
    c_in: coefficients -> the scale of x_t at the network's input.
    """

    name: str
    decode: Callable[[Array, Array, Coefficients], Endpoints]
    encode: Callable[[Endpoints, Array, Coefficients], Array]
    c_in: Callable[[Coefficients], Array] = lambda c: jnp.ones_like(c.alpha)


def coefficients(path: Path, t: Array, x: Array) -> Coefficients:
    """alpha, sigma and their rates at t: [B], shaped to broadcast against x: [B, ...]."""
    t = align(t, x)
    return Coefficients(path.alpha(t), path.sigma(t), path.alpha_rate(t), path.sigma_rate(t))


def _from_x_0(x_0: Array, x_t: Array, c: Coefficients) -> Endpoints:
    return Endpoints(x_0, (x_t - c.alpha * x_0) / c.sigma)


def _from_eps(eps: Array, x_t: Array, c: Coefficients) -> Endpoints:
    return Endpoints((x_t - c.sigma * eps) / c.alpha, eps)


def _from_velocity(velocity: Array, x_t: Array, c: Coefficients) -> Endpoints:
    determinant = c.alpha * c.sigma_rate - c.alpha_rate * c.sigma
    return Endpoints(
        (c.sigma_rate * x_t - c.sigma * velocity) / determinant,
        (c.alpha * velocity - c.alpha_rate * x_t) / determinant,
    )


def _from_v(v: Array, x_t: Array, c: Coefficients) -> Endpoints:
    norm = jnp.sqrt(c.alpha**2 + c.sigma**2)
    return Endpoints(
        (c.alpha * x_t / norm - c.sigma * v) / norm, (c.sigma * x_t / norm + c.alpha * v) / norm
    )


def _to_v(e: Endpoints, x_t: Array, c: Coefficients) -> Array:
    return (c.alpha * e.eps - c.sigma * e.x_0) / jnp.sqrt(c.alpha**2 + c.sigma**2)


def _from_tilt(tilt: Array, x_t: Array, c: Coefficients) -> Endpoints:
    square = c.alpha**2 + c.sigma**2
    return Endpoints(
        (c.alpha * x_t + c.sigma**2 * tilt) / square, c.sigma * (x_t - c.alpha * tilt) / square
    )


def raw_kind(sigma_data: float = SIGMA_DATA) -> Kind:
    """EDM's raw network output F, D = c_skip x + c_out F, for data of deviation sigma_data.

    The formulas are multiplied by alpha, so that they hold where alpha is 0.
    """

    def variance(c: Coefficients) -> Array:
        return (c.alpha * sigma_data) ** 2 + c.sigma**2

    def decode(raw: Array, x_t: Array, c: Coefficients) -> Endpoints:
        v, root = variance(c), jnp.sqrt(variance(c))
        x_0 = c.alpha * sigma_data**2 * x_t / v + c.sigma * sigma_data / root * raw
        eps = c.sigma * x_t / v - c.alpha * sigma_data / root * raw
        return Endpoints(x_0, eps)

    def encode(e: Endpoints, x_t: Array, c: Coefficients) -> Array:
        # (x_0 - c_skip x) / c_out with x_t = alpha x_0 + sigma eps, to avoid dividing by sigma.
        return (c.sigma * e.x_0 - c.alpha * sigma_data**2 * e.eps) / (
            sigma_data * jnp.sqrt(variance(c))
        )

    return Kind("F", decode, encode, c_in=lambda c: 1.0 / jnp.sqrt(variance(c)))


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("x_0", _from_x_0, lambda e, x_t, c: e.x_0),
        Kind("eps", _from_eps, lambda e, x_t, c: e.eps),
        Kind(
            "velocity",
            _from_velocity,
            lambda e, x_t, c: c.alpha_rate * e.x_0 + c.sigma_rate * e.eps,
        ),
        Kind("v", _from_v, _to_v),
        Kind(
            "score",
            lambda score, x_t, c: _from_eps(-c.sigma * score, x_t, c),
            lambda e, x_t, c: -e.eps / c.sigma,
        ),
        raw_kind(),
        Kind("tilt", _from_tilt, lambda e, x_t, c: e.x_0 - c.alpha / c.sigma * e.eps),
    )
}


def compared_as(kind: Kind) -> Kind:
    """The kind in which denoising compares a prediction with its target.

    It is v for tilt, since v = -sigma tilt / sqrt(alpha^2 + sigma^2) has a target of bounded size.
    """
    return KINDS["v"] if kind.name == "tilt" else kind


def endpoints(kind: Kind, prediction: Array, x_t: Array, t: Array, path: Path) -> Endpoints:
    """The (x_0, eps) that a prediction of this kind at (x_t, t) implies.

    prediction, x_t: [B, ...]; t: [B].
    """
    return kind.decode(prediction, x_t, coefficients(path, t, x_t))


def prediction_target(kind: Kind, x_0: Array, eps: Array, t: Array, path: Path) -> Array:
    """The regression target of a network of this kind, for known data and noise."""
    x_t = path.interpolate(x_0, eps, t)
    return kind.encode(Endpoints(x_0, eps), x_t, coefficients(path, t, x_t))


def convert(
    prediction: Array, x_t: Array, t: Array, path: Path, *, source: Kind, to: Kind
) -> Array:
    """Convert a prediction at (x_t, t) from the kind `source` to the kind `to`."""
    if source == to:
        return prediction
    c = coefficients(path, t, x_t)
    return to.encode(source.decode(prediction, x_t, c), x_t, c)
