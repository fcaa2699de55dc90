"""Moment matching against closed forms: the posterior, the fake score, and the match."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.diffusion.path import PATHS
from fewstep.diffusion.prediction import KINDS, Endpoints, coefficients
from fewstep.diffusion.spacing import quadratic_spacing, uniform_spacing
from fewstep.objectives.base import SHARED
from fewstep.objectives.moment_matching import moment_matching, posterior_noise
from fewstep.samplers.grids import StepsError, time_grid
from fewstep.samplers.sde import added_noise, ancestral
from tests.gaussian import Gaussian
from tests.networks import affine_network, build_model, exact_network, unscaled_model

KEY = jax.random.key(0)
DATA = Gaussian(jnp.array([0.3, -0.7]), jnp.array([0.25, 1.7]))
MADE = Gaussian(jnp.array([0.6, -0.2]), jnp.array([0.4, 0.9]))
PATH = PATHS["linear"]()
NETWORK = affine_network()._replace(shape=(2,))


def mixed_model(path, kind):
    """params["share"] of E[x_g | z_s], the rest E[x_0 | z_s], plus an offset, in the prediction."""

    def encoded(x, t, data):
        e = Endpoints(data.x_0(path, x, t), data.eps(path, x, t))
        return KINDS[kind].encode(e, x, coefficients(path, t, x))

    def apply(params, x, t, s, condition, *, train=False, rng=None):
        share = params["share"]
        mean = share * encoded(x, t, MADE) + (1.0 - share) * encoded(x, t, DATA)
        return mean + params["offset"]

    network = exact_network(lambda *inputs: 0.0)._replace(apply=apply, shape=(2,))
    return unscaled_model(network, path, kind)


def mixed(share, offset=0.0):
    return {"share": jnp.asarray(share), "offset": jnp.asarray(offset)}


def shared_points(data, count, path, seed=3):
    """Samples of a generator at its best noise, which is independent."""
    keys = jax.random.split(jax.random.key(seed), 3)
    u = jax.random.uniform(keys[0], (count,), minval=0.05, maxval=0.95)
    t = path.t_min + u * (path.t_max - path.t_min)
    return {
        "x_g": data.sample(keys[1], count),
        "t": t,
        "eps": jax.random.normal(keys[2], (count, 2)),
    }


@pytest.mark.parametrize("name", PATHS)
def test_a_point_is_drawn_from_the_posterior_of_ddpm(name):
    path = PATHS[name]()
    keys = jax.random.split(KEY, 3)
    x_0, eps, noise = (jax.random.normal(key, (64, 2)) for key in keys)
    fraction = jnp.linspace(0.05, 0.9, 64)
    with jax.enable_x64(True):
        s, t = (path.t_min + u * (path.t_max - path.t_min) for u in (0.7 * fraction, fraction))
        z_t = path.interpolate(x_0, eps, t)
        found = path.interpolate(x_0, posterior_noise(path, eps, noise, t, s), s)
        a, b = (u[:, None] for u in added_noise(path, t, s))
        share = ((path.sigma(s) / path.sigma(t)) ** 2)[:, None]
        mean = a * share * z_t + (path.alpha(s) / path.sigma(t) ** 2)[:, None] * b**2 * x_0
        np.testing.assert_allclose(found, mean + b * jnp.sqrt(share) * noise, atol=1e-5)
    # At pure noise nothing of z_t is left.
    pure = posterior_noise(PATHS["linear"](), eps, noise, jnp.ones(64), jnp.full(64, 0.5))
    np.testing.assert_array_equal(pure, noise)


@pytest.mark.parametrize(
    ("name", "kind"), [("linear", "velocity"), ("ve", "F"), ("vp_cosine", "v")]
)
def test_the_fake_score_learns_the_mean_of_the_student_s_and_the_teacher_s(name, kind):
    path, count = PATHS[name](), 2**15
    model = mixed_model(path, kind)
    objective = moment_matching(model)
    batch = {"label": jnp.zeros(count, int), SHARED: shared_points(MADE, count, path)}
    given = {"teacher": mixed(0.0)}, batch, KEY, 0

    def loss(params):
        rows, metrics = objective.players["fake_score"].loss(params, *given)
        return rows.mean(), metrics["teacher_gap"].total

    slope = jax.jit(jax.grad(loss, has_aux=True))
    found = (slope(mixed(share)) for share in (0.5, 0.0, 1.0))
    (best, middle), (teacher, none), (student, whole) = found
    assert abs(best["share"]) < 0.05 * abs(teacher["share"]) and abs(best["offset"]) < 0.05
    # The loss is a parabola in the share.
    assert float(student["share"]) == pytest.approx(-float(teacher["share"]), rel=0.1)
    assert none == 0.0 and float(whole) == pytest.approx(4.0 * float(middle), rel=1e-3)


def test_a_student_that_matches_has_no_gradient_and_another_is_led_to_the_data():
    count = 2**14
    model = mixed_model(PATH, "velocity")
    objective = moment_matching(model)
    networks = {"teacher": mixed(0.0), "fake_score": mixed(0.5)}
    points = shared_points(MADE, count, PATH)

    def gradient(networks):
        def loss(x_g):
            batch = {"label": jnp.zeros(count, int), SHARED: {**points, "x_g": x_g}}
            return objective.players["network"].loss(mixed(0.0), networks, batch, KEY, 0)[0].sum()

        return jax.grad(loss)(points["x_g"])

    assert np.abs(gradient({**networks, "fake_score": mixed(0.0)})).max() == 0.0
    z_s = PATH.interpolate(points["x_g"], points["eps"], points["t"])
    fake, teacher = (data.x_0(PATH, z_s, points["t"]) for data in (MADE, DATA))
    # Half of the difference of the means, whose direction is that of Diff-Instruct.
    np.testing.assert_allclose(gradient(networks), 0.5 * (fake - teacher), rtol=1e-3, atol=1e-4)
    step = gradient(networks).mean(axis=0) * (MADE.mean - DATA.mean)
    assert (step > 0.0).all()


@pytest.mark.parametrize(("share", "lag"), [(0.5, 0.0), (1.0, -0.5)])
def test_health_is_that_of_the_mean_which_the_fake_score_implies(share, lag):
    """It is exact at the minimum of L_F. A fake score that is the student's own mean is too far."""
    count = 2**15
    networks = {"teacher": mixed(0.0), "fake_score": mixed(share)}
    batch = {"label": jnp.zeros(count, int), SHARED: shared_points(MADE, count, PATH)}
    loss = moment_matching(mixed_model(PATH, "velocity")).players["network"].loss
    _, metrics = loss(mixed(0.0), networks, batch, KEY, 0)
    found = {name: float(m.total / m.count) for name, m in metrics.items()}
    assert found["fake_lag"] == pytest.approx(lag, abs=0.03)
    assert (abs(found["fake_excess"]) < 0.04 * found["fake_error"]) == (share == 0.5)


