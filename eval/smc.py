"""Adaptive tempered SMC on a density: what a user would choose instead of a trained sampler.

Particles start at the prior N(0, scale^2 I) and move to the density through tempered ones (Del
Moral et al. 2006),

    log rho_b(y) = (1 - b) log N(y; 0, I) + b log rho(y),    0 < b_1 < b_2 < ... < 1

A step takes particles of b to the next temperature b': the largest at which the weights (b' - b)
log(rho / N) leave a set share of the particles effective. It resamples by these weights, whose mean
is a factor of Z, and moves each particle by a few steps of HMC in rho_b'. The size of these steps
follows the acceptance at the temperature before. A larger share means more temperatures, so a share
can be found for a budget of gradients. Resampling and moves are blackjax's, which Fewstep does not
install, since nothing else uses it.
"""

from functools import partial
from importlib.util import find_spec
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import logsumexp

from fewstep.densities.density import Density
from fewstep.samplers.controlled import log_prior
from fewstep.samplers.hmc import LEAPFROG, gradients, step_size

PACKAGE = "blackjax"
ESS, MOVES = 0.9, 2  # share of particles; HMC moves at a temperature
# The size of a step falls or grows by exp(acceptance - ACCEPTANCE).
ACCEPTANCE = 0.8
MOST_TEMPERATURES = 500
# Bounds of the search for a share, and its halvings.
LEAST_SHARE, LARGEST_SHARE, HALVINGS = 0.02, 0.98, 7


class Tempered(NamedTuple):
    """points: [N, D]. log_z: estimate of log Z. gradients: for each particle.

    accepted: mean acceptance of the moves at the last temperature.
    """

    points: np.ndarray
    log_z: float
    gradients: int
    accepted: float


class Step(NamedTuple):
    """Particles in units of the scale, [N, D], and their temperature.

    log_factor: log of the mean weight. accepted: mean acceptance of the moves.
    """

    x: Array
    temperature: Array
    log_factor: Array
    accepted: Array


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
    """`count` particles of adaptive tempered SMC, in random order.

    share: of the particles that are effective after a temperature. Raises EndlessError if it does
    not finish.
    """
    step = jax.jit(partial(next_temperature, density, share))
    key, key_start, key_order = jax.random.split(jax.random.key(seed), 3)
    x = jax.random.normal(key_start, (count, density.dim))
    temperature, size, log_z = jnp.float32(0.0), jnp.float32(step_size(density.dim)), 0.0
    for index in range(1, MOST_TEMPERATURES + 1):
        x, temperature, log_factor, accepted = step(
            jax.random.fold_in(key, index), x, temperature, size
        )
        log_z += float(log_factor)
        if temperature >= 1.0:
            points = density.scale * np.asarray(jax.random.permutation(key_order, x))
            return Tempered(points, log_z, index * gradients(MOVES), float(accepted))
        size *= jnp.exp(accepted - ACCEPTANCE)
    raise EndlessError(
        f"tempered SMC of density:{density.name} has not come to an end after "
        f"{MOST_TEMPERATURES} temperatures; leave it out (evaluate.rows without smc)"
    )


def next_temperature(
    density: Density, share: float, key: Array, x: Array, temperature: Array, size: Array
) -> Step:
    """One step of the module's docstring. x: [N, D]. size: of the leapfrog steps."""
    import blackjax
    from blackjax.smc import extend_params, from_mcmc, resampling
    from blackjax.smc.base import SMCState

    prior = lambda y: log_prior(y[None])[0]
    log_ratio = lambda y: density.scaled_log_density(y[None])[0] - prior(y)
    after, log_w = next_weights(jax.vmap(log_ratio)(x), temperature, share)
    moves = {
        "step_size": size,
        "inverse_mass_matrix": jnp.ones(density.dim),
        "num_integration_steps": LEAPFROG,
    }
    state, info = from_mcmc.build_kernel(
        blackjax.hmc.build_kernel(), blackjax.hmc.init, resampling.systematic
    )(
        key,
        SMCState(x, jax.nn.softmax(log_w), {}),
        MOVES,
        extend_params(moves),
        lambda y: prior(y) + after * log_ratio(y),
        lambda y: 0.0,
    )
    accepted = jnp.mean(info.update_info.acceptance_rate)
    return Step(state.particles, after, logsumexp(log_w) - np.log(len(x)), accepted)


def next_weights(ratios: Array, temperature: Array, share: float) -> tuple[Array, Array]:
    """The next temperature, and the log weights that leave a share of the particles effective: [N].

    ratios: log(rho / N) of particles, [N]. Those that are not finite have weight 0.
    """
    from blackjax.smc import ess, solver

    finite = jnp.isfinite(ratios)
    ratios = jnp.where(finite, ratios, -jnp.inf)
    rise = ess.ess_solver(lambda x: x, ratios, share, 1.0 - temperature, solver.dichotomy)
    return temperature + rise, jnp.where(finite, rise * ratios, -jnp.inf)
