"""Self-distilled samplers on a Gaussian density, with the exact flow map as network."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.densities.density import Density
from fewstep.diffusion.path import PATHS, vp_ddpm
from fewstep.diffusion.prediction import KINDS, coefficients
from fewstep.diffusion.spacing import uniform_spacing
from fewstep.models.model import Model
from fewstep.models.network import Network
from fewstep.objectives.dis import dis
from fewstep.objectives.flow_weights import LARGEST, flow_diagnostics, flow_numbers, flow_weights
from fewstep.objectives.path_sampling import PATH_LOSSES
from fewstep.objectives.scds import scds, tilt_target
from fewstep.samplers.controlled import euler_kernel, log_prior, simulate
from fewstep.samplers.grids import time_grid
from tests.gaussian import Gaussian

LOG_Z, ROWS, MOST = 0.8, 2000, 16
TARGET = Gaussian(jnp.array([0.3, -0.2]), jnp.array([0.3, 1.2]))
PATH = vp_ddpm(0.1, 10.0)
BATCH = {"label": jnp.full(ROWS, -1)}
EPS = jax.random.normal(jax.random.key(0), (ROWS, 2))
KEYS = jax.random.split(jax.random.key(1), ROWS)


def log_density(x):
    volume = 0.5 * jnp.sum(jnp.log(2 * math.pi * TARGET.variance))
    return LOG_Z - 0.5 * jnp.sum((x - TARGET.mean) ** 2 / TARGET.variance) - volume


DENSITY = Density("gaussian", 2, log_density, log_z=LOG_Z)


def model_of(predict, density=DENSITY, path=PATH, kind="tilt"):
    """The model of predict(x, t, s), times its parameter, which is 1 for an exact network."""

    def apply(params, x, t, s, condition, *, train=False, rng=None):
        return params * predict(x, t, s)

    network = Network(lambda key: jnp.float32(1.0), apply, second_time="step_size", shape=(2,))
    return Model(network, path, KINDS[kind], density=density)


def exact_tilt(x, t, s):
    """(X_{t -> s}(x) - x) / (alpha_s - alpha_t)."""
    change = (PATH.alpha(s) - PATH.alpha(t))[:, None]
    return (TARGET.flow_map(PATH, x, t, s) - x) / change


def instant_tilt(x, t, s):
    return KINDS["tilt"].encode(TARGET.denoiser(PATH)(x, t), x, coefficients(PATH, t, x))


EXACT = model_of(exact_tilt)


def samples(objective, theta, steps):
    sample = jax.jit(objective.sample, static_argnames=("steps", "guidance_scale"))
    return sample(jnp.float32(theta), EPS, BATCH, KEYS, steps=steps, guidance_scale=1.0)


def numbers(objective, theta, steps):
    rows = jax.jit(objective.diagnostics.rows, static_argnames=("steps", "guidance_scale"))
    made = rows(jnp.float32(theta), EPS, BATCH, KEYS, steps=steps, guidance_scale=1.0)
    return objective.diagnostics.numbers({k: np.asarray(v) for k, v in made.items()})


def test_the_velocity_in_alpha_is_the_tilt():
    x, t = EPS[:5], jnp.linspace(0.2, 0.9, 5)
    along = lambda t: TARGET.flow_map(PATH, x, jnp.full(5, 0.5), t)
    at, rate = jax.jvp(along, (t,), (1.0 / PATH.alpha_rate(t),))
    np.testing.assert_allclose(rate, instant_tilt(at, t, t), rtol=1e-3, atol=1e-4)


def test_the_exact_flow_map_is_its_own_target():
    t, size = jnp.linspace(0.3, 1.0, ROWS), jnp.linspace(0.02, 0.25, ROWS)
    target = lambda theta: tilt_target(EXACT, theta, EPS, t, size, BATCH)
    exact = exact_tilt(EPS, t, t - size)
    np.testing.assert_allclose(target(1.0), exact, atol=2e-4)
    assert np.abs(target(0.5) - 0.5 * exact).max() > 0.005
    # The velocity at the start of a step is no average.
    instant = tilt_target(model_of(instant_tilt), 1.0, EPS, t, size, BATCH)
    assert np.abs(instant - instant_tilt(EPS, t, t)).max() > 0.005


@pytest.mark.parametrize("steps", [1, 2, MOST])
def test_jumps_of_the_exact_flow_map_end_where_it_does(steps):
    start, ends = PATH.prior(EPS), (jnp.full(ROWS, t) for t in (PATH.t_max, PATH.t_min))
    made = samples(scds(EXACT, max_steps=MOST), 1.0, steps)
    np.testing.assert_allclose(made, TARGET.flow_map(PATH, start, *ends), atol=1e-3)


def test_any_time_of_the_grid_leads_to_the_end():
    t = PATH.t_min + (PATH.t_max - PATH.t_min) * jnp.arange(1, MOST + 1) / MOST
    end = scds(EXACT, max_steps=MOST).end_point
    made = end(jnp.float32(1.0), EPS[:MOST], t, {"label": BATCH["label"][:MOST]}, guidance_scale=1)
    expected = TARGET.flow_map(PATH, EPS[:MOST], t, jnp.full(MOST, PATH.t_min))
    np.testing.assert_allclose(made, expected, atol=1e-3)


def mean_loss(objective, theta):
    loss, theta = objective.players["network"].loss, jnp.float32(theta)
    rows = jax.jit(loss)(theta, {"target": theta}, BATCH, jax.random.key(3), jnp.int32(0))
    return float(jnp.mean(rows[0])), {name: float(m.total / m.count) for name, m in rows[1].items()}


def test_both_losses_are_least_at_the_exact_flow_map():
    objective = scds(EXACT, max_steps=MOST, path_loss=PATH_LOSSES["kl"])
    (below, low), (best, found), (above, high) = (mean_loss(objective, x) for x in (0.5, 1, 1.5))
    assert best < min(below, above)
    assert best == pytest.approx(found["loss_path"] + found["loss_bootstrap"], rel=1e-4)
    assert found["loss_path"] < min(low["loss_path"], high["loss_path"])
    assert (
        found["loss_bootstrap"] < 1e-6 < 1e-4 < min(low["loss_bootstrap"], high["loss_bootstrap"])
    )


@pytest.mark.parametrize("name", PATH_LOSSES)
def test_the_path_loss_is_that_of_a_diffusion_sampler(name):
    """At the finest size the network is trained as by dis in as many steps."""

    def finest(x, t, s):
        ours = jnp.abs(t - s - (PATH.t_max - PATH.t_min) / 8) < 1e-5
        return jnp.where(ours[:, None], 1.0, 3.0) * instant_tilt(x, t, s)

    def gradient(objective):
        loss = objective.players["network"].loss
        networks = {"target": jnp.float32(1.0)}
        mean = lambda theta: loss(theta, networks, BATCH, jax.random.key(3), jnp.int32(0))[0].mean()
        return jax.jit(jax.value_and_grad(mean))(jnp.float32(0.9))

    path_loss = PATH_LOSSES[name]
    own = gradient(scds(model_of(finest), max_steps=8, path_loss=path_loss, bootstrap_weight=0.0))
    plain = model_of(instant_tilt)
    plain = plain._replace(network=plain.network._replace(second_time="none"))
    np.testing.assert_allclose(own, gradient(dis(plain, path_steps=8, path_loss=path_loss)), 1e-4)


def bootstrap_points(predict, theta):
    """(x_t, t, s) of the bootstrap rows of one loss, which are the last that the network gets."""
    seen = []

    def seeing(x, t, s):
        seen.append((x, t, s))
        return predict(x, t, s)

    loss = scds(model_of(seeing), max_steps=MOST).players["network"].loss

    def last(theta):
        loss(theta, {"target": theta}, BATCH, jax.random.key(3), jnp.int32(0))
        return seen[-1]

    return jax.jit(last)(jnp.float32(theta))


def test_bootstrap_points_are_states_of_the_paths_at_their_own_times():
    x_t, t, _ = bootstrap_points(lambda x, t, s: jnp.zeros_like(x), 1.0)
    key_start, key_path, *_ = jax.random.split(jax.random.key(3), 5)
    start, times = jax.random.normal(key_start, (ROWS, 2)), time_grid(uniform_spacing(PATH), MOST)
    control = lambda x, t: jnp.zeros_like(x)
    keys = jax.random.split(key_path, ROWS)
    states = simulate(PATH, euler_kernel, control, start, times, keys).states
    apart = jnp.abs(times[:, None] - t)
    np.testing.assert_allclose(apart.min(axis=0), 0.0, atol=1e-6)
    np.testing.assert_allclose(x_t, states[apart.argmin(axis=0), jnp.arange(ROWS)], atol=1e-5)


def test_the_bootstrap_loss_does_not_move_the_paths():
    """Its gradient under kl is that at given points, 2 (theta - 1) E n^2 for the exact tilt n."""
    theta, given = 0.5, ({"target": jnp.float32(1.0)}, BATCH, jax.random.key(3), jnp.int32(0))
    build = partial(scds, EXACT, max_steps=MOST, path_loss=PATH_LOSSES["kl"])

    @jax.jit
    def gradient(weight):
        loss = build(bootstrap_weight=weight).players["network"].loss
        return jax.grad(lambda theta: loss(theta, *given)[0].mean())(theta)

    tilt = exact_tilt(*bootstrap_points(exact_tilt, theta))
    expected = 2.0 * (theta - 1.0) * jnp.mean(tilt**2)
    assert float(gradient(1.0) - gradient(0.0)) == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("steps", [1, 4])
def test_weights_of_the_exact_flow_map_see_the_prior_alone(steps):
    found = numbers(scds(EXACT, max_steps=MOST), 1.0, steps)
    # What is left is alpha(t_max) of signal, which the prior neglects.
    assert 0.98 < found["ess"] < 1.0 and found["folded"] == 0.0
    assert found["log_z"] == pytest.approx(LOG_Z, abs=0.01)
    assert LOG_Z - 0.02 < found["elbo"] < found["log_z"]
    assert found["log_z_bias"] == pytest.approx(found["log_z"] - LOG_Z)


@pytest.mark.parametrize("theta", [0.7, 1.2])
def test_weights_of_any_one_to_one_map_have_the_mean_z(theta):
    found = numbers(scds(EXACT, max_steps=MOST), theta, 1)
    assert found["ess"] < 0.97
    assert found["log_z"] == pytest.approx(LOG_Z, abs=4 * found["log_z_spread"])


def test_the_weight_of_an_affine_map_is_known():
    matrix = jnp.array([[2.0, 0.5], [0.0, -0.7]])
    found = flow_weights(DENSITY, lambda eps, shift: matrix @ eps + shift, EPS, 0.1 * EPS)
    x = EPS @ matrix.T + 0.1 * EPS
    np.testing.assert_allclose(found.x, x, rtol=1e-6)
    weight = jax.vmap(log_density)(x) + math.log(1.4) - log_prior(EPS)
    np.testing.assert_allclose(found.log_w, weight, rtol=1e-4, atol=1e-4)
    # One axis is reflected.
    assert flow_numbers(None, {"log_w": found.log_w, "sign": found.sign})["folded"] == 1.0


def test_a_map_that_folds_counts_each_point_twice():
    """|eps| covers a quarter of the plane four times."""
    inside = lambda x: jnp.all(x > 0.0, axis=1)
    fold = flow_weights(DENSITY, lambda eps: jnp.abs(eps), EPS)
    assert flow_numbers(None, fold._asdict())["folded"] == pytest.approx(0.5, abs=0.05)
    once = flow_weights(DENSITY, lambda eps: eps, EPS)
    weight = jnp.where(inside(once.x), jnp.exp(once.log_w), 0.0)
    expected = 4.0 * float(weight.mean())
    assert float(jnp.exp(fold.log_w).mean()) == pytest.approx(expected, rel=0.1)


def test_a_density_of_many_dimensions_has_no_weights():
    large = Density("large", LARGEST + 1, lambda x: -0.5 * jnp.sum(x**2))
    assert flow_diagnostics(large, None) is None


@pytest.mark.parametrize(
    ("model", "fields", "message"),
    [
        (EXACT, {"max_steps": 6}, "max_steps must be a power of two"),
        (model_of(exact_tilt, kind="v"), {}, "needs prediction.kind=tilt, not v"),
        (model_of(exact_tilt, path=PATHS["linear"]()), {}, "path.name=vp_ddpm or vp_discrete"),
        (model_of(exact_tilt, density=None), {}, "set data.name=density:NAME"),
    ],
)
def test_what_cannot_be_trained_is_refused(model, fields, message):
    with pytest.raises(ValueError, match=message):
        scds(model, **fields)
