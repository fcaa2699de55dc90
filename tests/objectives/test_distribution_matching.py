from functools import partial
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fewstep.diffusion.path import linear, trigflow, ve, vp_cosine, vp_ddpm
from fewstep.diffusion.prediction import KINDS
from fewstep.diffusion.time_sampling import log_normal_times
from fewstep.models.mlp import mlp
from fewstep.models.model import Model
from fewstep.objectives.distances import norm, pseudo_huber, squared_l2
from fewstep.objectives.distribution_matching import distribution_matching
from fewstep.objectives.divergences import (
    Divergence,
    integral_kl,
    noise_free_score_distillation,
    score_distillation,
    score_identity,
    score_implicit_matching,
)
from fewstep.objectives.generators import one_step_generator, particles
from fewstep.training.optimizer import Optimizer
from fewstep.training.state import initial_state, named_key
from fewstep.training.step import train_step
from tests.networks import gaussian_denoiser

KEY, SHARE_KEY = jax.random.key(0), jax.random.key(1)
BATCH = {"label": jnp.arange(8) % 4}


def small_model(path=None, kind="velocity"):
    network = mlp((3,), 4, width=16, depth=1)
    return Model(network, path or linear(), KINDS[kind])


def perturbed_model(params, seed):
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, moved)


def initial_networks(model, *names):
    params = model.network.init(KEY)
    return {name: perturbed_model(params, seed) for seed, name in enumerate(names)}


def player_loss(objective, name, networks, batch=BATCH, key=KEY, share_key=SHARE_KEY, at=None):
    """The loss of a player as a function of its parameters. The shared arrays depend on them too.

    at: networks that compute the shared arrays.
    """

    def loss(params):
        shared = objective.share({**(at or networks), name: params}, batch, share_key)
        return objective.players[name].loss(params, networks, {**batch, "shared": shared}, key, 0)

    return loss


def optimizer(rate, steps=1):
    schedule = optax.cosine_decay_schedule(rate, steps)
    return Optimizer(optax.adam(schedule, b1=0.0), schedule)


# Paths of every shape; the teacher N(0.5, 0.6^2) is within reach of each generator.
METHODS = {
    "sim": {"divergence": score_implicit_matching(pseudo_huber(0.5))},
    "sim, squared": {"divergence": score_implicit_matching(squared_l2())},
    "sid 1.0": {"divergence": score_identity(1.0), "normalize": True},
    "sid 1.2": {"divergence": score_identity(1.2), "normalize": True},
    "diff_instruct": {"divergence": integral_kl()},
    "dmd": {"divergence": integral_kl(), "normalize": True},
}
PATHS = {"linear": linear(), "ve": ve(), "trigflow": trigflow(0.6)}


@pytest.mark.in_turn("method", 3)
@pytest.mark.parametrize(
    ("method", "path", "joint"),
    [(name, "linear", False) for name in METHODS]
    + [("sim", "ve", False), ("sim", "trigflow", False)]
    + [("sim", "linear", True), ("diff_instruct", "linear", True)],
)
def test_a_gaussian_generator_learns_the_teacher_s_mean_and_deviation(method, path, joint):
    mean, std, steps = 0.5, 0.6, 2500
    model = gaussian_denoiser(PATHS[path])
    sampler = log_normal_times(model.path, -0.5, 1.0)
    objective = distribution_matching(
        model,
        time_sampler=sampler,
        fake_time_sampler=None if joint else sampler,
        joint=joint,
        **METHODS[method],
    )
    teacher = {"mean": jnp.float32(mean), "log_std": jnp.log(jnp.float32(std))}
    optimizers = {"fake_score": optimizer(0.03, steps), "generator": optimizer(0.01, steps)}
    state = initial_state(objective, optimizers, 0, {"teacher": teacher})
    step = train_step(objective, optimizers, 0)
    batch = {"label": jnp.zeros(256, jnp.int32)}
    run = jax.jit(
        lambda state: jax.lax.scan(
            lambda state, _: (step(state, {"teacher": teacher}, batch)[0], None),
            state,
            length=steps,
        )[0]
    )
    sample = lambda state: objective.sample(
        state.networks["generator"],
        jax.random.normal(KEY, (20_000, 1)),
        {"label": jnp.zeros(20_000, jnp.int32)},
        KEY,
        steps=1,
        guidance_scale=1.0,
    )
    before, after = sample(state), sample(run(state))
    assert abs(float(before.mean()) - mean) > 0.02 and float(before.std()) < 0.3
    assert float(after.mean()) == pytest.approx(mean, abs=0.03)
    assert float(after.std()) == pytest.approx(std, rel=0.06)