@pytest.mark.parametrize("least_steps", [1, 4])
def test_points_are_noised_data_and_steps_are_at_most_one_over_k(least_steps):
    """A student that knows the data: every z_s is distributed as noised data."""
    seen, count = [], 4096
    x_0 = DATA.sample(jax.random.key(4), count)

    def apply(params, x, t, s, condition, *, train=False, rng=None):
        jax.debug.callback(lambda t: seen.append(np.asarray(t)), t)
        return (x - x_0) / t[:, None]  # the velocity to the row's own data

    model, spacing = build_model(NETWORK._replace(apply=apply), PATH), quadratic_spacing(PATH)
    objective = moment_matching(model, least_steps=least_steps, spacing=spacing)
    batch = {"x": x_0, "label": jnp.zeros(count, int)}
    shared = objective.share({"network": NETWORK.init(KEY)}, batch, KEY)
    jax.effects_barrier()
    (time,) = seen
    t, s = (np.asarray(spacing.fraction(own)) for own in (time, shared["t"]))
    assert (t > s).all() and (t - s <= 1.0 / least_steps + 1e-6).all() and t.max() == 1.0
    assert s.min() < 0.01 and s.max() > 0.99 and s.mean() == pytest.approx(0.5, abs=0.02)
    # Gaps below 1 - s are g in (0, 1 / k] with a density in proportion to 1 - g.
    gap, k = (t - s)[t < 1.0], least_steps
    assert gap.min() < 0.01 and gap.max() > 0.9 / k
    assert gap.mean() == pytest.approx((3 * k - 2) / (3 * k * (2 * k - 1)), rel=0.04)
    np.testing.assert_allclose(shared["x_g"], x_0, atol=1e-4)
    noise = np.asarray(shared["eps"])
    np.testing.assert_allclose(noise.mean(axis=0), 0.0, atol=0.06)
    np.testing.assert_allclose(noise.std(axis=0), 1.0, atol=0.05)
    assert np.abs(np.corrcoef(noise[:, 0], x_0[:, 0])[0, 1]) < 0.06


def test_it_samples_by_ancestral_steps_and_not_in_fewer_than_it_was_trained_for():
    path, params = PATHS["trigflow"](), NETWORK.init(KEY)
    model = build_model(NETWORK, path)
    objective = moment_matching(model, least_steps=3)
    assert objective.init_from == {"fake_score": "teacher", "network": "teacher"}
    eps, label = jax.random.normal(KEY, (5, 2)), {"label": jnp.arange(5) % 3}
    given = params, eps, label, jax.random.split(KEY, 5)
    made = objective.sample(*given, steps=4, guidance_scale=1.0)
    denoise = lambda x, t: model.endpoints(params, x, t, label)
    grid, start = time_grid(uniform_spacing(path), 4), path.prior(eps)
    np.testing.assert_allclose(made, ancestral()(denoise, path, start, grid, given[3]), rtol=1e-5)
    with pytest.raises(StepsError, match="trained for 3 steps or more"):
        objective.sample(*given, steps=2, guidance_scale=1.0)


def test_what_it_cannot_train_is_refused():
    with pytest.raises(ValueError, match="prediction.kind=eps says too little about the data"):
        moment_matching(build_model(NETWORK, PATHS["vp_cosine"](), "eps"))
    with pytest.raises(ValueError, match="least_steps=0 must be 1 or more"):
        moment_matching(build_model(NETWORK, PATH), least_steps=0)
