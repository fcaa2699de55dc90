"""Generators: a network that makes samples in one evaluation, or the samples themselves."""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from fewstep.diffusion.guidance import Condition
from fewstep.models.model import LEAST_ALPHA_ONE_STEP, Model, check_decoding_at
from fewstep.models.network import Network
from fewstep.objectives.base import Key, Params


class Generate(Protocol):
    """Generates x_g from standard normal noise."""

    def __call__(self, params: Params, eps: Array, condition: Condition, **mode: Any) -> Array:
        """Returns x_g, of the shape of eps: [B, ...]. mode: train and rng, for networks."""
        ...


class Generator(NamedTuple):
    """Trained parameters and the samples that they make.

    network: owner of the parameters.
    generate: (parameters, eps, condition) -> x_g.
    """

    network: Network
    generate: Generate


def one_step_generator(model: Model, sigma_init: float = 2.5) -> Generator:
    """The data that the network predicts from noise alone: x_g = D(sigma eps, t).

    sigma_init: noise level sigma / alpha at t (2.5 in SiD and SIM for EDM's networks, 1.0 in
        Diff-Instruct's README). At such a level a network expects some signal, so the generator
        starts near the mean of the data with some variety. At the noise end it would start at the
        mean.

    Raises ValueError for a level outside the path, or where the prediction says too little.
    """
    path = model.path
    low, high = (float(path.rho(jnp.float32(t))) for t in (path.t_min, path.t_max))
    if not low < sigma_init <= high:
        raise ValueError(
            f"objective.sigma_init={sigma_init:g} is outside path.name={path.name}, whose noise "
            f"levels sigma / alpha are {low:g} to {high:g}; choose a level between them"
        )
    time = path.time_at(jnp.float32(sigma_init))
    check_decoding_at(model, time, f"objective.sigma_init={sigma_init:g}", LEAST_ALPHA_ONE_STEP)
    return generator_at(model, time)


def generator_at(model: Model, time: Array | float) -> Generator:
    """The data that the network predicts from noise alone at a time: x_g = D(sigma eps, t)."""
    time = jnp.float32(time)
    sigma = model.path.sigma(time)

    def generate(params: Params, eps: Array, condition: Condition, **mode: Any) -> Array:
        t = jnp.broadcast_to(time, eps.shape[:1])
        return model.endpoints(params, sigma * eps, t, condition, **mode).x_0

    return Generator(model.network, generate)


def particles(shape: tuple[int, ...], count: int, deviation: float = 1.0) -> Generator:
    """`count` samples of that shape as parameters, which start as noise of that deviation.

    generate returns the samples themselves. Batches need `count` rows, with the samples' labels, in
    one micro-batch. Raises ValueError for another number of rows.
    """

    def generate(params: Params, eps: Array, condition: Condition, **mode: Any) -> Array:
        if eps.shape[0] != count:
            raise ValueError(
                f"a batch has {eps.shape[0]} rows for {count} particles; use one row for each, and "
                "one micro-batch"
            )
        return params["x"]

    def init(key: Key) -> Params:
        return {"x": deviation * jax.random.normal(key, (count, *shape))}

    def apply(params: Params, *inputs: Array, **mode: Any) -> Array:
        return params["x"]

    return Generator(Network(init, apply, shape=shape), generate)
