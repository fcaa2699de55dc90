"""Reflow against closed forms on Gaussian data, where one reflow makes the flow straight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.diffusion.path import PATHS, align
from fewstep.diffusion.prediction import KINDS, Endpoints, coefficients
from fewstep.objectives.denoising import denoising
from fewstep.objectives.reflow import reflow
from fewstep.samplers.ode import ddim, euler
from tests.gaussian import Gaussian
from tests.networks import (
    affine_network,
    build_model,
    exact_denoiser,
    exact_network,
    unscaled_model,
)

KEY = jax.random.key(0)
GAUSSIAN = Gaussian(jnp.array([0.3, -0.7]), jnp.array([0.25, 1.7]))
PREDICTIONS = [("linear", "velocity"), ("vp_cosine", "v"), ("trigflow", "F"), ("ve", "F")]
COUNT = 256
AT = {"offset": jnp.zeros(())}


def make_pairs(objective, params=AT, steps=32, count=COUNT):
    """Pairs of an objective's sampler."""
    eps, label = jax.random.normal(jax.random.key(1), (count, 2)), jnp.arange(count) % 3
    given = params, eps, {"label": label}, None
    x_0 = objective.sample(*given, steps=steps, guidance_scale=objective.guidance_scale)
    return {"eps": eps, "x_0": x_0, "label": label}


def straight_model(pairs, path, kind):
    """The model of the flow along the straight lines of pairs x_0 = gain eps + shift.

    x_t = alpha x_0 + sigma eps = (alpha gain + sigma) eps + alpha shift determines eps.
    """
    gain = (pairs["x_0"][1] - pairs["x_0"][0]) / (pairs["eps"][1] - pairs["eps"][0])
    shift = pairs["x_0"][0] - gain * pairs["eps"][0]

    def predicted(x, t, s, condition):
        c = coefficients(path, t, x)
        eps = (x - c.alpha * shift) / (c.alpha * gain + c.sigma)
        return KINDS[kind].encode(Endpoints(gain * eps + shift, eps), x, c)

    return unscaled_model(exact_network(predicted), path, kind)


def loss(objective, pairs, offset=0.0):
    params = {"offset": jnp.float32(offset)}
    return float(objective.players["network"].loss(params, {}, {"pairs": pairs}, KEY, 0)[0].mean())


@pytest.mark.parametrize(("name", "kind"), PREDICTIONS)
def test_after_one_reflow_the_loss_is_zero_and_one_step_is_exact(name, kind):
    path = PATHS[name]()
    teacher = exact_denoiser(GAUSSIAN, path, kind)
    pairs = make_pairs(denoising(teacher, solver=ddim()))
    objective = reflow(straight_model(pairs, path, kind))
    assert loss(objective, pairs) < 1e-5
    assert loss(objective, pairs, offset=0.1) == pytest.approx(0.01, rel=0.05)
    # Sampling on `ve` starts without the signal of x_t at t_max, 1/80 of the noise.
    atol = 0.05 if name == "ve" else 2e-3
    for steps in (1, 4):
        np.testing.assert_allclose(
            make_pairs(objective, steps=steps)["x_0"], pairs["x_0"], atol=atol
        )
    # The teacher's own flow is another one, and not straight.
    assert loss(reflow(teacher), pairs) > 0.01
    one_step = make_pairs(denoising(teacher, solver=ddim()), steps=1)["x_0"]
    assert np.abs(one_step - pairs["x_0"]).mean() > 0.2


def test_a_straight_flow_is_a_fixed_point_of_another_reflow():
    path = PATHS["linear"]()
    first = make_pairs(denoising(exact_denoiser(GAUSSIAN, path), solver=ddim()))
    objective = reflow(straight_model(first, path, "velocity"), solver=euler())
    again = make_pairs(objective, steps=5)
    np.testing.assert_allclose(again["x_0"], first["x_0"], atol=1e-4)
    assert loss(objective, again) < 1e-8


def test_independent_pairs_give_flow_matching_and_its_minimum():
    # tr(S / C_t) / 2 on the linear path: what reflow removes.
    path, count = PATHS["linear"](), 40_000
    eps = jax.random.normal(jax.random.key(1), (count, 2))
    pairs = {"eps": eps, "x_0": GAUSSIAN.sample(KEY, count), "label": jnp.zeros(count, int)}
    t = jnp.linspace(0.0, 1.0, 10_001)
    minimum = float(jnp.mean(GAUSSIAN.variance / GAUSSIAN.marginal(path, t)[1]))
    objective = reflow(exact_denoiser(GAUSSIAN, path))
    assert loss(objective, pairs) == pytest.approx(minimum, rel=0.03)


def test_paired_points_are_nearer_than_independent_ones():
    path = PATHS["linear"]()
    pairs = make_pairs(denoising(exact_denoiser(GAUSSIAN, path), solver=ddim()), count=4000)
    cost = lambda x_0: float(jnp.mean((x_0 - pairs["eps"]) ** 2))
    assert cost(pairs["x_0"]) < 0.5 * cost(GAUSSIAN.sample(KEY, 4000))


def test_rows_are_on_the_lines_between_the_ends_of_pairs():
    seen = []

    def apply(params, x, t, s, condition, *, train=False, rng=None):
        seen.append((x, t, s, condition["label"]))
        return affine_network().apply(params, x, t, s, condition)

    path = PATHS["vp_cosine"]()
    network = affine_network()._replace(apply=apply)
    pairs = make_pairs(denoising(exact_denoiser(GAUSSIAN, path), solver=ddim()), count=32)
    objective = reflow(build_model(network, path))
    objective.players["network"].loss(network.init(KEY), {}, {"pairs": pairs}, KEY, 0)
    ((x, t, s, label),) = seen
    np.testing.assert_array_equal(t, s)
    np.testing.assert_array_equal(label, pairs["label"])
    expected = path.alpha(align(t, x)) * pairs["x_0"] + path.sigma(align(t, x)) * pairs["eps"]
    np.testing.assert_allclose(x, expected, rtol=1e-5)


def test_it_reads_pairs_alone_starts_from_their_maker_and_teaches():
    objective = reflow(build_model(affine_network(), PATHS["linear"]()), guidance_scale=2.0)
    assert objective.frozen == () and objective.reads == ("pairs",) and objective.denoises
    assert objective.init_from == {"network": "teacher"} and objective.needs_teacher
    with pytest.raises(ValueError, match="trained at guidance scale 2 only, not 1"):
        objective.sample(
            affine_network().init(KEY),
            jnp.ones((2, 2)),
            {"label": jnp.zeros(2, int)},
            None,
            steps=1,
            guidance_scale=1.0,
        )


@pytest.mark.parametrize(("name", "kind"), [("linear", "eps"), ("vp_ddpm", "eps")])
def test_a_prediction_that_says_nothing_at_pure_noise_is_refused(name, kind):
    with pytest.raises(ValueError, match=f"prediction.kind={kind} says too little about the data"):
        reflow(build_model(affine_network(), PATHS[name](), kind))
