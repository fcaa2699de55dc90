"""DSNO against closed forms on Gaussian data, and the regression that one time is."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.diffusion.path import PATHS, align
from fewstep.diffusion.prediction import KINDS, Endpoints, coefficients
from fewstep.diffusion.spacing import uniform_spacing
from fewstep.models.network import Network
from fewstep.objectives.consistency_trajectory import jump
from fewstep.objectives.dsno import dsno, root_snr, trajectory
from fewstep.samplers.grids import StepsError, time_grid
from fewstep.samplers.ode import ddim
from tests.gaussian import Gaussian
from tests.networks import affine_network, build_model, unscaled_model

KEY = jax.random.key(0)
DATA = Gaussian(jnp.array([0.3, -0.7]), jnp.array([0.25, 1.7]))
COUNT = 32
BATCH = {"label": jnp.arange(COUNT) % 3}
CASES = [("linear", "velocity"), ("vp_cosine", "v"), ("trigflow", "F")]


def exact_model(path, kind, times, steps):
    """params["teacher"] chooses between the exact denoiser and the points of its DDIM sampler."""
    exact, grid = DATA.denoiser(path), time_grid(uniform_spacing(path), steps)

    def apply(params, x, t, s, condition, *, train=False, rng=None):
        c, end = (coefficients(path, u, x) for u in (t, s))
        x_s = x
        for k in range(steps):
            here, there = (jnp.maximum(jnp.full_like(t, grid[k + m]), s) for m in (0, 1))
            x_s = path.interpolate(*exact(x_s, here), there)
        # The data with which one DDIM step from the noise end goes to x_s.
        ratio = end.sigma / c.sigma
        jumped = (x_s - ratio * x) / jnp.where(align(t == s, x), 1.0, end.alpha - ratio * c.alpha)
        x_0 = jnp.where(params["teacher"] > 0, exact(x, t).x_0, jumped) + params["offset"]
        return KINDS[kind].encode(Endpoints(x_0, (x - c.alpha * x_0) / c.sigma), x, c)

    init = lambda key: {"teacher": jnp.zeros(()), "offset": jnp.zeros(())}
    network = Network(init, apply, "time", trajectory=times, shape=(2,))
    return unscaled_model(network, path, kind)


def network(teacher=0.0, offset=0.0):
    return {"teacher": jnp.asarray(teacher), "offset": jnp.asarray(offset)}


@pytest.mark.parametrize("times", [1, 4])
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_points_of_the_solver_have_no_loss_and_are_the_samples(name, kind, times):
    path = PATHS[name]()
    with jax.enable_x64(True):
        model = exact_model(path, kind, times, 8)
        objective = dsno(model, times=times, solver_steps=8)
        given = {"teacher": network(1.0)}, BATCH, KEY, 0
        loss = objective.players["network"].loss
        _, metrics = loss(network(), *given)
        for m in range(times):
            assert float(metrics[f"error_{m + 1}"].total) / COUNT < 1e-8
        # An offset of x_0 moves every point by alpha_m - sigma_m alpha_T / sigma_T of it.
        rows, moved = loss(network(offset=0.1), *given)
        errors = [float(moved[f"error_{m + 1}"].total) / COUNT for m in range(times)]
        ends = time_grid(uniform_spacing(path), 8)[8 // times :: 8 // times]
        weighted = np.mean(np.asarray(root_snr(path, ends)) * errors)
        assert float(rows.mean()) == pytest.approx(weighted, rel=1e-4)
        last = float(moved[f"error_{times}"].total) / COUNT
        assert last == pytest.approx(0.01, rel=1e-3)
        eps = jax.random.normal(jax.random.key(5), (COUNT, 2))
        made = objective.sample(network(), eps, BATCH, None, steps=1, guidance_scale=1.0)
        grid = time_grid(uniform_spacing(path), 8)
        expected = ddim()(DATA.denoiser(path), path, path.prior(eps), grid, None)
        np.testing.assert_allclose(made, expected, atol=1e-4)
        with pytest.raises(StepsError, match="samples in 1 step, not in 2"):
            objective.sample(network(), eps, BATCH, None, steps=2, guidance_scale=1.0)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_one_time_is_regression_to_the_solver_s_samples(guidance):
    path = PATHS["linear"]()
    own = affine_network()._replace(second_time="time", shape=(2,))
    model, params = build_model(own, path), own.init(KEY)
    teacher = jax.tree.map(lambda p: 0.5 - p, params)
    objective = dsno(model, times=1, solver_steps=4, guidance_scale=guidance)
    eps = jax.random.normal(jax.random.split(KEY)[0], (COUNT, 2))

    def predict(x, t, s, condition):
        null = model.predict(teacher, x, t, s, {"label": jnp.full(len(x), -1)})
        return null + guidance * (model.predict(teacher, x, t, s, condition) - null)

    denoise = model.denoiser(predict, BATCH)
    target = ddim()(denoise, path, eps, time_grid(uniform_spacing(path), 4), None)
    end = jnp.ones(COUNT), jnp.zeros(COUNT)

    def expected(p):
        made = jump(model, partial(model.predict, p), eps, *end, BATCH)
        return 1e4 * ((made - target) ** 2).mean(axis=1).mean()

    def found(p):
        return objective.players["network"].loss(p, {"teacher": teacher}, BATCH, KEY, 0)[0].mean()

    close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-2)
    jax.tree.map(close, jax.value_and_grad(found)(params), jax.value_and_grad(expected)(params))


def test_rows_are_the_times_of_one_noise():
    path = PATHS["linear"]()
    seen = {}

    def apply(params, x, t, s, condition, *, train=False, rng=None):
        seen.update(x=x, t=t, s=s, label=condition["label"])
        return jnp.zeros_like(x)

    model = build_model(affine_network()._replace(apply=apply), path)
    eps, times = jax.random.normal(KEY, (2, 3)), jnp.array([0.5, 0.0])
    made = trajectory(model, partial(model.predict, {}), eps, times, {"label": jnp.array([1, 2])})
    np.testing.assert_array_equal(seen["x"], eps[jnp.array([0, 0, 1, 1])])
    np.testing.assert_array_equal(seen["label"], [1, 1, 2, 2])
    np.testing.assert_array_equal(seen["s"], [0.5, 0.0, 0.5, 0.0])
    np.testing.assert_array_equal(seen["t"], 1.0)
    np.testing.assert_allclose(made, seen["x"], atol=1e-6)  # no velocity, no movement
    weights = root_snr(path, jnp.array([0.9, 0.2, 0.0]))
    np.testing.assert_allclose(weights, [1.0, 4.0, 1e4], rtol=1e-5)


def test_what_it_cannot_train_is_refused():
    own = affine_network()._replace(second_time="time", trajectory=4)
    with pytest.raises(ValueError, match="solver_steps=6 must be a multiple of objective.times=4"):
        dsno(build_model(own, PATHS["linear"]()), solver_steps=6)
    with pytest.raises(ValueError, match="needs model.trajectory=2, not 4"):
        dsno(build_model(own, PATHS["linear"]()), times=2)
    with pytest.raises(ValueError, match="prediction.kind=eps says too little about the data"):
        dsno(build_model(own, PATHS["vp_cosine"](), "eps"))
