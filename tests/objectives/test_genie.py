"""GENIE on Gaussian data, whose deps / dlog(rho) is known.

With y = x / alpha - mean and S the variance of the data, eps = rho y / (S + rho^2), and y grows as
sqrt(S + rho^2) along a trajectory. So deps / drho = S y / (S + rho^2)^2.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.diffusion.path import PATHS, align
from fewstep.diffusion.spacing import karras_spacing, uniform_spacing
from fewstep.diffusion.time_sampling import uniform_times
from fewstep.models.mlp import mlp
from fewstep.models.network import Network
from fewstep.objectives.base import Objective, Player
from fewstep.objectives.genie import (
    RATE,
    genie,
    log_rate,
    rate_guidance,
    rate_loss,
    taylor_sampler,
)
from fewstep.samplers.grids import grid_to_path_end, time_grid
from fewstep.samplers.ode import ddim
from fewstep.samplers.ode import genie as taylor
from fewstep.training.optimizer import build_optimizer
from fewstep.training.state import initial_state
from fewstep.training.step import train_step
from tests.gaussian import Gaussian
from tests.networks import build_model, exact_denoiser
from tests.objectives.test_guidance_distillation import (
    VARIANCE,
    class_model,
    guided_means,
    weights,
)

KEY, ROWS = jax.random.key(0), 256
DATA = Gaussian(jnp.array([0.4, -0.9]), jnp.array([0.25, 1.7]))
ZERO = {"offset": jnp.zeros(())}
LABEL = {"label": jnp.full(ROWS, -1)}
KINDS_OF_PATHS = [("linear", "velocity"), ("vp_cosine", "v"), ("ve", "F"), ("vp_ddpm", "eps")]


def gaussian_model(path, kind="velocity"):
    model = exact_denoiser(DATA, path, kind)
    return model._replace(network=model.network._replace(shape=(2,)))


def batch():
    return {"x": DATA.sample(jax.random.key(1), ROWS), **LABEL}


def exact_rate(path, x, t):
    """rho deps / drho of DATA, times 1 / rho of the module's docstring."""
    rho = align(path.rho(t), x)
    y = x / path.alpha(align(t, x)) - DATA.mean
    return rho * DATA.variance * y / (DATA.variance + rho**2) ** 2


def exact_rated(model, factor=1.0):
    """The exact denoiser and `factor` times its exact rate, in place of network and head."""

    def rated(params, x, t, s, condition):
        prediction = model.predict(params, x, t, s, condition)
        return jnp.concatenate([prediction, factor * exact_rate(model.path, x, t)], axis=-1)

    return rated


def sampler(model, rated, spacing=None):
    spacing = spacing or uniform_spacing(model.path)
    sample = taylor_sampler(model, rated, spacing, grid_to_path_end, rate_guidance(model, 1.0))

    def samples(steps, params=ZERO):
        eps = jax.random.normal(KEY, (ROWS, 2))
        return sample(params, eps, LABEL, None, steps=steps, guidance_scale=1.0)

    return samples


@pytest.mark.parametrize(("name", "kind"), KINDS_OF_PATHS)
def test_the_target_is_the_closed_form_and_the_exact_head_its_minimum(name, kind):
    path = PATHS[name]()
    model = gaussian_model(path, kind)
    t = jnp.linspace(path.t_min, path.t_max, ROWS + 2)[1:-1]
    x = path.interpolate(batch()["x"], jax.random.normal(KEY, (ROWS, 2)), t)
    predict = lambda *inputs: model.predict(ZERO, *inputs)
    found = log_rate(model, predict, model.endpoints(ZERO, x, t, LABEL), x, t, LABEL)
    np.testing.assert_allclose(found, exact_rate(path, x, t), atol=2e-4)
    losses = {}
    for factor in (0.0, 0.5, 1.0):
        loss = rate_loss(model, exact_rated(model, factor), 1.0, uniform_times(path), 0.1)
        rows, metrics = loss(ZERO, {}, batch(), KEY, 0)
        losses[factor] = float(rows.mean())
        mean = metrics["unexplained"].total / metrics["unexplained"].count
        np.testing.assert_allclose(mean, (1.0 - factor) ** 2, atol=1e-3)
    assert losses[1.0] < 1e-7 < 1e-5 < losses[0.5] < losses[0.0]


