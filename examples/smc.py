"""Adaptive tempered SMC on a density: what a user would choose instead of a trained sampler.

    python -m examples.smc --density=gmm9

Particles start at the prior N(0, scale^2 I) and move to the density through tempered ones (Del
Moral et al. 2006), by blackjax. Temperatures are chosen so that the effective sample size falls to
a set share; between them each particle takes a few steps of HMC. The last line has the numbers of
an evaluation (docs/densities.md), and how many gradients one particle took. Needs blackjax.
"""

import time
from typing import NamedTuple

import blackjax
import blackjax.smc.resampling as resampling
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from blackjax.smc import extend_params
from jax import Array

from fewstep.densities.density import Density
from fewstep.densities.table import find_density
from fewstep.eval.points import point_metrics
from fewstep.samplers.controlled import log_prior

ESS, MOVES, LEAPFROG = 0.9, 2, 8  # share of particles; HMC moves at a temperature, and their steps
STEP_SIZE = 0.15  # of HMC, in units of the scale, for one dimension
MOST_TEMPERATURES = 500
SEED = 0


class Tempered(NamedTuple):
    """points: [N, D]. log_z: estimate of log Z. gradients: for each particle."""

    points: np.ndarray
    log_z: float
    gradients: int


def tempered_smc(density: Density, count: int, seed: int) -> Tempered:
    """`count` particles of adaptive tempered SMC. Raises RuntimeError if it does not finish."""
    dim = density.dim
    prior = lambda y: log_prior(y[None])[0]
    likelihood = lambda y: density.scaled_log_density(y[None])[0] - prior(y)
    moves = {
        "step_size": jnp.float32(STEP_SIZE * dim**-0.25),
        "inverse_mass_matrix": jnp.ones(dim),
        "num_integration_steps": LEAPFROG,
    }
    kernel = blackjax.hmc.build_kernel()
    algorithm = blackjax.adaptive_tempered_smc(
        prior,
        likelihood,
        kernel,
        blackjax.hmc.init,
        extend_params(moves),
        resampling.systematic,
        ESS,
        num_mcmc_steps=MOVES,
    )
    key, key_start = jax.random.split(jax.random.key(seed))
    state = algorithm.init(jax.random.normal(key_start, (count, dim)))
    step, log_z = jax.jit(algorithm.step), 0.0
    for index in range(MOST_TEMPERATURES):
        state, info = step(jax.random.fold_in(key, index), state)
        log_z += float(info.log_likelihood_increment)
        if state.tempering_param >= 1.0:
            points = density.scale * resampled(state.particles, state.weights, key)
            return Tempered(points, log_z, (index + 1) * MOVES * LEAPFROG)
    raise RuntimeError(f"no end after {MOST_TEMPERATURES} temperatures; take smaller steps")


def resampled(particles: Array, weights: Array, key: Array) -> np.ndarray:
    """Particles of equal weight."""
    chosen = resampling.systematic(key, weights, len(particles))
    return np.asarray(particles)[np.asarray(chosen)]


def describe(density: Density, count: int, seed: int) -> str:
    """A line with what one run reaches."""
    started = time.time()
    found = tempered_smc(density, count, seed)
    seconds = time.time() - started
    numbers = {"log_z": found.log_z, "gradients": float(found.gradients), "seconds": seconds}
    if density.sample:
        exact = density.sample(np.random.default_rng(seed + 1), count)
        numbers |= point_metrics(found.points, exact, density)
    return f"{density.name}: " + ", ".join(f"{name} {x:.4g}" for name, x in numbers.items())


def main(_: list[str]) -> None:
    """Runs SMC on --density."""
    asked = flags.FLAGS
    print(describe(find_density(asked.density), asked.particles, asked.seed))


if __name__ == "__main__":
    flags.DEFINE_string("density", "gmm9", "Name of the density.")
    flags.DEFINE_integer("particles", 2000, "Particles.")
    flags.DEFINE_integer("seed", SEED, "Seed.")
    app.run(main)
