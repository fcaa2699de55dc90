"""A sampler in a user's file predicts as a network of any kind, and runs only if it is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.densities import user_code
from fewstep.diffusion.path import vp_ddpm
from fewstep.diffusion.prediction import KINDS, endpoints
from fewstep.models.model import Model
from fewstep.models.user_sampler import (
    check_sampler,
    is_sampler_file,
    read_sampler,
    sampler_params,
    stands_for_sampler,
)
from tests.gaussian import Gaussian
from tests.networks import affine_network

PATH, SCALE = vp_ddpm(0.1, 10.0), 2.0
FIELDS = {"name": "vp_ddpm", "beta_min": 0.1, "beta_max": 10.0}
# In units of the scale. Points x of the density are SCALE y.
TARGET = Gaussian(jnp.array([0.3, -0.2]), jnp.array([0.3, 1.2]))
CODE = """import jax.numpy as jnp
dim = 2
mean, variance = jnp.array([0.6, -0.4]), jnp.array([1.2, 4.8])

def moments(t):
    total = 0.1 * t + 4.95 * t**2
    return jnp.exp(-0.5 * total)[:, None], 0.1 + 9.9 * t[:, None]

def score(x, t):
    alpha, _ = moments(t)
    return -(x - alpha * mean) / (alpha**2 * variance + 4.0 * (1.0 - alpha**2))
"""
CONTROL = (
    CODE
    + """
def control(x, t):
    return 2.0 * jnp.sqrt(moments(t)[1]) * score(x, t)
"""
)
VELOCITY = (
    CODE
    + """
def velocity(x, t):
    return -0.5 * moments(t)[1] * (x + 4.0 * score(x, t))
"""
)


def read(code, folder, named=True, dim=2):
    path = folder / "mine.py"
    path.write_text(code)
    if named:
        user_code.permit(path)
    return check_sampler(read_sampler(str(path), FIELDS, dim, SCALE), PATH, dim)


@pytest.mark.parametrize("code", [CONTROL, VELOCITY])
@pytest.mark.parametrize("kind", ["tilt", "v"])
def test_a_control_or_a_velocity_is_a_prediction_of_any_kind(code, kind, tmp_path):
    sampler = read(code, tmp_path)
    network = affine_network()._replace(shape=(2,))
    model = Model(network, PATH, KINDS[kind], sampler=lambda: sampler)
    y, t = jax.random.normal(jax.random.key(0), (50, 2)), jnp.linspace(0.05, 1.0, 50)
    label = {"label": jnp.full(50, -1)}
    params = jax.tree.map(jnp.asarray, sampler_params(sampler.digest))
    predicted = jax.jit(model.predict)(params, y, t, t, label)
    found, exact = endpoints(KINDS[kind], predicted, y, t, PATH), TARGET.denoiser(PATH)(y, t)
    np.testing.assert_allclose(found.x_0, exact.x_0, atol=2e-3)
    np.testing.assert_allclose(found.eps, exact.eps, atol=2e-3)
    own = network.init(jax.random.key(0))
    np.testing.assert_array_equal(
        model.predict(own, y, t, t, label),
        model._replace(sampler=None).predict(own, y, t, t, label),
    )


def test_parameters_stand_for_one_file_alone(tmp_path):
    params = sampler_params(read(CONTROL, tmp_path).digest)
    other = sampler_params(read(VELOCITY, tmp_path).digest)
    assert stands_for_sampler(params) and not stands_for_sampler({"a": 0.0})
    assert not np.array_equal(*(tree["sampler_file"] for tree in (params, other)))
    assert is_sampler_file("mine.py") and not is_sampler_file("runs/mine.py@3")


def test_a_file_runs_only_if_it_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"the teacher of this run is code in .*--config.teacher="):
        read("raise SystemExit", tmp_path, named=False)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("dim = 2", "must define velocity or control, and one of them only"),
        (CONTROL + "velocity = control", "one of them only"),
        ("def control(x, t): return x", "does not define dim"),
        (CONTROL.replace("dim = 2", "dim = 3"), "dim=3, and the density has 2 dimensions"),
        (CONTROL + "path = {'beta_max': 20.0}", "set --config.path.beta_max=20.0"),
        (CODE + "def control(x, t): return x[0]", r"must return \[16, 2\] .* not \[2\]"),
        (CODE + "def control(x, t): return x / 0", "is not finite at draws"),
        (CODE + "def control(x): return x", "control of .* cannot be called"),
        ("import nothing_like_this", "cannot be imported: ModuleNotFoundError"),
    ],
)
def test_mistakes_in_a_file(code, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        read(code, tmp_path)
