"""How a follower tracks its source: exponential moving averages, and a copy that is held.

All take step, counted from 0, after the source's update at that step, and work leaf by leaf in the
leaf's own dtype (float32).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fewstep.objectives.base import Params

Update = Callable[[Params, Params, Array], Params]


def keep_unchanged(follower: Params, source: Params, step: Array) -> Params:
    """The follower as it is: a copy that is renewed when a stage begins, if it restarts."""
    return follower


def average(follower: Params, source: Params, decay: Array | float) -> Params:
    """decay * follower + (1 - decay) * source."""
    return jax.tree.map(lambda f, p: p + decay * (f - p), follower, source)


def constant_ema(decay: float) -> Update:
    """Decay `decay` at every step; 0 makes the follower an exact copy of its source."""
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"an EMA decay must be in [0, 1), not {decay}")
    return lambda follower, source, step: average(follower, source, decay)


def scheduled_ema(decay: Callable[[Array], Array]) -> Update:
    """Decay `decay(step)`."""
    return lambda follower, source, step: average(follower, source, decay(step))


def warmed_ema(decay: float) -> Update:
    """Decay min(decay, (1 + step) / (10 + step)): an average over about the last tenth of the run.

    The warm-up is TensorFlow's `num_updates` rule. Without it a follower of decay d is close to its
    initial value for 1 / (1 - d) steps.
    """
    constant_ema(decay)

    def update(follower: Params, source: Params, step: Array) -> Params:
        return average(follower, source, jnp.minimum(decay, (1.0 + step) / (10.0 + step)))

    return update


def power_ema(relative_std: float) -> Update:
    """Power-function average of width `relative_std` times the run so far (Karras et al. 2024).

    Decay (1 - 1/n)^(gamma + 1) at the n-th update (their eq. 127), gamma from `power_exponent`.
    """
    exponent = power_exponent(relative_std) + 1.0

    def update(follower: Params, source: Params, step: Array) -> Params:
        return average(follower, source, (1.0 - 1.0 / (step + 1.0)) ** exponent)

    return update


def power_exponent(relative_std: float) -> float:
    """gamma whose profile t^gamma on [0, 1] has deviation `relative_std` (Karras et al. 2024).

    The positive root of (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) = relative_std^2 (their eq. 126).
    """
    # The flattest profile, gamma = 0, is the uniform one, of deviation 1 / sqrt(12).
    if not 0.0 < relative_std < 12.0**-0.5:
        raise ValueError(f"a power-function EMA needs a std in (0, 0.288), not {relative_std}")
    inverse = relative_std**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(max(roots[np.isreal(roots)].real))
