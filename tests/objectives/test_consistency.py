"""Boundary, gradients and sampling of consistency models against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.diffusion.path import PATHS
from fewstep.diffusion.prediction import KINDS
from fewstep.diffusion.spacing import SPACINGS
from fewstep.diffusion.time_pairs import constant, grid_pairs
from fewstep.models.model import check_boundary
from fewstep.models.network import Network
from fewstep.objectives.consistency import (
    WEIGHTINGS,
    Draw,
    check_guidance_range,
    consistency_distance,
    consistency_sampler,
    noised_points,
    pair_loss,
    same_noise_point,
    snap_to_grid,
)
from fewstep.objectives.consistency_distillation import teacher_step
from fewstep.objectives.distances import pseudo_huber, squared_l2
from fewstep.samplers.ode import ddim_step
from tests.gaussian import Gaussian
from tests.networks import (
    affine_network,
    build_model,
    exact_consistency,
    exact_denoiser,
    exact_network,
)

KEY = jax.random.key(0)
GAUSSIAN = Gaussian(jnp.array([0.3, -0.7]), jnp.array([0.25, 1.7]))
LINE = Gaussian(jnp.array([0.4]), jnp.array([0.6]))


def labels(count):
    return {"label": jnp.zeros(count, jnp.int32)}


def is_identity_at_data_end(f, path):
    """Whether f(x, t_min) = x up to rounding, and f(x, t) is close to x near t_min."""
    x = jax.random.normal(KEY, (64, 2)) * max(1.0, float(path.sigma(jnp.float32(path.t_min))))
    at = f(x, jnp.full(64, path.t_min))
    beside = f(x, jnp.full(64, path.t_min * (1.0 + 1e-4) or 1e-6))
    return bool(jnp.abs(at - x).max() < 2e-6 and jnp.abs(beside - x).max() < 0.05)


BOUNDED = [
    (name, kind)
    for name in PATHS
    for kind in KINDS
    if not (kind == "x_0" and name in ("linear", "vp_cosine", "vp_discrete", "trigflow"))
    # Only on `ve` do noise predictions reach the data end in one step from the noise end.
    and not (kind in ("eps", "score") and name != "ve")
    # The score of this network stays finite where the true one grows, so it has no boundary.
    and kind != "score"
]


@pytest.mark.parametrize(("name", "kind"), BOUNDED)
def test_any_network_is_the_identity_at_the_data_end(name, kind):
    model = build_model(affine_network(), PATHS[name](), kind)
    check_boundary(model)
    params = model.network.init(KEY)
    assert is_identity_at_data_end(
        lambda x, t: model.consistency(params, x, t, labels(x.shape[0])), model.path
    )


def test_a_collapsed_network_fails_the_boundary():
    # A constant output has zero loss for every pair and is no consistency function.
    path = PATHS["linear"]()
    constant_network = exact_network(lambda x, t, s, condition: jnp.full_like(x, 0.2))
    free = build_model(constant_network, path, "x_0")
    params = constant_network.init(KEY)
    assert not is_identity_at_data_end(
        lambda x, t: free.consistency(params, x, t, labels(x.shape[0])), path
    )
    with pytest.raises(ValueError, match="prediction.kind=x_0"):
        check_boundary(free)
    # The same constant as the output of a network whose parameterisation has the boundary.
    bound = build_model(constant_network, path, "velocity")
    assert is_identity_at_data_end(
        lambda x, t: bound.consistency(params, x, t, labels(x.shape[0])), path
    )


@pytest.mark.parametrize("kind", ["eps", "score"])
def test_noise_predictions_cannot_start_from_pure_noise(kind):
    with pytest.raises(ValueError, match="use velocity, v or F"):
        check_boundary(build_model(affine_network(), PATHS["vp_cosine"](), kind))


def test_scalings_on_ve_are_those_of_song_et_al():
    # Appendix C of the paper, by its formulas; f is affine in the network's output F.
    path, sigma_data, sigma_min = PATHS["ve"](), 0.5, 0.002
    sigma = np.geomspace(sigma_min, 80.0, 200)
    one = jnp.ones((200, 1))

    def f(raw, x):
        network = exact_network(lambda *_: jnp.full((200, 1), raw))
        model = build_model(network, path, "F")
        t = jnp.asarray(sigma, jnp.float32)
        return np.asarray(model.consistency(network.init(KEY), x, t, labels(200)))[:, 0]

    c_skip = sigma_data**2 / ((sigma - sigma_min) ** 2 + sigma_data**2)
    c_out = (sigma - sigma_min) * sigma_data / np.sqrt(sigma**2 + sigma_data**2)
    np.testing.assert_allclose(f(1.0, 0 * one), c_out, atol=1e-6)
    np.testing.assert_allclose(f(0.0, one), c_skip, atol=0.004)


# Quadrature over data and noise of one dimension: no sampling error in what follows.
def nodes(count):
    points, weights = np.polynomial.hermite_e.hermegauss(count)
    weights = weights / weights.sum()
    data, noise = np.meshgrid(points, points, indexing="ij")
    x_0 = LINE.mean + jnp.sqrt(LINE.variance) * jnp.asarray(data.reshape(-1, 1))
    return x_0, jnp.asarray(noise.reshape(-1, 1)), jnp.asarray(np.outer(weights, weights).ravel())


def curved_model():
    """A model whose f is not affine in x: its raw output contains sin(a x)."""

    def apply(params, x, t, s, condition, *, train=False, rng=None):
        return jnp.sin(params["a"] * x) + params["b"] * x + params["c"] * t[:, None]

    init = lambda key: {"a": jnp.float32(1.3), "b": jnp.float32(0.2), "c": jnp.float32(0.4)}
    return Network(init, apply)


def affine_model():
    """A model whose f is affine in x."""

    def apply(params, x, t, s, condition, *, train=False, rng=None):
        return params["b"] * x + params["c"] * t[:, None]

    return Network(lambda key: {"b": jnp.float32(0.2), "c": jnp.float32(0.4)}, apply)


def gradients(network, path, t, gap, distance, count=40, detached=True):
    """(training, distillation) gradients of the expected loss, as vectors, in float64."""
    with jax.enable_x64(True):
        x_0, eps, weights = nodes(count)
        rows = x_0.shape[0]
        times = jnp.full(rows, t), jnp.full(rows, t - gap)
        draw = Draw(x_0, eps, path.interpolate(x_0, eps, times[0]), *times, labels(rows))
        model = build_model(network, path)
        teacher = exact_denoiser(LINE, path)
        teach = teacher_step(teacher, ddim_step)
        second = {
            "training": same_noise_point(path)({}, draw),
            "distillation": teach({"teacher": teacher.network.init(KEY)}, draw),
        }
        params = jax.tree.map(lambda p: p.astype(jnp.float64), network.init(KEY))

        def expected(params, x_s):
            if detached:
                apart = consistency_distance(model, distance, params, params, draw, x_s, KEY)
            else:
                f = lambda x, t: model.consistency(params, x, t, draw.condition)
                apart = distance(f(draw.x_t, draw.t), f(x_s, draw.s))
            return jnp.sum(weights * apart)

        grads = [jax.grad(expected)(params, x_s) for x_s in second.values()]
        return [np.array(jax.tree.leaves(g)) for g in grads]


def relative_gap(*args, **kwargs):
    training, distillation = gradients(*args, **kwargs)
    return np.linalg.norm(training - distillation) / np.linalg.norm(distillation)


@pytest.mark.parametrize("name", ["linear", "vp_cosine", "trigflow"])
@pytest.mark.parametrize("gap", [0.3, 0.01])
def test_training_has_the_gradient_of_distillation_for_an_affine_network(name, gap):
    # Song et al. 2023, theorem 2, exactly, at any gap: E[x_s | x_t] is the DDIM step of the exact
    # denoiser, and the gradient is linear in f(x_s).
    assert relative_gap(affine_model(), PATHS[name](), 0.6, gap, squared_l2(), count=8) < 1e-5


def test_the_relative_gap_falls_linearly_for_a_curved_network():
    gaps = [
        relative_gap(curved_model(), PATHS["linear"](), 0.6, h, squared_l2())
        for h in (0.08, 0.04, 0.02)
    ]
    assert gaps[0] > 0.005
    np.testing.assert_allclose(np.log2(np.divide(gaps[:-1], gaps[1:])), 1.0, atol=0.15)


def test_without_a_detached_target_the_gradients_differ():
    # The value gap gap^2 tr(J Cov[eps - x_0 | x_t] J^T) depends on the parameters through the
    # target's Jacobian J, at any gap.
    for gap in (0.3, 0.05):
        path = PATHS["linear"]()
        detached = relative_gap(affine_model(), path, 0.6, gap, squared_l2(), count=8)
        attached = relative_gap(
            affine_model(), path, 0.6, gap, squared_l2(), count=8, detached=False
        )
        assert detached < 1e-5 and attached > 0.05


def plain_norm_gap(gap, c, dimensions=8, count=100_000):
    """Relative gap of the gradients under pseudo-Huber of scale c, by common random numbers."""
    path, distribution = (
        PATHS["linear"](),
        Gaussian(jnp.zeros(dimensions), 0.6 * jnp.ones(dimensions)),
    )
    x_0 = distribution.sample(KEY, count)
    eps = jax.random.normal(jax.random.key(1), x_0.shape)
    t = jnp.full(count, 0.6)
    draw = Draw(x_0, eps, path.interpolate(x_0, eps, t), t, t - gap, labels(count))
    model, teacher = build_model(affine_model(), path), exact_denoiser(distribution, path)
    taught = teacher_step(teacher, ddim_step)({"teacher": teacher.network.init(KEY)}, draw)
    params = affine_model().init(KEY)

    def gradient(x_s):
        loss = lambda p: consistency_distance(
            model, pseudo_huber(c), p, params, draw, x_s, KEY
        ).mean()
        return np.array(jax.tree.leaves(jax.grad(loss)(params)))

    training, distillation = gradient(same_noise_point(path)({}, draw)), gradient(taught)
    return np.linalg.norm(training - distillation) / np.linalg.norm(distillation)


def test_under_a_plain_norm_the_gap_does_not_fall():
    # || f(x_t) - f(x_s) || is of order t - s itself, noise included, so the norm bends at every
    # scale of the gap; a pseudo-Huber scale far above the gap makes it a square again.
    wide, narrow = plain_norm_gap(0.1, 0.0), plain_norm_gap(0.01, 0.0)
    assert wide > 0.05 and narrow > 0.05
    assert narrow == pytest.approx(wide, rel=0.3)
    assert plain_norm_gap(0.01, 1.0) < 0.01


def build_loss(model, networks, batch, key=KEY, **parts):
    defaults = {
        "second_point": same_noise_point(model.path),
        "pairs": grid_pairs(SPACINGS["uniform"](model.path), constant(9)),
        "distance": squared_l2(),
        "weighting": WEIGHTINGS["uniform"],
    }
    parts = {**defaults, **parts}
    points = noised_points(model, parts.pop("second_point"), parts.pop("pairs"))
    loss = pair_loss(model, points, **parts)
    return lambda params, others=networks: loss(params, others, batch, key, jnp.int32(0))


def random_batch(distribution, count):
    return {"x": distribution.sample(jax.random.key(3), count), **labels(count)}


def test_no_gradient_reaches_the_target_or_the_teacher():
    path = PATHS["linear"]()
    model = build_model(affine_network(), path)
    params = affine_network().init(KEY)
    others = {"target": params, "teacher": params}
    loss = build_loss(
        model, others, random_batch(GAUSSIAN, 64), second_point=teacher_step(model, ddim_step)
    )
    gradient = jax.grad(lambda others: loss(params, others)[0].mean())(others)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(gradient))
    own = jax.grad(lambda params: loss(params)[0].mean())(params)
    assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(own))


def test_the_target_is_the_follower_or_else_the_network():
    path = PATHS["linear"]()
    model, params = build_model(affine_network(), path), affine_network().init(KEY)
    other = jax.tree.map(lambda p: p + 0.5, params)
    loss = build_loss(model, {}, random_batch(GAUSSIAN, 64))
    itself, follower = loss(params, {})[0], loss(params, {"target": other})[0]
    np.testing.assert_allclose(loss(params, {"target": params})[0], itself, rtol=1e-6)
    assert np.abs(itself - follower).max() > 0.01


def test_both_sides_draw_the_same_dropout_mask():
    calls = []

    def apply(params, x, t, s, condition, *, train=False, rng=None):
        calls.append((train, jax.random.key_data(rng).tolist()))
        return params["a"] * x

    network = affine_network()._replace(apply=apply)
    model = build_model(network, PATHS["linear"]())
    build_loss(model, {}, random_batch(GAUSSIAN, 4))({"a": jnp.float32(1.0)})
    assert len(calls) == 2 and calls[0] == calls[1] and calls[0][0]


@pytest.mark.parametrize("weighting", ["uniform", "inverse_gap", "velocity"])
def test_training_loss_in_numpy(weighting):
    path, network = PATHS["linear"](), affine_model()
    model, batch = build_model(network, path), random_batch(LINE, 16)
    loss, _ = build_loss(model, {}, batch, weighting=WEIGHTINGS[weighting])(network.init(KEY))
    key_draw, _ = jax.random.split(KEY)
    key_t, key_eps, _ = jax.random.split(key_draw, 3)
    t, s = grid_pairs(SPACINGS["uniform"](path), constant(9))(key_t, 16, 0)
    t, s, x_0 = (np.asarray(a, np.float64) for a in (t, s, batch["x"][:, 0]))
    eps = np.asarray(jax.random.normal(key_eps, (16, 1)), np.float64)[:, 0]
    f = lambda time: (x := (1 - time) * x_0 + time * eps) - time * (0.2 * x + 0.4 * time)
    rho = lambda time: time / np.maximum(1 - time, 1e-12)
    # Beyond a noise level of 80, here at t = 1, the weight is that of the same relative gap at 80.
    gap = np.where(rho(t) > 80, 80 * (1 - rho(s) / rho(t)), rho(t) - rho(s))
    assert (t == 1.0).any() and (t < 1.0).any()
    weight = {"uniform": 1.0, "inverse_gap": 1.0 / gap, "velocity": 1.0 / t**2}[weighting]
    expected = (f(t) - f(s)) ** 2 * weight
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("steps", [1, 3])
def test_samples_of_an_exact_consistency_function_have_the_distribution_of_the_data(name, steps):
    path = PATHS[name]()
    model = exact_consistency(GAUSSIAN, path, "x_0" if name == "ve" else "velocity")
    sample = consistency_sampler(model, SPACINGS["karras"](path))
    count = 50_000
    eps = jax.random.normal(KEY, (count, 2))
    keys = jax.random.split(jax.random.key(1), count)
    x = sample(model.network.init(KEY), eps, labels(count), keys, steps=steps, guidance_scale=1.0)
    mean, variance = GAUSSIAN.marginal(path, jnp.array([path.t_min]))
    np.testing.assert_allclose(x.mean(0), mean[0], atol=0.03)
    np.testing.assert_allclose(x.var(0), variance[0], rtol=0.03)


def test_given_times_are_used_for_their_number_of_steps_only():
    seen = []

    def apply(params, x, t, s, condition, *, train=False, rng=None):
        jax.debug.callback(lambda t: seen.append(float(t)), t[0])
        return x

    path = PATHS["linear"]()
    model = build_model(affine_network()._replace(apply=apply), path)
    sample = consistency_sampler(model, SPACINGS["uniform"](path), (0.3,))
    keys = jax.random.split(KEY, 2)
    for steps in (2, 4):
        sample({}, jnp.ones((2, 1)), labels(2), keys, steps=steps, guidance_scale=1.0)
    jax.effects_barrier()
    np.testing.assert_allclose(seen, [1.0, 0.3, 1.0, 0.75, 0.5, 0.25], atol=1e-6)


def test_times_are_moved_to_the_grid_that_was_trained_on():
    # Five points of the linear path; three steps would start from 1, 2/3, 1/3.
    spacing = SPACINGS["uniform"](PATHS["linear"]())
    moved = snap_to_grid(spacing, 4, jnp.array([1.0, 2 / 3, 1 / 3]))
    np.testing.assert_allclose(moved, [1.0, 0.75, 0.25], atol=1e-6)
    # No time moves to the data end, where f is the identity.
    np.testing.assert_allclose(
        snap_to_grid(spacing, 4, jnp.array([1.0, 0.01])), [1.0, 0.25], atol=1e-6
    )
    model = build_model(affine_network(), PATHS["linear"]())
    sample = consistency_sampler(model, spacing, curriculum=constant(5))
    with pytest.raises(ValueError, match="at most 4 steps, not in 5"):
        sample({}, jnp.ones((2, 1)), labels(2), None, steps=5, guidance_scale=1.0)


@pytest.mark.parametrize("times", [(0.95,), (0.52, 0.48), (0.2, 0.01)])
def test_sampling_times_with_one_nearest_point_of_the_grid_are_an_error(times):
    # Of the points 1, 0.75, 0.5 and 0.25: two of the times, t_max included, are moved to one.
    path = PATHS["linear"]()
    spacing = SPACINGS["uniform"](path)
    with pytest.raises(ValueError, match="objective.sample_times are too close for the 5 times"):
        consistency_sampler(
            build_model(affine_network(), path), spacing, times, curriculum=constant(5)
        )
    # A finer grid separates them.
    np.testing.assert_allclose(snap_to_grid(spacing, 100, jnp.array(times)), times, atol=1e-6)


@pytest.mark.parametrize("times", [(1.0,), (0.0,), (-0.2,), (1.4,), (0.3, 0.6), (0.3, 0.3)])
def test_sampling_times_outside_the_path_are_an_error(times):
    path = PATHS["linear"]()
    with pytest.raises(ValueError, match="objective.sample_times"):
        consistency_sampler(build_model(affine_network(), path), SPACINGS["uniform"](path), times)


@pytest.mark.parametrize(
    ("trained", "span", "scale", "message"),
    [
        (1.0, (), 2.0, "trained at guidance scale 1 only"),
        (1.5, (), 1.0, "trained at guidance scale 1.5 only"),
        (1.0, (1.0, 4.0), 5.0, "outside 1 to 4"),
    ],
)
def test_a_scale_that_the_student_does_not_know_is_an_error(trained, span, scale, message):
    path = PATHS["linear"]()
    model = build_model(affine_network(), path)
    sample = consistency_sampler(
        model, SPACINGS["uniform"](path), trained_scale=trained, guidance_range=span
    )
    with pytest.raises(ValueError, match=message):
        sample(
            affine_network().init(KEY),
            jnp.ones((2, 1)),
            labels(2),
            None,
            steps=1,
            guidance_scale=scale,
        )


def test_a_range_of_scales_has_two_ends_and_holds_the_default():
    check_guidance_range((), 5.0)
    for scale in (1.0, 2.5, 4.0):
        check_guidance_range((1.0, 4.0), scale)
    check_guidance_range((0.0, 1.0), 1.0)
    check_guidance_range((1.0, 1.0), 1.0)
    for span in ((-0.1, 3.0), (3.0, 2.0), (1.0,), (1.0, 2.0, 3.0)):
        with pytest.raises(ValueError, match="0 <= low <= high"):
            check_guidance_range(span, 2.0)
    for scale in (0.99, 4.01):
        with pytest.raises(ValueError, match="the default of sampling, must be in"):
            check_guidance_range((1.0, 4.0), scale)
