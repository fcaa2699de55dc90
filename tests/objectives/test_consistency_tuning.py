import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.diffusion.path import PATHS
from fewstep.diffusion.time_sampling import log_normal_times
from fewstep.objectives.consistency import WEIGHTINGS
from fewstep.objectives.consistency_tuning import consistency_tuning
from fewstep.objectives.distances import squared_l2
from tests.gaussian import Gaussian
from tests.networks import affine_network, build_model, exact_denoiser

KEY = jax.random.key(0)
GAUSSIAN = Gaussian(jnp.array([0.3, -0.7]), jnp.array([0.25, 1.7]))
COUNT = 100_000


def build_loss(objective, params, step=0, count=COUNT):
    data = {"x": GAUSSIAN.sample(KEY, count), "label": jnp.zeros(count, jnp.int32)}
    return objective.players["network"].loss(params, {}, data, KEY, jnp.int32(step))


def test_while_the_second_point_is_the_data_it_is_denoising():
    # With k so large that r = 0 everywhere the target is x_0 (t_min = 0), so under a squared
    # distance the exact denoiser has zero gradient and the known minimum sigma^2 tr(S / C) / D.
    path = PATHS["linear"]()
    model = exact_denoiser(GAUSSIAN, path)
    t = jnp.full(COUNT, 0.4)
    objective = consistency_tuning(
        model,
        total_steps=100,
        k=1e6,
        time_sampler=lambda key, count: t,
        distance=squared_l2(),
        weighting=WEIGHTINGS["uniform"],
    )
    mean_loss = lambda params: build_loss(objective, params)[0].mean()
    value, gradient = jax.value_and_grad(mean_loss)(model.network.init(KEY))
    variance = np.asarray(GAUSSIAN.variance)
    minimum = (0.4**2 * variance / (0.6**2 * variance + 0.4**2)).mean()
    assert value == pytest.approx(minimum, rel=0.02)
    assert abs(gradient["offset"]) < 0.01


def test_the_gap_shrinks_in_stages():
    path = PATHS["ve"]()
    objective = consistency_tuning(
        build_model(affine_network(), path, "F"), total_steps=80, stages=8
    )
    params = affine_network().init(KEY)
    gaps = []
    for step in (0, 9, 10, 79, 500):
        gap = build_loss(objective, params, step, 2000)[1]["noise_gap"]
        gaps.append(float(gap.total / gap.count))
    assert gaps[0] == gaps[1] > gaps[2] > gaps[3] == gaps[4] > 0.0


def test_norm_and_weight_in_numpy():
    path, network = PATHS["ve"](), affine_network()
    draw = log_normal_times(path, -1.1, 2.0)
    objective = consistency_tuning(build_model(network, path, "F"), total_steps=80, stages=8)
    loss, _ = build_loss(objective, network.init(KEY), step=35, count=32)
    key_t, key_eps, _ = jax.random.split(jax.random.split(KEY)[0], 3)
    t = np.asarray(draw(key_t, 32), np.float64)
    eps = np.asarray(jax.random.normal(key_eps, (32, 2)), np.float64)
    x_0 = np.asarray(GAUSSIAN.sample(KEY, 32), np.float64)
    n = 1 + 8 / (1 + np.exp(t))
    s = np.maximum(t * np.maximum(0, 1 - n / 2**4), 0.002)

    def f(sigma):
        sigma = sigma[:, None]
        x = x_0 + sigma * eps
        root = np.sqrt(sigma**2 + 0.25)
        raw = 0.3 * x / root - 0.2 + 0.5 * np.log(sigma) / 4 - 1.0
        denoised = 0.25 / root**2 * x + 0.5 * sigma / root * raw
        return denoised + 0.002 * (x - denoised) / sigma

    norm = np.sqrt(((f(t) - f(s)) ** 2).sum(axis=1))
    np.testing.assert_allclose(loss, norm / (t - s), rtol=5e-3)


def test_it_starts_from_a_teacher_without_asking_it_anything():
    objective = consistency_tuning(build_model(affine_network(), PATHS["linear"]()), total_steps=10)
    assert objective.init_from == {"network": "teacher"} and not objective.frozen


@pytest.mark.parametrize("fields", [{"stages": 0}, {"q": 1.0}, {"k": -1.0}, {"b": 0.0}])
def test_fields_out_of_range_are_errors(fields):
    with pytest.raises(ValueError, match="stages >= 1"):
        consistency_tuning(
            build_model(affine_network(), PATHS["linear"]()), total_steps=10, **fields
        )
