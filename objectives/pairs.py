"""Regression of a generator to pairs of a teacher's sampler, added to another loss (DMD).

    E d(G(eps_1), sampler(eps_1))        Yin et al. 2024, with LPIPS for d

The pairs are data: the loss does not evaluate the teacher.
"""

from collections.abc import Mapping

import jax
from jax import Array

from fewstep.objectives.base import Batch, Key, LossFn, Metrics, Params, mean_metric
from fewstep.objectives.distances import Distance
from fewstep.objectives.generators import Generator


def add_regression(loss: LossFn, generator: Generator, weight: float, distance: Distance) -> LossFn:
    """The loss plus `weight` times the distance to the teacher's sample of the same noise."""

    def regularised(
        params: Params, networks: Mapping[str, Params], batch: Batch, key: Key, step: Array
    ) -> tuple[Array, Metrics]:
        key_loss, key_dropout = jax.random.split(key)
        rows, metrics = loss(params, networks, batch, key_loss, step)
        pairs = batch["pairs"]
        x_g = generator.generate(
            params, pairs["eps"], {"label": pairs["label"]}, train=True, rng=key_dropout
        )
        apart = distance.given(networks)(x_g, pairs["x_0"])
        return rows + weight * apart, {**metrics, "regression": mean_metric(apart)}

    return regularised
