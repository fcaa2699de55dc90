"""DIS and DDS on a Gaussian density, with networks whose control is known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.densities.density import Density
from fewstep.densities.table import find_density
from fewstep.diffusion.path import vp_ddpm
from fewstep.diffusion.prediction import KINDS, coefficients
from fewstep.models.mlp import mlp
from fewstep.models.model import Model
from fewstep.models.network import Network
from fewstep.objectives.consistency_distillation import consistency_distillation
from fewstep.objectives.dds import dds
from fewstep.objectives.dis import dis
from fewstep.objectives.path_sampling import (
    PATH_LOSSES,
    kept_weights,
    variance_rows,
    weight_metrics,
    weight_numbers,
)
from tests.gaussian import Gaussian

SCALE, LOG_Z, ROWS = 2.0, 0.8, 2000
# In units of the scale.
TARGET = Gaussian(jnp.array([0.3, -0.2]), jnp.array([0.3, 1.2]))
PATH = vp_ddpm(0.1, 10.0)


def log_density(x):
    y = x / SCALE
    volume = 0.5 * jnp.sum(jnp.log(2 * math.pi * TARGET.variance)) + 2 * math.log(SCALE)
    return LOG_Z - 0.5 * jnp.sum((y - TARGET.mean) ** 2 / TARGET.variance) - volume


DENSITY = Density("gaussian", 2, log_density, SCALE, log_z=LOG_Z)


def exact_network():
    """A network that predicts the tilt of the noised density, times params (1 is exact)."""

    def apply(params, x, t, s, condition, *, train=False, rng=None):
        c = coefficients(PATH, t, x)
        return params * KINDS["tilt"].encode(TARGET.denoiser(PATH)(x, t), x, c)

    return Network(lambda key: jnp.float32(1.0), apply, shape=(2,))


MODEL = Model(exact_network(), PATH, KINDS["tilt"], density=DENSITY)
T_MIN = jnp.full(2, PATH.t_min)
BATCH = {"label": jnp.full(ROWS, -1)}


def mean_loss(objective):
    """The mean loss as a function of the parameter of the network."""
    loss = objective.players["network"].loss
    return lambda theta: jnp.mean(loss(theta, {}, BATCH, jax.random.key(3), jnp.int32(0))[0])


@pytest.mark.parametrize("method", [dis, dds])
@pytest.mark.parametrize("name", PATH_LOSSES)
def test_losses_are_least_at_the_exact_control(method, name):
    objective = method(MODEL, path_loss=PATH_LOSSES[name], path_steps=16)
    loss = jax.jit(jax.value_and_grad(mean_loss(objective)))
    (below, falls), (best, _), (above, rises) = (loss(theta) for theta in (0.8, 1.0, 1.2))
    assert best < below and best < above and falls < 0 < rises
    if name == "kl":  # KL minus log Z, over the dimension
        assert best == pytest.approx(-LOG_Z / 2, abs=0.05)


def test_rows_of_the_log_variance_have_the_unbiased_variance_as_mean():
    log_w = np.array([1.0, -2.0, 0.5, 4.0])
    assert float(variance_rows(jnp.array(log_w)).mean()) == pytest.approx(np.var(log_w, ddof=1))
    with pytest.raises(ValueError, match="needs 2 rows or more in a micro-batch"):
        variance_rows(jnp.ones(1))


def test_weights_know_the_normaliser_and_the_scale():
    objective = dis(MODEL, path_steps=8)
    eps = jax.random.normal(jax.random.key(0), (ROWS, 2))
    keys = jax.random.split(jax.random.key(1), ROWS)
    made = jax.jit(objective.diagnostics.rows, static_argnames=("steps", "guidance_scale"))
    rows = made(jnp.float32(1.0), eps, BATCH, keys, steps=64, guidance_scale=1.0)
    numbers = objective.diagnostics.numbers({k: np.asarray(v) for k, v in rows.items()})
    assert numbers["log_z"] == pytest.approx(LOG_Z, abs=0.03)
    assert numbers["log_z_bias"] == pytest.approx(numbers["log_z"] - LOG_Z)
    assert numbers["elbo"] < numbers["log_z"] and numbers["ess"] > 0.8


@pytest.mark.parametrize("far", [-1e6, -1e30, -np.inf, np.nan])
def test_a_path_that_was_thrown_away_is_left_out(far):
    near = np.array([0.3, -1.2, 2.0, 0.1, -99.0, 0.4], np.float32)  # 100 nats off are few
    log_w = jnp.array([*near[:3], far, *near[3:]])
    rows, pull = jax.vjp(variance_rows, log_w)
    assert float(rows.mean()) == pytest.approx(np.var(near, ddof=1), rel=1e-5)
    (gradient,) = pull(jnp.ones_like(rows))
    assert np.isfinite(gradient).all() and gradient[3] == 0.0 and gradient[0] != 0.0
    metrics = weight_metrics(log_w)
    assert float(metrics["left_out"].total / metrics["left_out"].count) == pytest.approx(1 / 7)
    mean = float(metrics["log_weight"].total / metrics["log_weight"].count)
    assert mean == pytest.approx(near.mean(), rel=1e-5)


def test_wide_weights_at_the_start_of_training_are_kept():
    log_w = 1e8 * jnp.arange(9.0)
    assert kept_weights(log_w).all()
    most = jnp.array([-1e30, -2e30, -3e30, 1.0, 2.0])  # most rows may overflow at first
    assert float(variance_rows(most).mean()) == pytest.approx(0.5)


def test_weights_of_which_none_is_a_number_end_the_run():
    assert not kept_weights(jnp.full(3, -jnp.inf)).any()
    for log_w in ([-np.inf] * 3, [-1000.0, np.nan]):  # the variance needs two
        assert np.isnan(variance_rows(jnp.array(log_w))).all()


def test_the_score_of_a_density_that_overflows_is_a_number():
    density = find_density("funnel")
    model = MODEL._replace(network=mlp((10,), width=8, depth=1, score_input=True), density=density)
    params = model.network.init(jax.random.key(0))
    x = jnp.zeros((1, 10)).at[0, 0].set(-200.0)
    assert np.isnan(density.scaled_score(x)).any()
    condition = {"label": jnp.array([-1])}
    assert np.isfinite(model.with_score(condition, x, T_MIN[:1])["score"]).all()
    assert np.isfinite(model.predict(params, x, T_MIN[:1], T_MIN[:1], condition)).all()


def test_numbers_of_weights():
    log_w = np.log(np.repeat([1.0, 3.0], 500)) + 200.0
    numbers = weight_numbers(None, {"log_w": np.random.default_rng(0).permutation(log_w)})
    assert numbers["log_z"] == pytest.approx(200.0 + math.log(2.0))
    assert numbers["ess"] == pytest.approx(4.0 / 5.0)
    in_training = weight_metrics(jnp.asarray(log_w - 200.0))["ess"]
    assert float(in_training.total / in_training.count) == pytest.approx(4.0 / 5.0)
    assert numbers["elbo"] == pytest.approx(200.0 + 0.5 * math.log(3.0))
    assert numbers["log_z_spread"] == pytest.approx(0.5 / math.sqrt(1000), rel=0.5)
    assert "log_z_bias" not in numbers


def test_a_network_is_given_the_score_of_the_density():
    network = mlp((2,), width=8, depth=1, score_input=True)
    model = Model(network, PATH, KINDS["tilt"], density=DENSITY)
    params = jax.jit(network.init)(jax.random.key(0))
    predict = jax.jit(model.predict)
    x, label = jnp.array([[0.5, -1.0], [3.0, 0.2]]), {"label": jnp.array([-1, -1])}
    at = lambda t: predict(params, x, jnp.full(2, t), jnp.full(2, t), label)
    exact = x - (x - TARGET.mean) / TARGET.variance
    np.testing.assert_allclose(at(PATH.t_min), exact, rtol=1e-4)
    np.testing.assert_allclose(at(1.0), 0.0, atol=1e-6)
    np.testing.assert_allclose(at(0.5), 0.5 * exact, rtol=1e-3)
    far = predict(params, 1e4 * x, jnp.full(2, 1e-5), jnp.full(2, 1e-5), label)
    assert np.abs(far).max() == pytest.approx(100.0, rel=1e-3)
    # A student may do without.
    student = model._replace(density=None)
    np.testing.assert_array_equal(student.predict(params, x, T_MIN, T_MIN, label), 0.0)


def test_the_score_fades_as_that_of_a_noised_gaussian():
    precision = 30.0
    density = Density("narrow", 2, lambda x: -0.5 * precision * jnp.sum(x**2))
    network = mlp((2,), width=8, depth=1, score_input=True, score_precision=precision)
    model = Model(network, PATH, KINDS["tilt"], density=density)
    params = network.init(jax.random.key(0))
    x, t = jnp.full((5, 2), 0.3), jnp.array([PATH.t_min, 0.03, 0.1, 0.5, 1.0])
    made = jax.jit(model.predict)(params, x, t, t, {"label": jnp.full(5, -1)})
    variance = PATH.alpha(t) ** 2 / precision + PATH.sigma(t) ** 2
    score = -x / variance[:, None]
    np.testing.assert_allclose(made, (x + score) / PATH.alpha(t)[:, None], rtol=2e-3)


def test_a_student_without_the_score_has_ends_without_it():
    """What it predicts at other times than the first is what it was trained on."""

    def apply(params, x, t, s, condition, *, train=False, rng=None):
        return condition.get("score", jnp.zeros_like(x))

    network = Network(lambda key: jnp.float32(0.0), apply, shape=(2,), score_input=True)
    model = Model(network, PATH, KINDS["tilt"], density=DENSITY)
    x, t, condition = jnp.ones((3, 2)), jnp.full(3, 0.5), {"label": jnp.full(3, -1)}
    ends = {}
    for reads in (False, True):
        objective = consistency_distillation(model, reads_score=reads)
        ends[reads] = objective.end_point(0.0, x, t, condition, guidance_scale=1.0)
    without = model._replace(density=None)
    exact = consistency_distillation(without).end_point(0.0, x, t, condition, guidance_scale=1.0)
    np.testing.assert_array_equal(ends[False], exact)
    assert np.abs(ends[True] - exact).max() > 0.1


def test_without_a_density():
    with pytest.raises(ValueError, match="set data.name=density:NAME"):
        dis(MODEL._replace(density=None))
