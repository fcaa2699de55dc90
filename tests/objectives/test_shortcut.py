import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.diffusion.path import PATHS, align
from fewstep.diffusion.time_sampling import dyadic_levels, dyadic_steps
from fewstep.objectives.distances import pseudo_huber
from fewstep.objectives.rows import merge_rows, split_rows
from fewstep.objectives.shortcut import (
    bootstrap_target,
    check_batch_split,
    guide_rows,
    shortcut,
)
from tests.gaussian import Gaussian
from tests.networks import affine_network, build_model, exact_network

GAUSSIAN = Gaussian(jnp.array([0.3, -0.7]), jnp.array([0.25, 1.7]))
LINEAR = PATHS["linear"]()
KEY = jax.random.key(0)


def shortcut_model(network, path):
    """The model of a network that reads its step size."""
    return build_model(network._replace(second_time="step_size"), path)


COUNT = 4096
ON_EACH_PATH = pytest.mark.parametrize("name", ["linear", "vp_cosine", "trigflow"])


def exact_flow_model(path=LINEAR):
    return exact_network(lambda x, t, s, condition: GAUSSIAN.average_velocity(path, x, t, s))


def data(count=COUNT):
    return {"x": GAUSSIAN.sample(jax.random.key(1), count), "label": jnp.zeros(count, jnp.int32)}


def build_loss(objective, network, batch, key=KEY, offset=0.0):
    params = jax.tree.map(lambda p: p + offset, network.init(KEY))
    networks = {"target": network.init(KEY)}
    return objective.players["network"].loss(params, networks, batch, key, jnp.int32(0))


def residual(velocity):
    """Mean square of u(x, t, t - size) - bootstrap_target at the exact average velocity."""
    t, size = dyadic_steps(KEY, dyadic_levels(700, 7))
    x_t = LINEAR.interpolate(GAUSSIAN.sample(KEY, 700), jax.random.normal(KEY, (700, 2)), t)
    target = bootstrap_target(velocity, x_t, t, size, {})
    return float(jnp.mean((GAUSSIAN.average_velocity(LINEAR, x_t, t, t - size) - target) ** 2))


def test_exact_flow_map_is_the_fixed_point_of_the_bootstrap():
    assert residual(lambda x, t, s, c: GAUSSIAN.average_velocity(LINEAR, x, t, s)) < 1e-9


def test_the_misprinted_target_has_another_fixed_point():
    # Frans et al. 2024, eq. 5 as printed: both half steps at the time of the first.
    first_t = []

    def misprinted(x, t, s, condition):
        first_t.append(t)
        return GAUSSIAN.average_velocity(LINEAR, x, first_t[0], first_t[0] - (t - s))

    assert residual(misprinted) > 1e-2


@ON_EACH_PATH
def test_bootstrap_loss_is_zero_at_the_exact_flow_map_and_not_beside_it(name):
    path = PATHS[name]()
    network = exact_flow_model(path)
    objective = shortcut(shortcut_model(network, path))
    at = build_loss(objective, network, data())[1]["loss_bootstrap"]
    beside = build_loss(objective, network, data(), offset=0.1)[1]["loss_bootstrap"]
    assert at.total / at.count < 1e-8
    assert beside.total / beside.count == pytest.approx(0.01, rel=0.2)


@ON_EACH_PATH
def test_steps_divide_the_path_s_range_of_times(name):
    path = PATHS[name]()
    network, calls = record_inputs(affine_network())
    build_loss(shortcut(shortcut_model(network, path), label_dropout=0.0), network, data(256))
    _, t, s, _ = calls[-1]
    size = ((t - s) / path.t_max)[::4]
    np.testing.assert_allclose(size, 2.0 ** -dyadic_levels(64, 7), rtol=1e-5)
    position = (t / path.t_max)[::4] / size  # of the start, in steps
    np.testing.assert_allclose(position, np.round(position), rtol=1e-5)
    assert s[::4].min() > -1e-6
    flow_size = np.delete((t - s) / path.t_max, np.s_[::4])
    np.testing.assert_allclose(flow_size, 1 / 128, rtol=1e-4)