@pytest.mark.parametrize("joint", [False, True])
def test_each_player_s_update_changes_that_player_alone(joint):
    model = gaussian_denoiser(linear())
    objective = distribution_matching(model, fake_score_updates=2, joint=joint)
    networks = initial_networks(model, "fake_score", "generator", "teacher")
    frozen = {"teacher": networks["teacher"]}
    rates = {"fake_score": optimizer(1e-2, 9), "generator": optimizer(1e-2, 9)}
    none = {name: optimizer(0.0, 9) for name in rates}
    state = initial_state(objective, rates, 0, frozen)
    state = state._replace(networks={name: networks[name] for name in rates})
    same = lambda a, b: jax.tree.all(jax.tree.map(jnp.array_equal, a, b))
    step = lambda optimizers: jax.jit(train_step(objective, optimizers, 0))
    for moved in rates:
        updated, _ = step(none | {moved: rates[moved]})(state, frozen, BATCH)
        for name in rates:
            assert same(updated.networks[name], state.networks[name]) == (name != moved)
    # The generator is updated at every second step, the fake score at each.
    after, _ = step(rates)(state._replace(step=jnp.int32(1)), frozen, BATCH)
    assert same(after.networks["generator"], state.networks["generator"])
    assert not same(after.networks["fake_score"], state.networks["fake_score"])
    assert list(objective.players) == ["fake_score", "generator"]


def test_a_player_s_update_takes_nothing_from_the_other_s_loss():
    model = gaussian_denoiser(linear())
    objective = distribution_matching(model)
    networks = initial_networks(model, "fake_score", "generator", "teacher")
    frozen = {"teacher": networks["teacher"]}
    rates = {name: optimizer(1e-2, 9) for name in objective.players}
    state = initial_state(objective, rates, 0, frozen)
    state = state._replace(networks={name: networks[name] for name in rates})
    update = lambda objective: jax.jit(train_step(objective, rates, 0))(state, frozen, BATCH)[0]
    both = update(objective)
    for name, player in objective.players.items():
        doubled = player._replace(
            loss=lambda *a, loss=player.loss: jax.tree.map(lambda x: 2.0 * x, loss(*a))
        )
        changed = update(objective._replace(players={**objective.players, name: doubled}))
        for other in objective.players:
            same = jax.tree.map(
                jnp.array_equal,
                (both.networks[other], both.optimizers[other]),
                (changed.networks[other], changed.optimizers[other]),
            )
            # The fake score is updated first, and the generator sees its update.
            if other == "fake_score" or name == "generator":
                assert jax.tree.all(same) == (other != name)


