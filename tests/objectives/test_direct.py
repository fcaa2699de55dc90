"""Direct distillation against closed forms on Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.diffusion.path import PATHS
from fewstep.diffusion.prediction import KINDS, Endpoints, coefficients
from fewstep.objectives.denoising import denoising
from fewstep.objectives.direct import direct
from fewstep.objectives.distances import huber, squared_l2
from fewstep.objectives.generators import generator_at
from fewstep.objectives.pairs import add_regression
from fewstep.samplers.ode import ddim
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
COUNT = 64


def sampled_pairs(model, steps, count=COUNT):
    """Pairs of `steps` steps of DDIM of an exact denoiser."""
    eps = jax.random.normal(jax.random.key(1), (count, 2))
    label = jnp.arange(count) % 3
    x_0 = denoising(model, solver=ddim()).sample(
        {"offset": jnp.zeros(())}, eps, {"label": label}, None, steps=steps, guidance_scale=1.0
    )
    return {"eps": eps, "x_0": x_0, "label": label}


def one_step_network(pairs, path, kind):
    """The network whose data at pure noise are the affine map from eps to x_0 of these pairs."""
    gain = (pairs["x_0"][1] - pairs["x_0"][0]) / (pairs["eps"][1] - pairs["eps"][0])
    shift = pairs["x_0"][0] - gain * pairs["eps"][0]

    def predicted(x, t, s, condition):
        c = coefficients(path, t, x)
        x_0 = shift + gain * x / c.sigma
        return KINDS[kind].encode(Endpoints(x_0, (x - c.alpha * x_0) / c.sigma), x, c)

    return unscaled_model(exact_network(predicted), path, kind)


def rows(objective, params, pairs):
    return objective.players["network"].loss(params, {}, {"pairs": pairs}, KEY, 0)[0]


@pytest.mark.parametrize(("name", "kind"), PREDICTIONS)
def test_the_optimum_is_the_sampler_itself_and_its_loss_is_zero(name, kind):
    path = PATHS[name]()
    pairs = sampled_pairs(exact_denoiser(GAUSSIAN, path, kind), 16)
    model = one_step_network(pairs, path, kind)
    for distance in (squared_l2(), huber(0.2)):
        objective = direct(model, distance=distance)
        assert float(rows(objective, {"offset": jnp.zeros(())}, pairs).mean()) < 1e-6
        assert float(rows(objective, {"offset": jnp.float32(0.1)}, pairs).mean()) > 1e-4
    given = {"offset": jnp.zeros(())}, pairs["eps"], {"label": pairs["label"]}, None
    made = objective.sample(*given, steps=1, guidance_scale=1.0)
    np.testing.assert_allclose(made, pairs["x_0"], atol=2e-3)
    with pytest.raises(ValueError, match="samples in 1 step, not in 2"):
        objective.sample(*given, steps=2, guidance_scale=1.0)


def test_the_student_keeps_the_gain_of_its_teacher_s_steps():
    # DDIM in n equal angles scales N(0, 1) by cos(pi / 2n)^n; least squares finds it, and not 1.
    path, steps = PATHS["vp_cosine"](), 4
    unit = Gaussian(jnp.zeros(2), jnp.ones(2))
    pairs = sampled_pairs(exact_denoiser(unit, path, "v"), steps)
    gain = np.cos(np.pi / (2 * steps)) ** steps
    network = affine_network()  # v = a x + ..., and x_0 = -v at pure noise
    objective = direct(build_model(network, path, "v"))
    params = {name: jnp.zeros_like(leaf) for name, leaf in network.init(KEY).items()}
    slope = jax.grad(lambda a: rows(objective, {**params, "a": a}, pairs).mean())
    assert abs(float(slope(jnp.float32(-gain)))) < 1e-5
    assert abs(float(slope(jnp.float32(-1.0)))) > 0.1


def test_it_is_the_regression_of_distribution_matching_on_its_own():
    path, network = PATHS["linear"](), affine_network()
    model = build_model(network, path)
    pairs = sampled_pairs(exact_denoiser(GAUSSIAN, path), 8)
    alone = add_regression(
        lambda *given: (jnp.zeros(COUNT), {}), generator_at(model, path.t_max), 1.0, huber(0.2)
    )
    term, _ = alone(network.init(KEY), {}, {"pairs": pairs}, KEY, 0)
    ours = rows(direct(model, distance=huber(0.2)), network.init(KEY), pairs)
    np.testing.assert_array_equal(ours, term)


def test_no_gradient_reaches_the_pairs_by_way_of_the_network_that_made_them():
    # The loss has no other network: it neither reads nor freezes one.
    objective = direct(build_model(affine_network(), PATHS["linear"]()))
    assert objective.frozen == () and objective.followers == {} and objective.reads == ("pairs",)
    assert objective.init_from == {"network": "teacher"} and objective.needs_teacher


@pytest.mark.parametrize(("name", "kind"), [("linear", "eps"), ("vp_ddpm", "eps")])
def test_a_prediction_that_says_nothing_at_pure_noise_is_refused(name, kind):
    with pytest.raises(ValueError, match=f"prediction.kind={kind} says too little about the data"):
        direct(build_model(affine_network(), PATHS[name](), kind))
