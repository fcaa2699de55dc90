"""Weights of samples that a deterministic map makes of noise: normalising flows in disguise.

A sampler whose noise between steps is fixed is a map g from eps ~ N(0, I) to a sample. Where g is
one-to-one, the sample has the density N(eps) / |det dg/deps|, so

    log w = log rho(g(eps)) + log |det dg/deps| - log N(eps; 0, I),    E w = Z

(Jutras-Dube et al. 2025, arXiv:2512.05251). It holds for any network and any number of steps, one
included, where weights of a coarse diffusion are useless. g is not bound to be one-to-one. Where it
folds, E w counts a point once for each eps that leads there, so the estimate is too large.
`folded` is the share of samples at which the determinant is negative: orientation is reversed
there, so g certainly folds. 0 is no proof of the contrary.

The Jacobian is exact: D forward derivatives of the sampler for each sample. So a sample costs 1 + D
times its evaluations, and larger dimensions than LARGEST are left out.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fewstep.densities.density import Density
from fewstep.diffusion.guidance import Condition
from fewstep.objectives.base import Diagnostics, Params, RowsFn, SampleFn
from fewstep.objectives.path_sampling import weight_numbers
from fewstep.samplers.controlled import log_prior

# Largest dimension whose Jacobians are computed.
LARGEST = 256


class Weighted(NamedTuple):
    """Samples and their weights. x: [B, D]. log_w: [B]. sign: [B], that of the determinant."""

    x: Array
    log_w: Array
    sign: Array


def flow_weights(
    density: Density, flow: Callable[..., Array], eps: Array, *rows: Array
) -> Weighted:
    """Samples and weights of `flow`: (eps: [D], entries of rows) -> sample [D] in units of scale.

    eps: [B, D], draws from N(0, I). rows: trees of arrays [B, ...].
    """

    def one(eps: Array, *row: Array) -> tuple[Array, Array, Array]:
        def twice(eps: Array) -> tuple[Array, Array]:
            x = flow(eps, *row)
            return x, x

        jacobian, x = jax.jacfwd(twice, has_aux=True)(eps)
        return (x, *jnp.linalg.slogdet(jacobian))

    x, sign, volume = jax.vmap(one)(eps, *rows)
    return Weighted(x, density.scaled_log_density(x) + volume - log_prior(eps), sign)


def weighted_rows(density: Density, sample: SampleFn) -> RowsFn:
    """A method's samples with their weights: "x", "log_w" and "sign". Arguments: `SampleFn`."""

    def rows(
        params: Params,
        eps: Array,
        condition: Condition,
        keys: Array,
        *,
        steps: int,
        guidance_scale: float,
    ) -> Mapping[str, Array]:
        def flow(eps: Array, condition: Condition, key: Array) -> Array:
            single = jax.tree.map(lambda a: a[None], (eps, condition, key))
            return sample(params, *single, steps=steps, guidance_scale=guidance_scale)[0]

        return flow_weights(density, flow, eps, condition, keys)._asdict()

    return rows


def flow_numbers(log_z: float | None, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The numbers of `weight_numbers`, and the share of samples at which the map has folded."""
    return {**weight_numbers(log_z, rows), "folded": float(np.mean(np.asarray(rows["sign"]) < 0))}


def flow_diagnostics(density: Density, sample: SampleFn) -> Diagnostics | None:
    """The numbers of a sampler's weights; None for a density of more than LARGEST dimensions."""
    if density.dim > LARGEST:
        return None
    return Diagnostics(weighted_rows(density, sample), partial(flow_numbers, density.log_z))