@ON_EACH_PATH
def test_flow_loss_at_the_exact_flow_map_is_flow_matching_s_minimum(name):
    # At the smallest step the average velocity is the velocity up to O(1/M).
    path, count = PATHS[name](), 100_000
    network = exact_flow_model(path)
    metrics = build_loss(
        shortcut(shortcut_model(network, path), bootstrap_fraction=0.5), network, data(count)
    )[1]
    # E Var[alpha' x_0 + sigma' eps | x_t] = (alpha' sigma - alpha sigma')^2 S / C_t.
    t = jnp.linspace(0.0, path.t_max, 20_001)
    determinant = path.alpha_rate(t) * path.sigma(t) - path.alpha(t) * path.sigma_rate(t)
    variance = GAUSSIAN.variance / GAUSSIAN.marginal(path, t)[1]
    minimum = float(jnp.mean(determinant[:, None] ** 2 * variance))
    loss = metrics["loss_flow"]
    assert loss.total / loss.count == pytest.approx(minimum, rel=0.02)


def record_inputs(network):
    """(the network, a list of the inputs of its calls)."""
    calls = []

    def apply(params, x, t, s, condition, **kwargs):
        calls.append((np.asarray(x), np.asarray(t), np.asarray(s), np.asarray(condition["label"])))
        return network.apply(params, x, t, s, condition, **kwargs)

    return network._replace(apply=apply), calls


@pytest.mark.parametrize(("fraction", "bootstrap"), [(0.25, 64), (0.125, 32), (0.5, 128)])
def test_row_counts_and_steps_of_the_split(fraction, bootstrap):
    network, calls = record_inputs(affine_network())
    objective = shortcut(
        shortcut_model(network, LINEAR), bootstrap_fraction=fraction, label_dropout=0.0
    )
    loss, metrics = build_loss(objective, network, data(256))
    first, second, trained = calls
    assert [len(c[0]) for c in calls] == [bootstrap, bootstrap, 256]
    assert metrics["loss_bootstrap"].count == bootstrap
    assert metrics["loss_flow"].count == 256 - bootstrap
    size = (trained[1] - trained[2])[:: round(1 / fraction)]
    np.testing.assert_array_equal(size, 2.0 ** -dyadic_levels(bootstrap, 7))
    # The second half step starts at the point and time where the first ends.
    np.testing.assert_allclose(first[1] - first[2], size / 2)
    np.testing.assert_array_equal(second[1], first[2])
    np.testing.assert_allclose(second[1] - second[2], size / 2)
    flow_size = np.delete(trained[1] - trained[2], np.s_[:: round(1 / fraction)])
    np.testing.assert_allclose(flow_size, 1 / 128, rtol=1e-4)


def test_rows_share_neither_images_nor_noise():
    network, calls = record_inputs(affine_network())
    objective = shortcut(shortcut_model(network, LINEAR))
    label = jnp.zeros(64, jnp.int32)
    build_loss(objective, network, {"x": jnp.zeros((64, 1)), "label": label})
    build_loss(objective, network, {"x": 1e4 * jnp.arange(64.0)[:, None], "label": label})
    (x, t, _, _), (far_x, _, _, _) = calls[2], calls[5]
    assert len(np.unique((x[:, 0] / t).round(4))) == 64  # the noise, where the image is 0
    inner = t < 0.99
    image = np.round(far_x[inner, 0] / (1 - t[inner]) / 1e4)
    np.testing.assert_array_equal(image, np.arange(64)[inner])


def test_split_and_merge_are_inverse():
    rows = {"x": jnp.arange(24.0).reshape(12, 2), "label": jnp.arange(12)}
    first, rest = split_rows(rows, 4)
    np.testing.assert_array_equal(first["label"], [0, 4, 8])
    merged = merge_rows(first, rest, 4)
    chex.assert_trees_all_equal(merged, rows)


