"""The gradient with and without a teacher on Gaussian data, where its variance is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples import teacher
from fewstep.diffusion.path import PATHS
from tests.gaussian import Gaussian
from tests.networks import exact_consistency, exact_denoiser

PATH = PATHS["linear"]()
GAUSSIAN = Gaussian(jnp.array([0.3, -0.7]), jnp.array([0.25, 1.7]))
NO_OFFSET = {"offset": jnp.zeros(())}


def test_a_teacher_takes_away_the_variance_of_the_second_point():
    # f is the exact consistency function, and the gradient is that of an offset of the velocity:
    # df = -t. Given x_t both second points have one mean, and the first has the variance
    # (t - s)^2 S / C_t of the velocity eps - x_0, which f carries on by sqrt(S / C_s).
    model = exact_consistency(GAUSSIAN, PATH)
    denoise = exact_denoiser(GAUSSIAN, PATH).network.apply
    own = model.network.apply

    def apply(params, *inputs, **mode):
        return (denoise if "denoiser" in params else own)(params, *inputs, **mode)

    model = model._replace(network=model.network._replace(apply=apply))
    networks = {"network": NO_OFFSET, "teacher": {**NO_OFFSET, "denoiser": jnp.zeros(())}}
    draw = lambda key: {"x": GAUSSIAN.sample(key, 1), "label": jnp.full(1, -1)}
    keys = jax.random.split(jax.random.key(0), 20_000)
    found = {
        name: teacher.gradient_moments(objective, NO_OFFSET, networks, draw, keys)
        for name, objective in teacher.objectives(model, points=5).items()
    }
    extra, s_0 = [], np.asarray(GAUSSIAN.variance)
    for t in (0.25, 0.5, 0.75, 1.0):
        s = t - 0.25
        at_t, at_s = ((1.0 - u) ** 2 * s_0 + u**2 for u in (t, s))
        extra.append((2.0 * t / 2.0) ** 2 * (0.25**2 * s_0 / at_t * s_0 / at_s).sum())
    (mean, variance), (taught_mean, taught_variance) = found["ct"], found["cd"]
    assert variance - taught_variance == pytest.approx(np.mean(extra), rel=0.08)
    assert taught_variance < 0.2 * variance
    assert mean == pytest.approx(taught_mean, abs=1e-3)


def test_relative_noise_is_the_deviation_in_units_of_the_mean():
    assert teacher.relative_noise((4.0, 9.0)) == pytest.approx(1.5)
    assert np.isnan(teacher.relative_noise((0.0, 1.0)))