@pytest.mark.in_turn("divergence", 3)
@pytest.mark.parametrize("divergence", [score_implicit_matching(), integral_kl()])
@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_both_players_learn_from_the_same_samples(micro_batches, joint, divergence):
    # Each update is the gradient of the whole loss, including the shared arrays.
    model = gaussian_denoiser(linear())
    objective = distribution_matching(
        model, divergence=divergence, joint=joint, regression_weight=0.25
    )
    networks = initial_networks(model, "fake_score", "generator", "teacher")
    eps, x_0 = jax.random.normal(KEY, (2, 8, 1))
    batch = {**BATCH, "pairs": {"eps": eps, "x_0": x_0, "label": BATCH["label"]}}
    frozen = {"teacher": networks["teacher"]}
    sgd = dict.fromkeys(objective.players, Optimizer(optax.sgd(0.1), lambda count: 0.1))
    state = initial_state(objective, sgd, 0, frozen)
    state = state._replace(networks={name: networks[name] for name in sgd})
    after, _ = jax.jit(train_step(objective, sgd, 0, micro_batches))(state, frozen, batch)
    key, before = jax.random.fold_in(jax.random.key(0), 0), dict(networks)
    for name in objective.players:
        keys = [named_key(key, stream) for stream in (name, "shared")]

        def mean_loss(params, name=name, keys=keys):
            total = 0.0
            for i in range(micro_batches):
                rows = jax.tree.map(itemgetter(slice(i, None, micro_batches)), batch)
                own = [jax.random.fold_in(k, i) for k in keys] if micro_batches > 1 else keys
                loss = player_loss(objective, name, networks, rows, *own, at=before)
                total += loss(params)[0].mean()
            return total / micro_batches

        grads = jax.jit(jax.grad(mean_loss))(networks[name])
        expected = jax.tree.map(lambda p, g: p - 0.1 * g, networks[name], grads)
        largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads))
        for a, b in zip(*map(jax.tree.leaves, (after.networks[name], expected)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * largest)
        networks[name] = after.networks[name]  # the generator sees the updated fake score


@pytest.mark.parametrize("divergence", [score_implicit_matching(), integral_kl()])
def test_joint_losses_are_the_separate_ones_at_the_same_points(divergence):
    model = small_model()
    networks = initial_networks(model, "fake_score", "generator", "teacher")
    # The joint losses keep a key for the dropout of the fake score.
    key_points, _ = jax.random.split(SHARE_KEY)
    shared = distribution_matching(model).share(networks, BATCH, key_points)
    t, eps, x_g = (shared[name] for name in ("t", "eps", "x_g"))
    x_t = model.path.interpolate(x_g, eps, t)

    def denoising(params):
        return (model.predict(params, x_t, t, t, BATCH) - (eps - x_g)) ** 2

    def of_player(name, joint, share_key):
        objective = distribution_matching(model, divergence=divergence, joint=joint)
        return lambda params: player_loss(objective, name, networks, share_key=share_key)(params)[0]

    joint = lambda name: of_player(name, True, SHARE_KEY)
    for name, found, expected in (
        ("generator", joint("generator"), of_player("generator", False, key_points)),
        ("fake_score", joint("fake_score"), lambda params: denoising(params).mean(1)),
    ):
        values = [
            (loss(networks[name]), jax.grad(lambda p, loss=loss: loss(p).mean())(networks[name]))
            for loss in (found, expected)
        ]
        for a, b in zip(*map(jax.tree.leaves, values), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_particles_are_drawn_all_at_once():
    held = particles((3,), 8)
    with pytest.raises(ValueError, match="4 rows for 8 particles"):
        held.generate(held.network.init(KEY), jnp.zeros((4, 3)), {"label": jnp.zeros(4)})


@pytest.mark.parametrize("method", METHODS)
def test_generator_rests_where_the_fake_score_is_the_teacher(method):
    model = gaussian_denoiser(linear())
    objective = distribution_matching(model, **METHODS[method])
    networks = initial_networks(model, "fake_score", "generator", "teacher")

    def gradient(networks):
        loss = player_loss(objective, "generator", networks)
        return jax.grad(lambda p: loss(p)[0].mean())(networks["generator"])

    moved = jax.tree.leaves(gradient(networks))
    still = jax.tree.leaves(gradient({**networks, "fake_score": networks["teacher"]}))
    largest = lambda leaves: max(float(jnp.abs(g).max()) for g in leaves)
    assert largest(still) < 1e-5 * largest(moved)  # rounding of two equal terms, or 0


def test_the_fake_score_is_trained_as_a_denoiser_of_the_generator_s_samples():
    # For a generator of fixed samples the loss is that of denoising these samples.
    model = small_model()
    held = particles((3,), 8)
    objective = distribution_matching(
        model, generator=held, fake_time_sampler=lambda k, n: 0.4 + jnp.zeros(n)
    )
    networks = initial_networks(model, "fake_score", "teacher")
    networks["generator"] = held.network.init(KEY)
    found, _ = player_loss(objective, "fake_score", networks)(networks["fake_score"])
    x_g = networks["generator"]["x"]
    eps = jax.random.normal(jax.random.split(KEY, 4)[1], x_g.shape)
    t = jnp.full(8, 0.4)
    velocity = model.predict(networks["fake_score"], 0.6 * x_g + 0.4 * eps, t, t, BATCH)
    np.testing.assert_allclose(found, ((velocity - (eps - x_g)) ** 2).mean(1), rtol=1e-4)
    # The labels are those of the samples; none is dropped.
    assert objective.init_from == {"fake_score": "teacher"}


@pytest.mark.parametrize("field", ["fake", "teacher", "null", "noise", "rho"])
@pytest.mark.parametrize("has_fake_score", [True, False])
def test_a_point_is_what_the_denoisers_say_and_guidance_the_teacher_s_alone(field, has_fake_score):
    model, held = small_model(), particles((3,), 8)
    shown = Divergence(
        lambda point: (getattr(point, field) + 0.0 * point.x_g).sum(1), has_fake_score
    )
    objective = distribution_matching(model, divergence=shown, generator=held, guidance_scale=3.0)
    assert ("fake_score" in objective.players) == has_fake_score
    networks = initial_networks(model, "teacher", *["fake_score"] * has_fake_score)
    networks["generator"] = held.network.init(KEY)
    found, _ = player_loss(objective, "generator", networks)(networks["generator"])
    _, key_t, key_eps, _ = jax.random.split(SHARE_KEY, 4)
    x_g, t = networks["generator"]["x"], log_normal_times(model.path)(key_t, 8)
    eps = jax.random.normal(key_eps, x_g.shape)
    x_t, rho = model.path.interpolate(x_g, eps, t), (t / (1.0 - t))[:, None]

    def denoised(name, label):
        return model.endpoints(networks[name], x_t, t, {"label": label}).x_0

    null = denoised("teacher", jnp.full(8, -1))
    expected = {
        "fake": denoised("fake_score", BATCH["label"]) if has_fake_score else x_g,
        "teacher": null + 3.0 * (denoised("teacher", BATCH["label"]) - null),
        "null": null,
        "noise": rho * eps,
        "rho": jnp.broadcast_to(rho, x_g.shape),
    }
    np.testing.assert_allclose(found, expected[field].sum(1), rtol=1e-3, atol=1e-5)


def test_regression_ties_the_generator_to_the_teacher_s_pairs():
    model = small_model()
    networks = initial_networks(model, "fake_score", "generator", "teacher")
    eps, x_0 = jax.random.normal(KEY, (2, 8, 3))
    label = (BATCH["label"] + 1) % 4
    batch = {**BATCH, "pairs": {"eps": eps, "x_0": x_0, "label": label}}
    rows = {}
    for weight in (0.0, 0.25):
        objective = distribution_matching(
            model, regression_weight=weight, regression_distance=norm()
        )
        assert objective.reads == ("labels", "pairs")[: 1 + (weight > 0.0)]
        loss = player_loss(objective, "generator", networks, batch)
        rows[weight], _ = loss(networks["generator"])
    x_g = one_step_generator(model).generate(networks["generator"], eps, {"label": label})
    apart = jnp.sqrt(((x_g - x_0) ** 2).sum(1))
    np.testing.assert_allclose(rows[0.25] - rows[0.0], 0.25 * apart, rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match="regression_weight=-1 must be 0 or more"):
        distribution_matching(model, regression_weight=-1.0)


def test_normalize_divides_rows_by_the_teacher_s_absolute_error_without_a_gradient():
    model = small_model()
    networks = initial_networks(model, "fake_score", "generator", "teacher")
    plain, scaled = (
        distribution_matching(model, divergence=integral_kl(), normalize=normalize)
        for normalize in (False, True)
    )

    def rows_and_gradient(objective, weights):
        loss = player_loss(objective, "generator", networks)
        rows, pullback = jax.vjp(lambda p: loss(p)[0], networks["generator"])
        return rows, *pullback(weights)

    @jax.jit
    def evaluate(weights):
        x_g, t, eps = itemgetter("x_g", "t", "eps")(plain.share(networks, BATCH, SHARE_KEY))
        x_t = model.path.interpolate(x_g, eps, t)
        teacher = model.endpoints(networks["teacher"], x_t, t, BATCH).x_0
        error = jnp.abs(x_g - teacher).mean(1)
        return error, rows_and_gradient(plain, weights / error), rows_and_gradient(scaled, weights)

    error, (rows, gradient), (divided, found) = evaluate(jnp.linspace(-1.0, 2.0, 8))
    np.testing.assert_allclose(rows / divided, error, rtol=1e-3)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), found, gradient)