@pytest.mark.parametrize(("name", "kind"), [("linear", "velocity"), ("ve", "F")])
def test_exact_heads_sample_as_the_taylor_solver_and_a_head_of_zero_as_ddim(name, kind):
    path = PATHS[name]()
    model = gaussian_model(path, kind)
    spacing = karras_spacing(path) if name == "ve" else uniform_spacing(path)
    start = path.prior(jax.random.normal(KEY, (ROWS, 2)))
    denoise = model.denoiser(lambda *inputs: model.predict(ZERO, *inputs), LABEL)
    for factor, solver in ((1.0, taylor()), (0.0, ddim())):
        made = sampler(model, exact_rated(model, factor), spacing)(6)
        expected = solver(denoise, path, start, time_grid(spacing, 6), None)
        np.testing.assert_allclose(made, expected, atol=1e-3)


def test_the_order_is_two():
    path = PATHS["linear"]()
    model = gaussian_model(path)
    start = jax.random.normal(KEY, (ROWS, 2))
    ends = (jnp.full(ROWS, time) for time in (path.t_max, path.t_min))
    exact = DATA.flow_map(path, start, *ends)
    error = lambda factor, steps: np.abs(
        sampler(model, exact_rated(model, factor))(steps) - exact
    ).mean()
    for factor, order in ((1.0, 2.0), (0.0, 1.0)):
        slope = np.log2(error(factor, 32) / error(factor, 64))
        assert slope == pytest.approx(order, abs=0.25)


def small_model():
    """A perceptron of two dimensions that was moved from its start."""
    model = build_model(mlp((2,), 3, width=16, depth=2), PATHS["linear"]())
    params = jax.jit(model.network.init)(KEY)
    keys = jax.random.split(jax.random.key(5), len(jax.tree.leaves(params)))
    keys = jax.tree.unflatten(jax.tree.structure(params), list(keys))
    moved = jax.tree.map(
        lambda leaf, k: leaf + 0.3 * jax.random.normal(k, leaf.shape), params, keys
    )
    return model, moved


def optimizer(steps):
    return build_optimizer(
        name="adamw",
        learning_rate=1e-2,
        schedule="cosine",
        warmup_steps=0,
        b1=0.9,
        b2=0.99,
        eps=1e-8,
        weight_decay=0.1,
        clip_norm=1.0,
        updates=steps,
    )


def test_a_trained_head_explains_the_derivative_of_a_network_that_stays_its_teacher():
    steps = 300
    model, teacher = small_model()
    objective, optimizers = genie(model, head_width=64), {"network": optimizer(steps)}
    frozen = {"teacher": teacher}
    state = jax.jit(lambda frozen: initial_state(objective, optimizers, 0, frozen))(frozen)
    moments = [leaf.shape for leaf in jax.tree.leaves(state.optimizers["network"]) if leaf.ndim]
    head = [leaf.shape for leaf in jax.tree.leaves(state.networks["network"][RATE])]
    assert sorted(moments) == sorted(head * 2)  # the optimizer knows the head alone
    x = jax.random.normal(jax.random.key(2), (512, 2))
    step = jax.jit(train_step(objective, optimizers, 0))
    for _ in range(steps):
        state, metrics = step(state, {}, {"x": x, "label": jnp.arange(512) % 3})
    trained = state.networks["network"]
    jax.tree.map(np.testing.assert_array_equal, {k: trained[k] for k in teacher}, teacher)
    assert float(metrics["unexplained"].total / metrics["unexplained"].count) < 0.3
    # Samples are nearer to the trajectory's end than DDIM's, with as many evaluations.
    eps, label = jax.random.normal(KEY, (512, 2)), {"label": jnp.arange(512) % 3}
    sample = jax.jit(
        lambda params, steps: objective.sample(
            params, eps, label, None, steps=steps, guidance_scale=1.0
        ),
        static_argnums=1,
    )
    zero = {**trained, RATE: jax.tree.map(jnp.zeros_like, trained[RATE])}
    ends = sample(zero, 128)
    error = {name: np.abs(sample(p, 8) - ends).mean() for name, p in (("k", trained), ("0", zero))}
    assert error["k"] < 0.7 * error["0"]


