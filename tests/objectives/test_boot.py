"""BOOT against closed forms on Gaussian data: the Signal-ODE, its boundary, and its target."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.diffusion.path import PATHS, align
from fewstep.diffusion.prediction import KINDS, Endpoints, coefficients
from fewstep.diffusion.spacing import SPACINGS
from fewstep.models.network import Network
from fewstep.objectives.boot import boot, signal
from fewstep.samplers.grids import StepsError
from tests.gaussian import Gaussian
from tests.networks import affine_network, build_model, unscaled_model

KEY = jax.random.key(0)
DATA = Gaussian(jnp.array([0.3, -0.7]), jnp.array([0.25, 1.7]))
COUNT = 128
TIMED = affine_network()._replace(second_time="time", shape=(2,))
CASES = [("linear", "velocity"), ("vp_cosine", "v"), ("trigflow", "F"), ("ve", "F")]
BATCH = {"label": jnp.arange(COUNT) % 3}


def exact_signal(data, path, eps, t):
    """y_t of the trajectory of the data that begins with the prediction at sigma_T eps."""
    end = jnp.full_like(t, path.t_max)
    y_end = data.x_0(path, path.prior(eps), end)
    x_t = data.flow_map(path, path.interpolate(y_end, eps, end), end, t)
    c = coefficients(path, t, eps)
    at_end = align(t == end, eps)
    return jnp.where(at_end, y_end, (x_t - c.sigma * eps) / jnp.where(at_end, 1.0, c.alpha))


def exact_model(data, path, kind):
    """params["teacher"] chooses between E[x_0 | x_t] and the exact signal at the second time."""

    def apply(params, x, t, s, condition, *, train=False, rng=None):
        y = exact_signal(data, path, x / path.sigma(jnp.float32(path.t_max)), s)
        x_0 = jnp.where(params["teacher"] > 0, data.x_0(path, x, t), y) + params["offset"]
        c = coefficients(path, t, x)
        return KINDS[kind].encode(Endpoints(x_0, (x - c.alpha * x_0) / c.sigma), x, c)

    init = lambda key: {"teacher": jnp.zeros(()), "offset": jnp.zeros(())}
    return unscaled_model(Network(init, apply, "time", shape=(2,)), path, kind)


def exact(teacher=0.0, offset=0.0):
    return {"teacher": jnp.asarray(teacher), "offset": jnp.asarray(offset)}


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_exact_signal_has_no_loss_but_the_error_of_the_step(name, kind):
    path = PATHS[name]()
    with jax.enable_x64(True):
        model, found = exact_model(DATA, path, kind), {}
        spacing = SPACINGS["karras" if name == "ve" else "uniform"](path)
        for gap in (0.04, 0.02):
            loss = boot(model, gap=gap, spacing=spacing).players["network"].loss
            _, metrics = loss(exact(), {"teacher": exact(1.0)}, BATCH, KEY, 0)
            found[gap] = float(metrics["loss_step"].total) / COUNT
            assert float(metrics["loss_boundary"].total) < 1e-9
        # A step of DDIM has an error of second order in the gap.
        assert 0.0 < found[0.02] < 0.3 * found[0.04] < 0.02
        # The boundary condition sees a network that is off everywhere, as the steps do not.
        loss = boot(model, gap=0.02, boundary_weight=0.5).players["network"].loss
        rows, metrics = loss(exact(0.0, 0.2), {"teacher": exact(1.0)}, BATCH, KEY, 0)
        boundary = float(metrics["loss_boundary"].total) / COUNT
        assert boundary == pytest.approx(0.04, rel=1e-4)
        step = float(metrics["loss_step"].total) / COUNT
        np.testing.assert_allclose(float(rows.mean()), step + 0.5 * boundary, rtol=1e-5)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_for_a_single_image_every_signal_is_that_image(name, kind):
    path = PATHS[name]()
    image = Gaussian(jnp.array([0.4, -0.1]), jnp.zeros(2))
    with jax.enable_x64(True):
        model = exact_model(image, path, kind)
        eps = jax.random.normal(KEY, (COUNT, 2))
        y = exact_signal(image, path, eps, jnp.full(COUNT, 0.5 * path.t_max))
        np.testing.assert_allclose(y, jnp.tile(image.mean, (COUNT, 1)), atol=1e-5)
        given = exact(), {"teacher": exact(1.0)}, BATCH, KEY, 0
        assert float(boot(model, gap=0.3).players["network"].loss(*given)[0].max()) < 1e-6


def draw(key, gap, path):
    """t, s and eps as the loss draws them, for a path whose time is its fraction."""
    key_t, key_eps, *_ = jax.random.split(key, 4)
    t = jax.random.uniform(key_t, (COUNT,), minval=gap)
    return t, t - gap, jax.random.normal(key_eps, (COUNT, 2))


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_the_target_is_the_paper_s_and_carries_no_gradient(guidance):
    path, gap = PATHS["linear"](), 0.1
    model, params = build_model(TIMED, path), TIMED.init(KEY)
    teacher = jax.tree.map(lambda p: 0.5 - p, params)
    objective = boot(model, gap=gap, boundary_weight=0.0, guidance_scale=guidance)
    t, s, eps = draw(KEY, gap, path)

    def predicted(x, label):
        return x - t[:, None] * model.predict(teacher, x, t, t, {"label": label})

    y_t = signal(model, partial(model.predict, params), eps, t, BATCH)
    x_t = path.interpolate(y_t, eps, t)
    null = predicted(x_t, jnp.full(COUNT, -1))
    x_0 = null + guidance * (predicted(x_t, BATCH["label"]) - null)
    share = 1.0 - (s / (1.0 - s)) / (t / (1.0 - t))
    target = jax.lax.stop_gradient(y_t + share[:, None] * (x_0 - y_t))

    def expected(p):
        y_s = signal(model, partial(model.predict, p), eps, s, BATCH)
        return ((y_s - target) ** 2).mean(axis=1).mean()

    def found(p):
        return objective.players["network"].loss(p, {"teacher": teacher}, BATCH, KEY, 0)[0].mean()

    close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
    jax.tree.map(close, jax.value_and_grad(found)(params), jax.value_and_grad(expected)(params))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_copy_of_the_teacher_that_ignores_the_second_time_meets_the_boundary(name, kind):
    path = PATHS[name]()
    plain = lambda p, x, t, s, c, **mode: affine_network().apply(p, x, t, t, c)
    model = build_model(TIMED._replace(apply=plain), path, kind)
    params = TIMED.init(KEY)
    _, metrics = boot(model).players["network"].loss(params, {"teacher": params}, BATCH, KEY, 0)
    assert float(metrics["loss_boundary"].total) < 1e-8 < float(metrics["loss_step"].total)


def test_it_samples_the_signal_at_the_data_in_one_step():
    path = PATHS["vp_cosine"]()
    model = exact_model(DATA, path, "v")
    objective = boot(model)
    eps = jax.random.normal(KEY, (COUNT, 2))
    given = exact(), eps, BATCH, None
    made = objective.sample(*given, steps=1, guidance_scale=1.0)
    end = jnp.full(COUNT, path.t_max)
    expected = DATA.flow_map(path, path.prior(eps), end, jnp.zeros(COUNT))
    np.testing.assert_allclose(made, expected, atol=1e-5)
    with pytest.raises(StepsError, match="samples in 1 step, not in 2"):
        objective.sample(*given, steps=2, guidance_scale=1.0)


def test_what_it_cannot_train_is_refused():
    # alpha is 0 at the noise end: a prediction of the noise says nothing about the data there.
    with pytest.raises(ValueError, match="prediction.kind=eps says too little about the data"):
        boot(build_model(TIMED, PATHS["vp_cosine"](), "eps"))
    for fields in ({"gap": 0.0}, {"gap": 1.0}, {"boundary_weight": -1.0}):
        with pytest.raises(ValueError, match="gap between 0 and 1 and boundary_weight of 0"):
            boot(build_model(TIMED, PATHS["linear"]()), **fields)