@pytest.mark.parametrize("path", [linear(), vp_cosine(), trigflow(0.5)])
def test_the_one_step_generator_sees_noise_of_its_level_on_every_path(path):
    # On `ve` D(sigma eps, sigma); the same point elsewhere, by its equal sigma / alpha.
    seen = {}

    def model_on(path):
        model = gaussian_denoiser(path, 0.2, 0.7)

        def apply(params, x, t, s, condition, **mode):
            seen[path.name] = (x / path.alpha(t[0]), path.rho(t))
            return model.network.apply(params, x, t, s, condition, **mode)

        return model._replace(network=model.network._replace(apply=apply))

    eps = jax.random.normal(KEY, (5, 1))
    images = []
    for each in (ve(), path):
        model = model_on(each)
        params = model.network.init(KEY)
        images.append(one_step_generator(model, 2.5).generate(params, eps, {"label": jnp.zeros(5)}))
    np.testing.assert_allclose(seen[path.name][0], 2.5 * eps, rtol=1e-4)
    np.testing.assert_allclose(seen[path.name][1], 2.5, rtol=1e-4)
    np.testing.assert_allclose(*images, rtol=1e-3, atol=1e-4)


def test_health_of_an_exact_fake_score():
    # fake_error is at its minimum, but not for a fake score that lags, half way or at its start.
    model = gaussian_denoiser(linear())
    teacher, own, lags = (
        {"mean": jnp.float32(mean), "log_std": jnp.float32(log_std)}
        for mean, log_std in ((0.5, -0.5), (0.0, 0.2), (0.0, -0.3))
    )
    noise = jax.random.normal(jax.random.key(3), (100_000, 1))
    held = particles((1,), 100_000)
    objective = distribution_matching(model, generator=held)
    batch = {"label": jnp.zeros(100_000, jnp.int32)}

    def health(fake, teacher=teacher):
        networks = {
            "fake_score": fake,
            "teacher": teacher,
            "generator": {"x": jnp.exp(0.2) * noise},
        }
        _, metrics = player_loss(objective, "generator", networks, batch)(networks["generator"])
        return {name: float(m.total / m.count) for name, m in metrics.items()}

    # The fake score has the right deviation and half the mean, so y is half as long as it must be.
    aside = {"mean": jnp.float32(1.5), "log_std": jnp.float32(0.2)}
    half = {"mean": jnp.float32(0.75), "log_std": jnp.float32(0.2)}
    assert health(half, aside)["fake_lag"] == pytest.approx(1.0, abs=0.05)
    exact, lagging, still = health(own), health(lags), health(teacher)
    assert abs(exact["fake_lag"]) < 0.02
    assert abs(exact["fake_excess"]) < 0.04 * exact["fake_error"]
    for late in (lagging, still):
        assert abs(late["fake_excess"]) > 0.1 * late["fake_error"]
    assert exact["sample_std"] == pytest.approx(np.exp(0.2), rel=0.01)
    assert abs(exact["sample_mean"]) < 0.02
    assert exact["gap"] == pytest.approx(exact["teacher_error"] - exact["fake_error"], rel=0.02)