def test_gradient_reaches_the_trained_network_alone():
    network = affine_network()
    objective = shortcut(shortcut_model(network, LINEAR))
    params = network.init(KEY)

    def mean_loss(params, target):
        networks = {"target": target, "network": params}
        return objective.players["network"].loss(params, networks, data(256), KEY, 0)[0].mean()

    # The loss depends on the target; the training step differentiates argument 0 only.
    gradient = jax.grad(mean_loss, argnums=(0, 1))(params, params)
    assert any(np.abs(g).max() > 0 for g in jax.tree.leaves(gradient[1]))
    detached = jax.grad(lambda p: mean_loss(p, params))(params)
    chex.assert_trees_all_close(gradient[0], detached, rtol=1e-7)


def test_guidance_acts_on_the_finest_half_steps_alone():
    network, calls = record_inputs(affine_network())
    batch = {"x": data(256)["x"], "label": jnp.ones(256, jnp.int32)}
    objective = shortcut(shortcut_model(network, LINEAR), guidance_scale=1.5, label_dropout=0.0)
    build_loss(objective, network, batch)
    first = calls[0]
    levels = dyadic_levels(64, 7)
    finest = int((levels == 6).sum())
    assert len(first[0]) == 64 + finest
    np.testing.assert_array_equal(first[3], [1] * 64 + [-1] * finest)
    np.testing.assert_allclose((first[1] - first[2])[64:], 1 / 128)


def test_guided_target_is_inherited_from_the_guided_gaussian():
    # METHODS 2.3: guidance of Gaussians of one covariance is the Gaussian of the extrapolated mean.
    means = jnp.array([[1.0, -1.0], [0.2, 0.1]])
    scale = 1.5
    guided = Gaussian(means[1] + scale * (means[0] - means[1]), GAUSSIAN.variance)

    def field(x, t, s, condition):
        # The finest steps have a field for each class; larger steps are already guided.
        classes = [Gaussian(mean, GAUSSIAN.variance).velocity(LINEAR, x, t) for mean in means]
        large = guided.average_velocity(LINEAR, x, t, s)
        rows = [jnp.where(align(t - s, x) < 0.01, fine, large) for fine in classes]
        return jnp.where(align(condition["label"], x) == 0, rows[0], rows[1])

    t, size = dyadic_steps(KEY, np.full(50, 6))
    x_t = LINEAR.interpolate(GAUSSIAN.sample(KEY, 50), jax.random.normal(KEY, (50, 2)), t)
    velocity = guide_rows(field, np.arange(50), scale)
    target = bootstrap_target(velocity, x_t, t, size, {"label": jnp.zeros(50, int)})
    expected = guided.average_velocity(LINEAR, x_t, t, t - size)
    # Two Euler steps of 1/128 against the exact map: O(1/128).
    assert jnp.abs(target - expected).max() < 0.08
    unguided = Gaussian(means[0], GAUSSIAN.variance).average_velocity(LINEAR, x_t, t, t - size)
    assert jnp.abs(unguided - expected).max() > 0.2


@ON_EACH_PATH
@pytest.mark.parametrize("steps", [1, 4, 128])
def test_samples_of_the_exact_flow_map_are_exact_in_any_number_of_steps(name, steps):
    path = PATHS[name]()
    network = exact_flow_model(path)
    eps = jax.random.normal(KEY, (64, 2))
    x_0 = shortcut(shortcut_model(network, path)).sample(
        network.init(KEY), eps, {"label": jnp.zeros(64, int)}, None, steps=steps, guidance_scale=1.0
    )
    # Starts from the prior of the path, whose deviation is not 1 on trigflow.
    start = path.prior(eps)
    scale = jnp.sqrt(GAUSSIAN.variance) / path.sigma(jnp.float32(path.t_max))
    np.testing.assert_allclose(x_0, GAUSSIAN.mean + scale * start, atol=5e-4)


