"""Live reflow: its live rows are the reflow of its own rollouts, its flow rows flow matching."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.diffusion.path import PATHS
from fewstep.diffusion.time_sampling import uniform_times
from fewstep.objectives.denoising import denoising
from fewstep.objectives.live_reflow import live_reflow
from fewstep.objectives.reflow import reflow
from fewstep.objectives.rows import split_rows
from fewstep.samplers.ode import ddim
from tests.gaussian import Gaussian
from tests.networks import affine_network, build_model, exact_denoiser
from tests.objectives.test_reflow import make_pairs, straight_model

KEY = jax.random.key(0)
GAUSSIAN = Gaussian(jnp.array([0.3, -0.7]), jnp.array([0.25, 1.7]))
EVERY, STEPS, COUNT = 4, 5, 64
FIELDS = {"rollout_steps": STEPS, "live_fraction": 1 / EVERY, "label_dropout": 0.0}


def data(count=COUNT):
    return {"x": GAUSSIAN.sample(jax.random.key(2), count), "label": jnp.arange(count) % 3}


def live_model(network=None, name="linear"):
    network = network or affine_network()
    return build_model(network._replace(second_time="interval"), PATHS[name]())


def loss_rows(objective, params, batch, networks=None):
    return objective.players["network"].loss(params, networks or {}, batch, KEY, 0)[0]


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("name", ["linear", "vp_cosine", "trigflow"])
def test_live_rows_are_reflow_of_the_rolled_out_pairs(name, guidance):
    path, network = PATHS[name](), affine_network()
    params, batch = network.init(KEY), data()
    objective = live_reflow(live_model(name=name), **FIELDS, guidance_scale=guidance)
    live, _ = split_rows(loss_rows(objective, params, batch), EVERY)

    # The same noise and times, the sampler of the flow, and the loss of reflow at s = t_min.
    key_t, key_eps, *_ = jax.random.split(KEY, 4)
    t, _ = split_rows(uniform_times(path)(key_t, COUNT), EVERY)
    eps, _ = split_rows(jax.random.normal(key_eps, (COUNT, 2)), EVERY)
    label, _ = split_rows(batch["label"], EVERY)
    flow = denoising(build_model(network, path), solver=ddim())
    x_0 = flow.sample(params, eps, {"label": label}, None, steps=STEPS, guidance_scale=guidance)

    def straight(params, x, t, s, condition, **mode):
        return network.apply(params, x, t, jnp.zeros_like(t), condition)

    regression = reflow(
        build_model(network._replace(apply=straight), path), time_sampler=lambda key, n: t
    )
    pairs = {"pairs": {"eps": eps, "x_0": x_0, "label": label}}
    expected = regression.players["network"].loss(params, {}, pairs, KEY, 0)[0]
    np.testing.assert_allclose(live, expected, rtol=1e-4, atol=1e-6)


def gaussian_network(path):
    """The exact flow of Gaussian data at s = t, and the straight flow of its rollouts else."""
    flow = exact_denoiser(GAUSSIAN, path)
    pairs = make_pairs(denoising(flow, solver=ddim()), steps=STEPS)
    straight = straight_model(pairs, path, "velocity")

    def apply(params, x, t, s, condition, **mode):
        both = (
            model.network.apply(params, x, t, t, condition, **mode) for model in (flow, straight)
        )
        ours, other = both
        return jnp.where((s == t)[:, None], ours, other + params["live"])

    init = lambda key: {"offset": jnp.zeros(()), "live": jnp.zeros(())}
    return flow.network._replace(init=init, apply=apply)


@pytest.mark.parametrize("name", ["linear", "vp_cosine"])
def test_at_the_exact_flows_live_rows_have_no_loss_and_flow_rows_their_minimum(name):
    path, count = PATHS[name](), 40_000
    network = gaussian_network(path)
    objective = live_reflow(live_model(network, name), **FIELDS)
    params = network.init(KEY)
    live, flow = split_rows(loss_rows(objective, params, data(count)), EVERY)
    assert float(live.mean()) < 1e-6
    moved, same = split_rows(
        loss_rows(objective, {**params, "live": jnp.float32(0.1)}, data(count)), EVERY
    )
    assert float(moved.mean()) == pytest.approx(0.01, rel=1e-2)
    np.testing.assert_array_equal(same, flow)
    t = jnp.linspace(0.0, path.t_max, 20_001)
    determinant = path.alpha_rate(t) * path.sigma(t) - path.alpha(t) * path.sigma_rate(t)
    variance = GAUSSIAN.variance / GAUSSIAN.marginal(path, t)[1]
    minimum = float(jnp.mean(determinant[:, None] ** 2 * variance))
    assert float(flow.mean()) == pytest.approx(minimum, rel=0.04)
    # One step of the straight flow is the rollout, and more steps are the flow itself.
    eps, label = jax.random.normal(KEY, (8, 2)), jnp.zeros(8, int)
    given = params, eps, {"label": label}, None
    one, rolled = (objective.sample(*given, steps=n, guidance_scale=1.0) for n in (1, STEPS))
    np.testing.assert_allclose(one, rolled, atol=1e-4)
    first = denoising(exact_denoiser(GAUSSIAN, path), solver=ddim())
    step = first.sample({"offset": jnp.zeros(())}, *given[1:], steps=1, guidance_scale=1.0)
    assert np.abs(step - rolled).max() > 0.1


def test_no_gradient_flows_through_the_rollout():
    params, batch = affine_network().init(KEY), data()
    objective = live_reflow(live_model(), **FIELDS)
    mean = lambda p, networks: loss_rows(objective, p, batch, networks).mean()
    itself = jax.grad(mean)(params, {})
    copy = jax.grad(mean)(params, {"target": params})
    chex.assert_trees_all_close(itself, copy, rtol=1e-6)
    # The pairs matter, and they carry no gradient to who made them.
    other = jax.tree.map(lambda leaf: leaf + 0.3, params)
    assert abs(float(mean(params, {"target": other}) - mean(params, {"target": params}))) > 1e-3
    to_target = jax.grad(lambda target: mean(params, {"target": target}))(params)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(to_target))


def test_live_rows_look_at_the_data_and_flow_rows_at_their_own_time():
    seen = []

    def apply(params, x, t, s, condition, *, train=False, rng=None):
        if train:
            seen.append((t, s))
        return affine_network().apply(params, x, t, s, condition)

    network = affine_network()._replace(apply=apply)
    objective = live_reflow(live_model(network), **FIELDS)
    batch = data(32)
    rows, metrics = objective.players["network"].loss(network.init(KEY), {}, batch, KEY, 0)
    ((t, s),) = seen
    np.testing.assert_array_equal(s[::EVERY], 0.0)
    np.testing.assert_array_equal(*(np.delete(a, np.s_[::EVERY]) for a in (t, s)))
    live, flow = metrics["loss_live"], metrics["loss_flow"]
    assert (live.count, flow.count) == (8, 24)
    for found, own in zip((live, flow), split_rows(rows, EVERY), strict=True):
        assert float(found.total) == pytest.approx(float(own.sum()), rel=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rollout_steps": 1}, "objective.rollout_steps=1 must be 2 or more"),
        ({"live_fraction": 0.3}, "objective.live_fraction must be one over an integer"),
    ],
)
def test_fields_out_of_range_are_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        live_reflow(live_model(), **fields)


def test_what_cannot_be_trained_or_sampled_is_refused():
    objective = live_reflow(live_model(), **FIELDS, guidance_scale=1.5)
    params = affine_network().init(KEY)
    with pytest.raises(ValueError, match="30 rows.*live_fraction=1/4 do not divide"):
        loss_rows(objective, params, data(30))
    given = params, jnp.ones((2, 2)), {"label": jnp.zeros(2, int)}, None
    with pytest.raises(ValueError, match="trained at guidance scale 1.5 only, not 3"):
        objective.sample(*given, steps=STEPS - 1, guidance_scale=3.0)
    assert objective.sample(*given, steps=STEPS, guidance_scale=3.0).shape == (2, 2)
    network = affine_network()._replace(second_time="interval")
    with pytest.raises(ValueError, match="says too little about the data"):
        live_reflow(build_model(network, PATHS["linear"](), "eps"))
