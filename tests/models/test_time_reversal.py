"""A network with reversed time against the same network, called at 1 - t."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.models.dit import dit
from fewstep.models.time_reversal import reverse_time
from tests.published import random_params


@pytest.mark.parametrize("time_scale", [1.0, 7.5])
def test_output_is_that_at_the_other_time_with_the_other_sign(time_scale):
    network = dit((8, 8, 3), 5, size="nano", time_scale=time_scale)
    params = random_params(network)
    reversed_ = reverse_time(params, time_scale)
    x = jax.random.normal(jax.random.key(2), (6, 8, 8, 3))
    t = jnp.array([0.0, 0.1, 0.37, 0.5, 0.83, 1.0])
    condition = {"label": jnp.array([0, 1, 2, 3, 4, -1])}
    apply = jax.jit(network.apply)
    expected = -apply(params, x, 1.0 - t, 1.0 - t, condition)
    assert np.std(expected) > 0.3
    given = apply(reversed_, x, t, t, condition)
    np.testing.assert_allclose(given, expected, atol=2e-5)
    assert np.abs(given - apply(params, x, t, t, condition)).max() > 0.1


def test_reversal_is_its_own_inverse():
    network = dit((4, 4, 1), 2, size="nano", time_scale=3.0)
    params = random_params(network)
    back = reverse_time(reverse_time(params, 3.0), 3.0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), back, params)