def test_loss_is_the_paper_s_in_numpy():
    # Everything after the draws, transcribed row by row from the paper's algorithm 1 (its time).
    network, calls = record_inputs(affine_network())
    loss, _ = build_loss(
        shortcut(shortcut_model(network, LINEAR), label_dropout=0.0), network, data(32)
    )
    x_t, t, s, _ = calls[-1]
    key_bootstrap, key_flow, _ = jax.random.split(KEY, 3)
    u = lambda x, t, d: 0.3 * x - 0.2 + 0.5 * t + 0.7 * d - 1.0
    eps_flow = np.asarray(jax.random.normal(jax.random.split(key_flow, 3)[1], (24, 2)))
    flow = iter(range(24))
    for row in range(32):
        d = t[row] - s[row]
        if row % 4 == 0:
            half = d / 2
            first = u(x_t[row], t[row], half)
            second = u(x_t[row] - half * first, t[row] - half, half)
            target = (first + second) / 2
        else:
            target = eps_flow[next(flow)] - np.asarray(data(32)["x"])[row]
        expected = np.mean((u(x_t[row], t[row], d) - target) ** 2)
        np.testing.assert_allclose(loss[row], expected, rtol=1e-3, atol=1e-6)


def test_the_loss_is_the_distance_to_the_target():
    network = affine_network()
    fields = {"label_dropout": 0.0, "bootstrap_fraction": 0.5}
    squared, _ = build_loss(shortcut(shortcut_model(network, LINEAR), **fields), network, data(32))
    other = shortcut(shortcut_model(network, LINEAR), **fields, distance=pseudo_huber(0.5))
    loss, metrics = build_loss(other, network, data(32))
    np.testing.assert_allclose(loss, np.sqrt(2 * squared + 0.25) - 0.5, rtol=1e-5)
    both = metrics["loss_flow"].total + metrics["loss_bootstrap"].total
    np.testing.assert_allclose(both, loss.sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_steps": 100}, "power of two"),
        ({"bootstrap_fraction": 0.3}, "one over an integer"),
        ({"bootstrap_fraction": 0.0}, "one over an integer"),
        ({"target_decay": 1.0}, "decay must be in"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        shortcut(shortcut_model(affine_network(), LINEAR), **fields)


def test_sampling_refuses_what_was_not_trained():
    network = affine_network()
    objective = shortcut(shortcut_model(network, LINEAR), guidance_scale=1.5)
    sample = lambda **k: objective.sample(
        network.init(KEY), jnp.zeros((2, 2)), {"label": jnp.zeros(2, int)}, None, **k
    )
    with pytest.raises(ValueError, match="power of two"):
        sample(steps=3, guidance_scale=1.5)
    with pytest.raises(ValueError, match="power of two"):
        sample(steps=256, guidance_scale=1.5)
    with pytest.raises(ValueError, match="trained with guidance scale 1.5"):
        sample(steps=4, guidance_scale=2.0)
    assert sample(steps=128, guidance_scale=2.0).shape == (2, 2)
    for path in (PATHS["ve"](), PATHS["ve"](sigma_min=0.0), PATHS["vp_ddpm"](beta_max=40.0)):
        with pytest.raises(ValueError, match=f"linear, vp_cosine or trigflow, not {path.name}"):
            shortcut(shortcut_model(network, path))


def test_fields_have_edges():
    for steps in (2, 4):
        shortcut(shortcut_model(affine_network(), LINEAR), max_steps=steps)
    for steps in (1, 0, -2, 6):
        with pytest.raises(ValueError, match=f"power of two, 2 or more, not {steps}"):
            shortcut(shortcut_model(affine_network(), LINEAR), max_steps=steps)
    shortcut(shortcut_model(affine_network(), LINEAR), bootstrap_fraction=0.5)
    for fraction in (1.0, 0.4, -0.25):
        with pytest.raises(ValueError, match="one over an integer of 2 or more"):
            shortcut(shortcut_model(affine_network(), LINEAR), bootstrap_fraction=fraction)
    sample = shortcut(shortcut_model(affine_network(), LINEAR)).sample
    for steps in (0, -1):
        with pytest.raises(ValueError, match=f"up to 128, not in {steps}"):
            sample(
                affine_network().init(KEY),
                jnp.zeros((2, 2)),
                {},
                None,
                steps=steps,
                guidance_scale=1.0,
            )


@pytest.mark.parametrize(("rows", "least"), [(27, 28), (24, 28), (30, 32), (33, 36), (0, 28)])
def test_a_batch_that_cannot_be_split_names_the_next_that_can(rows, least):
    check_batch_split(least, every=4, levels=7)
    with pytest.raises(ValueError, match=f"{rows} rows.*a multiple of 4, such as {least}$"):
        check_batch_split(rows, every=4, levels=7)


def test_targets_of_every_scale_are_guided_by_the_row_s_own():
    # Exact at every scale: the finest steps have a field for each class, larger ones are guided.
    means, scales = jnp.array([[1.0, -1.0], [0.2, 0.1]]), (1.0, 3.0)
    seen = []

    def field(x, t, s, condition):
        scale = condition["guidance_scale"]
        seen.append((len(x), np.asarray(t - s), np.asarray(scale)))
        classes = [Gaussian(mean, GAUSSIAN.variance).velocity(LINEAR, x, t) for mean in means]
        guided = Gaussian(means[1] + scale[:, None] * (means[0] - means[1]), GAUSSIAN.variance)
        large = guided.average_velocity(LINEAR, x, t, s)
        null = align(condition["label"], x) < 0
        return jnp.where(align(t - s, x) < 0.01, jnp.where(null, classes[1], classes[0]), large)

    network = exact_network(field)._replace(guidance_input=True)
    objective = shortcut(
        shortcut_model(network, LINEAR),
        guidance_range=scales,
        guidance_scale=2.0,
        label_dropout=0.0,
        bootstrap_fraction=0.5,
    )
    count = 700
    batch = {"x": GAUSSIAN.sample(KEY, count), "label": jnp.zeros(count, jnp.int32)}
    loss, _ = build_loss(objective, network, batch)
    (_, _, first), (_, _, _), (rows, size, trained) = seen
    assert rows == count and scales[0] <= trained.min() and trained.max() <= scales[1]
    # The target's scales are those of its own rows; null rows repeat those of the finest.
    np.testing.assert_array_equal(first[: count // 2], trained[::2])
    finest = np.flatnonzero(dyadic_levels(count // 2, 7) == 6)
    np.testing.assert_array_equal(first[count // 2 :], trained[::2][finest])
    # Two Euler steps of 1/128 against the exact map: O(1/128). Half steps of 1/64 are exact.
    assert float(loss[::2][finest].max()) < 0.01
    others = np.delete(np.asarray(loss[::2]), finest)
    assert others.max() < 1e-6
    # The mean scale in place of the row's own is another target.
    fixed = guide_rows(field, finest, 2.0)
    t, s = (jnp.full(count // 2, v) for v in (0.5, 0.5 - 1 / 128))
    x, own = batch["x"][::2], {"label": batch["label"][::2], "guidance_scale": trained[::2]}
    by_row = guide_rows(field, finest, trained[::2])
    apart = np.abs(fixed(x, t, s, own) - by_row(x, t, s, own))
    assert apart[finest].max() > 0.1 and np.delete(apart, finest, axis=0).max() == 0.0


def test_a_shortcut_of_every_scale_samples_at_the_scales_of_its_range():
    def apply(params, x, t, s, condition, *, train=False, rng=None):
        own = align(condition["guidance_scale"] + 0.1 * condition["label"], x)
        return params["a"] * x + own

    network = affine_network()._replace(apply=apply, guidance_input=True)
    objective = shortcut(
        shortcut_model(network, LINEAR), max_steps=4, guidance_range=(1.0, 3.0), guidance_scale=2.0
    )
    given = network.init(KEY), jnp.ones((2, 2)), {"label": jnp.array([0, 1])}, None
    sample = lambda steps, scale: objective.sample(*given, steps=steps, guidance_scale=scale)
    assert objective.guidance_scale == 2.0
    for steps in (1, 2, 4):
        assert np.abs(sample(steps, 1.0) - sample(steps, 3.0)).min() > 0.1
        with pytest.raises(ValueError, match="guidance scale 4 is outside 1 to 3"):
            sample(steps, 4.0)
    with pytest.raises(ValueError, match="must be .low, high., 0 <= low <= high"):
        shortcut(shortcut_model(network, LINEAR), guidance_range=(3.0, 1.0))
