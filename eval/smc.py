"""Adaptive tempered SMC on a density: what a user would choose instead of a trained sampler.

Particles start at the prior N(0, scale^2 I) and move to the density through tempered ones (Del
Moral et al. 2006), by blackjax. Temperatures are chosen so that the effective sample size falls to
a set share; between them each particle takes a few steps of HMC. A larger share means more of them,
so a share can be found for a budget of gradients. Needs blackjax, which Fewstep does not install,
since nothing else uses it.
"""

from importlib.util import find_spec
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fewstep.densities.density import Density
from fewstep.samplers.controlled import log_prior
from fewstep.samplers.hmc import LEAPFROG, step_size

PACKAGE = "blackjax"
ESS, MOVES = 0.9, 2  # share of particles; HMC moves at a temperature
MOST_TEMPERATURES = 500
# Bounds of the search for a share, and its halvings.
LEAST_SHARE, LARGEST_SHARE, HALVINGS = 0.02, 0.98, 7


class Tempered(NamedTuple):
    """points: [N, D]. log_z: estimate of log Z. gradients: for each particle."""

    points: np.ndarray
    log_z: float
    gradients: int


class EndlessError(ValueError):
    """SMC needs more temperatures than MOST_TEMPERATURES."""


def check_installed(asked: str) -> None:
    """Raises ValueError that names what asked for SMC unless blackjax is installed."""
    if find_spec(PACKAGE) is None:
        raise ValueError(f"{asked} needs blackjax; install it with: pip install 'blackjax>=1.7'")


def smc_within(budget: int, density: Density, count: int, seed: int) -> tuple[Tempered, float]:
    """SMC of at most `budget` gradients a particle, and the largest share that keeps to it.

    Raises ValueError for a budget that fewest temperatures exceed.
    """
    share, low, high = LEAST_SHARE, LEAST_SHARE, LARGEST_SHARE
    best = tempered_smc(density, count, seed, share)
    if best.gradients > budget:
        raise ValueError(
            f"tempered SMC of density:{density.name} takes at least {best.gradients} gradients a "
            f"particle, not {budget}; ask for more"
        )
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        try:
            found = tempered_smc(density, count, seed, middle)
        except EndlessError:
            found = None
        if found is None or found.gradients > budget:
            high = middle
        else:
            best, share, low = found, middle, middle
    return best, share


def tempered_smc(density: Density, count: int, seed: int, share: float = ESS) -> Tempered:
    """`count` particles of adaptive tempered SMC.

    share: of the particles that are effective after a temperature. Raises ValueError if it does not
    finish.
    """
    import blackjax
    import blackjax.smc.resampling as resampling
    from blackjax.smc import extend_params

    dim = density.dim
    prior = lambda y: log_prior(y[None])[0]
    likelihood = lambda y: density.scaled_log_density(y[None])[0] - prior(y)
    moves = {
        "step_size": jnp.float32(step_size(dim)),
        "inverse_mass_matrix": jnp.ones(dim),
        "num_integration_steps": LEAPFROG,
    }
    algorithm = blackjax.adaptive_tempered_smc(
        prior,
        likelihood,
        blackjax.hmc.build_kernel(),
        blackjax.hmc.init,
        extend_params(moves),
        resampling.systematic,
        share,
        num_mcmc_steps=MOVES,
    )
    key, key_start = jax.random.split(jax.random.key(seed))
    state = algorithm.init(jax.random.normal(key_start, (count, dim)))
    step, log_z = jax.jit(algorithm.step), 0.0
    for index in range(MOST_TEMPERATURES):
        state, info = step(jax.random.fold_in(key, index), state)
        log_z += float(info.log_likelihood_increment)
        if state.tempering_param >= 1.0:
            weights = np.asarray(state.weights, np.float64)
            points = density.scale * resampled(np.asarray(state.particles), weights, seed)
            # One more for the gradient at the first point of a temperature.
            return Tempered(points, log_z, (index + 1) * (MOVES * LEAPFROG + 1))
    raise EndlessError(
        f"tempered SMC of density:{density.name} has not come to an end after "
        f"{MOST_TEMPERATURES} temperatures; leave it out (evaluate.rows without smc)"
    )


def resampled(points: np.ndarray, weights: np.ndarray, seed: int) -> np.ndarray:
    """As many points of equal weight, by systematic resampling, in random order.

    points: [N, D]. weights: [N], not negative, of any sum above 0.
    """
    rng, count = np.random.default_rng(seed), len(points)
    marks = (np.arange(count) + rng.random()) / count
    chosen = np.searchsorted(np.cumsum(weights) / weights.sum(), marks).clip(max=count - 1)
    return points[rng.permutation(chosen)]
