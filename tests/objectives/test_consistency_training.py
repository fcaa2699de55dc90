import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.diffusion.path import PATHS
from fewstep.diffusion.time_pairs import constant, doubling, square_root
from fewstep.objectives.consistency import WEIGHTINGS
from fewstep.objectives.consistency_training import consistency_training, target_decay
from fewstep.objectives.distances import pseudo_huber
from tests.gaussian import Gaussian
from tests.networks import affine_network, build_model, exact_consistency

KEY = jax.random.key(0)
GAUSSIAN = Gaussian(jnp.array([0.3, -0.7]), jnp.array([0.25, 1.7]))


def test_target_decay_is_the_paper_s_formula():
    curriculum = square_root(2, 150, total_steps=1000)
    decay = target_decay(curriculum, 0.9)
    for step in (0, 100, 999):
        # mu(k) = exp(s_0 log mu_0 / N(k)), and N(0) = s_0.
        expected = np.exp(2 * np.log(0.9) / int(curriculum(step)))
        assert float(decay(step)) == pytest.approx(expected, rel=1e-5)
    assert float(decay(0)) == pytest.approx(0.9, rel=1e-5)
    assert float(decay(999)) > 0.998


def test_original_recipe_has_an_ema_target_and_the_improved_one_has_none():
    model = build_model(affine_network(), PATHS["linear"]())
    curriculum = square_root(2, 20, total_steps=100)
    original = consistency_training(model, curriculum=curriculum)
    follower = original.followers["target"]
    moved = follower.update(jnp.float32(1.0), jnp.float32(0.0), 0)
    assert float(moved) == pytest.approx(0.9, rel=1e-5)
    improved = consistency_training(model, curriculum=doubling(total_steps=100), initial_decay=0.0)
    assert not improved.followers and not improved.frozen


def test_the_grid_grows_with_the_step():
    # The same key at two steps: the loss differs because the pairs do.
    model = build_model(affine_network(), PATHS["linear"]())
    objective = consistency_training(model, curriculum=square_root(2, 60, total_steps=100))
    params = affine_network().init(KEY)
    data = {"x": GAUSSIAN.sample(KEY, 256), "label": jnp.zeros(256, jnp.int32)}
    gaps = []
    for step in (0, 10, 99):
        _, metrics = objective.players["network"].loss(
            params, {"target": params}, data, KEY, jnp.int32(step)
        )
        gaps.append(float(metrics["noise_gap"].total / metrics["noise_gap"].count))
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[0] == pytest.approx(80.0, rel=0.01)  # one cell: the whole path


@pytest.mark.parametrize("name", ["linear", "vp_cosine"])
def test_loss_at_the_exact_function_falls_with_the_gap_and_not_beside_it(name):
    # Not zero: x_s is a sample around the trajectory, at a distance of order of the gap.
    path = PATHS[name]()
    model = exact_consistency(GAUSSIAN, path)
    data = {"x": GAUSSIAN.sample(KEY, 4000), "label": jnp.zeros(4000, jnp.int32)}

    def loss(points, offset):
        objective = consistency_training(model, curriculum=constant(points), initial_decay=0.9)
        params = model.network.init(KEY)
        beside = {"offset": params["offset"] + offset}
        networks = {"target": params}
        return float(objective.players["network"].loss(beside, networks, data, KEY, 0)[0].mean())

    assert loss(200, 0.0) < 0.1 * loss(20, 0.0)
    assert loss(200, 0.3) > 10 * loss(200, 0.0)


def test_improved_recipe_in_numpy():
    # Pseudo-Huber over both dimensions with c = 0.00054 sqrt(2), weight 1 / (t - s), on `ve`.
    path, network = PATHS["ve"](), affine_network()
    model = build_model(network, path, "F")
    objective = consistency_training(
        model,
        curriculum=constant(5),
        distance=pseudo_huber(),
        weighting=WEIGHTINGS["inverse_gap"],
        initial_decay=0.0,
    )
    params = network.init(KEY)
    data = {"x": GAUSSIAN.sample(KEY, 32), "label": jnp.zeros(32, jnp.int32)}
    loss, _ = objective.players["network"].loss(params, {}, data, KEY, 0)
    key_t, key_eps, _ = jax.random.split(jax.random.split(KEY)[0], 3)
    cell = np.floor(np.asarray(jax.random.uniform(key_t, (32,)), np.float64) * 4).astype(int)
    grid = (0.002 ** (1 / 7) + np.arange(5) / 4 * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    t, s = grid[cell + 1], grid[cell]
    x_0 = np.asarray(data["x"], np.float64)
    eps = np.asarray(jax.random.normal(key_eps, (32, 2)), np.float64)

    def f(sigma):
        sigma = sigma[:, None]
        x = x_0 + sigma * eps
        root = np.sqrt(sigma**2 + 0.25)
        raw = 0.3 * x / root - 0.2 + 0.5 * np.log(sigma) / 4 - 1.0
        denoised = 0.25 / root**2 * x + 0.5 * sigma / root * raw
        return denoised + 0.002 * (x - denoised) / sigma

    c = 0.00054 * np.sqrt(2)
    square = ((f(t) - f(s)) ** 2).sum(axis=1)
    np.testing.assert_allclose(loss, (np.sqrt(square + c**2) - c) / (t - s), rtol=2e-3)


def test_decay_out_of_range_is_an_error():
    model = build_model(affine_network(), PATHS["linear"]())
    with pytest.raises(ValueError, match="objective.initial_decay=1.0"):
        consistency_training(model, curriculum=constant(5), initial_decay=1.0)
