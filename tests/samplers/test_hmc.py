"""HMC leaves a density as it is, and moves other samples towards it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.samplers.hmc import (
    LEAST_ACCEPTED,
    MOST_TRIALS,
    adapted_size,
    gradients,
    hmc,
    step_size,
)

MEAN, DEVIATION, COUNT = jnp.array([1.0, -0.5]), jnp.array([0.6, 1.5]), 8000
EXACT = MEAN + DEVIATION * jax.random.normal(jax.random.key(0), (COUNT, 2))


def log_density(x):
    return -0.5 * jnp.sum(((x - MEAN) / DEVIATION) ** 2)


def moved(x, steps, size):
    return jax.jit(lambda x: hmc(log_density, x, jax.random.key(1), steps, size))(x)


@pytest.mark.parametrize("size", [0.1, 0.6])
def test_exact_samples_stay_exact_at_any_step(size):
    found = moved(EXACT, 10, size)
    np.testing.assert_allclose(found.x.mean(axis=0), MEAN, atol=0.06)
    np.testing.assert_allclose(found.x.std(axis=0), DEVIATION, rtol=0.03)
    assert np.abs(found.x - EXACT).max() > 1.0
    # Large steps refuse some proposals, which is what keeps the samples exact.
    assert (found.accepted > 0.99) == (size == 0.1) and found.accepted > 0.5


def test_other_samples_come_closer():
    found = moved(0.2 * jax.random.normal(jax.random.key(2), (COUNT, 2)), 10, step_size(2))
    np.testing.assert_allclose(found.x.mean(axis=0), MEAN, atol=0.15)
    np.testing.assert_allclose(found.x.std(axis=0), DEVIATION, rtol=0.15)


@pytest.mark.parametrize(("narrow", "halvings"), [(1.0, 0), (50.0, 3)])
def test_a_step_is_halved_until_most_proposals_are_accepted(narrow, halvings):
    target = lambda x: log_density(MEAN + narrow * (x - MEAN))
    x, key = MEAN + (EXACT - MEAN) / narrow, jax.random.key(2)
    size, trials = adapted_size(target, x, key)
    assert (size, trials) == (step_size(2) / 2**halvings, halvings + 1)
    accepted = [hmc(target, x, key, 1, each).accepted for each in (size, 2.0 * size)]
    assert accepted[0] >= LEAST_ACCEPTED and (accepted[1] < LEAST_ACCEPTED) == (halvings > 0)


def test_a_search_that_fails_ends_with_a_size_that_it_tried():
    sizes = []

    def nowhere(x):
        jax.debug.callback(lambda _: sizes.append(1), x[0])
        return jnp.nan * jnp.sum(x)

    found = adapted_size(nowhere, EXACT[:1], jax.random.key(0))
    jax.effects_barrier()
    assert found == (step_size(2) / 2 ** (MOST_TRIALS - 1), MOST_TRIALS)
    assert len(sizes) == found.trials * gradients(1)


def test_a_proposal_without_a_number_is_refused():
    cliff = lambda x: jnp.where(x[0] > 0.0, jnp.nan, -0.5 * jnp.sum(x**2))
    x = -jnp.abs(EXACT)
    found = hmc(cliff, x, jax.random.key(0), 5, 0.3)
    assert np.isfinite(found.x).all() and (found.x[:, 0] <= 0.0).all() and found.accepted > 0.0


def test_gradients_are_those_that_are_evaluated():
    count = []

    def counted(x):
        jax.debug.callback(lambda _: count.append(1), x[0])
        return -0.5 * jnp.sum(x**2)

    hmc(counted, EXACT[:1], jax.random.key(0), 3, 0.1)
    jax.effects_barrier()
    assert len(count) == gradients(3)