@pytest.mark.parametrize("kind", ["eps", "score"])
def test_a_generator_whose_prediction_says_too_little_at_its_level_is_refused(kind):
    """On a variance-preserving path alpha is 1 / sqrt(1 + rho^2)."""
    words = f"prediction.kind={kind} says too little .* objective.sigma_init=30, where .* is 0.033;"
    with pytest.raises(ValueError, match=words):
        distribution_matching(small_model(vp_ddpm(), kind), sigma_init=30.0)
    one_step_generator(small_model(vp_ddpm(), kind), 19.0)
    one_step_generator(small_model(vp_ddpm(), "v"), 30.0)
    with pytest.raises(ValueError, match="sigma_init=21, where alpha is 0.048"):
        one_step_generator(small_model(vp_ddpm(), kind), 21.0)


def test_sampling_in_more_than_one_step_or_at_another_scale_is_an_error():
    model = small_model()
    objective = distribution_matching(model, guidance_scale=2.0)
    params, eps = model.network.init(KEY), jnp.ones((8, 3))
    assert objective.guidance_scale == 2.0
    assert objective.sample(params, eps, BATCH, KEY, steps=1, guidance_scale=2.0).shape == (8, 3)
    with pytest.raises(ValueError, match="samples in 1 step, not in 4"):
        objective.sample(params, eps, BATCH, KEY, steps=4, guidance_scale=2.0)
    with pytest.raises(ValueError, match="trained at guidance scale 2 only, not 1"):
        objective.sample(params, eps, BATCH, KEY, steps=1, guidance_scale=1.0)


def test_bad_fields_are_errors():
    with pytest.raises(ValueError, match="guidance_scale=1 is too low for noise-free"):
        distribution_matching(small_model(), divergence=noise_free_score_distillation())
    for sigma_init in (0.0, -1.0, 100.0):
        with pytest.raises(ValueError, match=r"sigma_init=.* is outside path.name=ve"):
            distribution_matching(small_model(ve(), "F"), sigma_init=sigma_init)
    with pytest.raises(ValueError, match=r"joint .* set objective.fake_time_sampler.name=''"):
        sampler = log_normal_times(linear())
        distribution_matching(small_model(), joint=True, fake_time_sampler=sampler)
    with pytest.raises(ValueError, match="joint=True needs a divergence with a fake score"):
        distribution_matching(small_model(), joint=True, divergence=score_distillation())
    with pytest.raises(ValueError, match="fake_score_updates=0 must be 1 or more"):
        distribution_matching(small_model(), fake_score_updates=0)
    with pytest.raises(
        ValueError, match="fake_score_updates=2 needs a divergence with a fake score"
    ):
        distribution_matching(small_model(), divergence=score_distillation(), fake_score_updates=2)