def test_weight_decay_and_gradient_reach_no_other_part_than_the_trained_one():
    network = Network(lambda key: {"body": jnp.ones(3), "head": jnp.ones(3)}, None)
    rows = lambda params, *rest: (jnp.sum(params["body"] * params["head"]) * jnp.ones(4), {})
    for trained, moved in (((), {"body", "head"}), (("head",), {"head"})):
        objective = Objective({"network": Player(network, rows, trained=trained)}, {}, None)
        optimizers = {"network": optimizer(4)}
        state = initial_state(objective._replace(init_from={}), optimizers, 0, {})
        updated, _ = train_step(objective, optimizers, 0)(state, {}, {"x": jnp.ones((4, 2))})
        before, after = state.networks["network"], updated.networks["network"]
        assert {name for name in before if np.any(before[name] != after[name])} == moved


@pytest.mark.parametrize("aware", [False, True])
def test_the_rate_of_a_guided_network_is_that_along_the_guided_trajectory(aware):
    # Guidance of classes of one covariance is a Gaussian of another mean.
    path, scale, label = PATHS["linear"](), 3.0, {"label": jnp.arange(ROWS) % 2}
    model = class_model(path, "velocity")
    apply = model.network.apply

    def at_scale(params, x, t, s, condition, **mode):
        given = jnp.full(x.shape[:1], scale if aware else 1.0)
        return apply(params, x, t, s, {**condition, "guidance_scale": given}, **mode)

    network = model.network._replace(apply=at_scale, guidance_input=False)
    model = model._replace(network=network, teacher_scales=(1.0, 4.0) if aware else ())
    data = Gaussian(guided_means(label["label"], jnp.full(ROWS, scale)), VARIANCE)

    def rated(params, x, t, s, condition):
        rho = align(path.rho(t), x)
        mean = jnp.tile(data.mean, (len(x) // ROWS, 1))
        y = x / path.alpha(align(t, x)) - mean
        rate = rho * VARIANCE * y / (VARIANCE + rho**2) ** 2
        return jnp.concatenate([model.predict(params, x, t, s, condition), rate], axis=-1)

    loss = rate_loss(model, rated, scale, uniform_times(path), 0.0)
    x = jax.random.normal(jax.random.key(1), (ROWS, 2))
    params = weights(1 if aware else 0)
    rows, _ = loss(params, {}, {"x": x, **label}, KEY, 0)
    assert float(rows.mean()) < 1e-6
    unguided, _ = rate_loss(model, rated, 1.0, uniform_times(path), 0.0)(
        params, {}, {"x": x, **label}, KEY, 0
    )
    assert aware or float(unguided.mean()) > 1e-3


def test_another_scale_and_a_network_without_features_are_refused():
    model, params = small_model()
    objective = genie(model, guidance_scale=2.0)
    given = {**params, RATE: objective.players["network"].network.init(KEY)[RATE]}
    with pytest.raises(ValueError, match="trained at guidance scale 2 only, not 1"):
        objective.sample(
            given, jnp.ones((2, 2)), {"label": jnp.zeros(2, int)}, None, steps=2, guidance_scale=1.0
        )
    with pytest.raises(ValueError, match="reads hidden features, and the network has none"):
        genie(gaussian_model(PATHS["linear"]()))
    with pytest.raises(ValueError, match="head_width=0 must be an integer of at least 1"):
        genie(model, head_width=0)
