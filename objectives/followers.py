"""Updates of followers: exponential moving averages, and a copy that does not change.

An update is (follower, source, step) -> follower. It runs after the source's own update at that
step, counted from 0, and works leaf by leaf in the leaf's dtype (float32).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fewstep.objectives.base import Params

Update = Callable[[Params, Params, Array], Params]


def keep_unchanged(follower: Params, source: Params, step: Array) -> Params:
    """Returns the follower as it is. With `restarts` it is a copy made when a stage begins."""
    return follower


def average(follower: Params, source: Params, decay: Array | float) -> Params:
    """decay * follower + (1 - decay) * source."""
    return jax.tree.map(lambda f, p: p + decay * (f - p), follower, source)


def constant_ema(decay: float) -> Update:
    """An average of decay `decay`; decay 0 makes the follower an exact copy of its source."""
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"an EMA decay must be in [0, 1), not {decay}")
    return lambda follower, source, step: average(follower, source, decay)


def scheduled_ema(decay: Callable[[Array], Array]) -> Update:
    """An average of decay `decay(step)`."""
    return lambda follower, source, step: average(follower, source, decay(step))


def warmed_ema(decay: float) -> Update:
    """An average of decay min(decay, (1 + step) / (10 + step)).

    While the warm-up lasts, it averages over about the last tenth of the run. The warm-up is
    TensorFlow's `num_updates` rule. Without it a follower of decay d stays close to its initial
    value for 1 / (1 - d) steps.
    """
    constant_ema(decay)

    def update(follower: Params, source: Params, step: Array) -> Params:
        return average(follower, source, jnp.minimum(decay, (1.0 + step) / (10.0 + step)))

    return update


def power_ema(relative_std: float) -> Update:
    """A power-function average of width `relative_std` times the run so far (Karras et al. 2024).

    Its decay at the n-th update is (1 - 1/n)^(gamma + 1) (their eq. 127), with gamma from
    `power_exponent`.
    """
    exponent = power_exponent(relative_std) + 1.0

    def update(follower: Params, source: Params, step: Array) -> Params:
        return average(follower, source, (1.0 - 1.0 / (step + 1.0)) ** exponent)

    return update


def power_exponent(relative_std: float) -> float:
    """The gamma whose profile t^gamma on [0, 1] has standard deviation `relative_std`.

    It is the positive root of (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) = relative_std^2 (Karras et
    al. 2024, eq. 126). Raises ValueError for a deviation outside (0, 12^-0.5).
    """
    # The flattest profile, gamma = 0, is uniform and has the deviation 1 / sqrt(12).
    if not 0.0 < relative_std < 12.0**-0.5:
        raise ValueError(f"a power-function EMA needs a std in (0, 0.288), not {relative_std}")
    inverse = relative_std**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(max(roots[np.isreal(roots)].real))
