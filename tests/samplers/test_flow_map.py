import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.diffusion.path import PATHS
from fewstep.diffusion.spacing import uniform_spacing
from fewstep.samplers.flow_map import jump
from fewstep.samplers.grids import time_grid
from tests.gaussian import Gaussian

GAUSSIAN = Gaussian(jnp.array([0.3, -0.7]), jnp.array([0.25, 1.7]))
X = jax.random.normal(jax.random.key(0), (16, 2))


@pytest.mark.parametrize("name", ["linear", "vp_cosine"])
@pytest.mark.parametrize("steps", [1, 3])
def test_jumps_with_the_exact_average_velocity_are_exact(name, steps):
    path = PATHS[name]()
    average = lambda x, t, s: GAUSSIAN.average_velocity(path, x, t, s)
    x_0 = jump(average, X, time_grid(uniform_spacing(path), steps))
    expected = GAUSSIAN.mean + jnp.sqrt(GAUSSIAN.variance) * X
    np.testing.assert_allclose(x_0, expected, atol=1e-5)


def test_times_of_each_row_are_refused():
    with pytest.raises(AssertionError):
        jump(lambda x, t, s: x, X, jnp.ones((3, len(X))))
