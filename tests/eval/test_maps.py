"""Maps of exact networks on Gaussian data, for which every number is known."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from fewstep.data import proportional_labels
from fewstep.diffusion.path import PATHS
from fewstep.diffusion.time_pairs import constant
from fewstep.eval.maps import (
    END,
    LEVELS,
    MADE,
    agreement,
    guided,
    map_numbers,
    map_rows,
    mapper,
    straightness,
)
from fewstep.objectives.consistency_training import consistency_training
from fewstep.objectives.denoising import denoising
from fewstep.objectives.mean_flow import mean_flow
from fewstep.objectives.shortcut import shortcut
from fewstep.training.generate import initial_noise
from tests.gaussian import Gaussian
from tests.networks import (
    affine_network,
    exact_consistency,
    exact_denoiser,
    exact_network,
    unscaled_model,
)

MEAN, STD = jnp.array([0.3, -0.7]), jnp.array([0.5, 1.3])
GAUSSIAN = Gaussian(MEAN, STD**2)
PATH = PATHS["linear"]()
ROWS, LABELS = np.arange(64), np.full(64, -1, np.int32)
EPS = np.asarray(initial_noise(3, ROWS, (2,))[0])
NO_OFFSET = {"offset": 0.0}  # parameters of an exact network
LEVEL = np.linspace(1.0, 0.0, LEVELS + 1)[:-1]


def flow_map_model(**second):
    """The model of the exact average velocity."""
    u = lambda x, t, s, condition: GAUSSIAN.average_velocity(PATH, x, t, s)
    return unscaled_model(exact_network(u)._replace(**second), PATH, "velocity")


def measured(model, objective, teacher_path=PATH):
    """(numbers, rows) of a network beside the exact denoiser on a path."""
    taught = exact_denoiser(GAUSSIAN, teacher_path)
    runs = [
        SimpleNamespace(model=model, objective=objective),
        SimpleNamespace(model=taught, objective=denoising(taught)),
    ]
    make = partial(map_rows, *(mapper(run, 1, 1.0) for run in runs), (2,), 3)
    rows = jax.device_get(jax.jit(make)((NO_OFFSET, NO_OFFSET), ROWS, LABELS))
    return map_numbers(rows, LABELS), rows


STUDENTS = {
    "ct": lambda: (
        model := exact_consistency(GAUSSIAN, PATH),
        consistency_training(model, curriculum=constant(18)),
    ),
    "mean_flow": lambda: (
        model := flow_map_model(second_time="interval"),
        mean_flow(model),
    ),
    "shortcut": lambda: (
        model := flow_map_model(second_time="step_size"),
        shortcut(model, max_steps=16),
    ),
}


@pytest.mark.parametrize("name", STUDENTS)
def test_the_exact_flow_map_sends_each_trajectory_to_its_end(name):
    numbers, rows = measured(*STUDENTS[name]())
    np.testing.assert_allclose(rows[END], MEAN + STD * EPS, atol=2e-3)
    assert max(numbers["error"]) < 3e-3 and max(numbers["spread"]) < 3e-3
    assert numbers["agreement"] == pytest.approx(1.0, abs=1e-4)
    cost = float(((MEAN + (STD - 1.0) * EPS) ** 2).mean())
    assert numbers["transport"] == pytest.approx(cost, rel=2e-3)
    assert numbers["transport"] == pytest.approx(numbers["teacher_transport"], rel=1e-2)


@pytest.mark.parametrize("name", ["trigflow", "ve"])
def test_a_student_is_asked_on_its_own_path(name):
    """On a trajectory of a teacher of another one."""
    numbers, _ = measured(*STUDENTS["ct"](), PATHS[name]())
    assert max(numbers["error"]) < 1e-2


def test_a_shortcut_network_is_asked_for_trained_jumps_alone():
    # Between them it knows nothing: the exact answer is spoiled for every other jump.
    def u(x, t, s, condition):
        size = t - s
        trained = (size > 0) & (jnp.log2(size) % 1 == 0) & (t / size % 1 == 0)
        wrong = jnp.where(trained, 0.0, 10.0)[:, None]
        return GAUSSIAN.average_velocity(PATH, x, t, s) + jnp.nan_to_num(wrong, nan=10.0)

    network = exact_network(u)._replace(second_time="step_size")
    model = unscaled_model(network, PATH, "velocity")
    numbers, _ = measured(model, shortcut(model, max_steps=16))
    assert max(numbers["error"]) < 3e-3


def test_a_denoiser_predicts_the_conditional_mean():
    model = exact_denoiser(GAUSSIAN, PATH)
    numbers, rows = measured(model, denoising(model))
    # E[x_0 | x_tau] - x_0 on the trajectory of eps: (alpha s^2 / sqrt(C) - s) eps.
    alpha, variance = 1.0 - LEVEL[:, None], (1.0 - LEVEL[:, None]) ** 2 * STD**2
    root = np.sqrt(variance + LEVEL[:, None] ** 2)
    exact = (alpha * STD**2 / root - STD)[:, None] * EPS
    np.testing.assert_allclose(numbers["error"], np.sqrt((exact**2).mean((1, 2))), rtol=5e-3)
    spread = exact - exact.mean(0)
    np.testing.assert_allclose(numbers["spread"], np.sqrt((spread**2).mean((1, 2))), rtol=5e-3)
    np.testing.assert_allclose(rows[MADE], jnp.broadcast_to(MEAN, EPS.shape), atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "ve"])
def test_straightness_is_the_integral_of_the_bend(name):
    path = PATHS[name]()
    model = exact_denoiser(GAUSSIAN, path, "F" if name == "ve" else "velocity")
    numbers, _ = measured(model, denoising(model), path)

    def spread(tau, std):
        return np.sqrt((1.0 - tau) ** 2 * std**2 + tau**2)

    def rate(tau, std):
        return (tau - (1.0 - tau) * std**2) / spread(tau, std)

    last = 1.0 / (1.0 + 1.0 / float(path.rho(jnp.float32(path.t_max))))  # where the path starts
    bends = []
    for std in map(float, STD):
        mean = (spread(last, std) - spread(0.0, std)) / last
        bends.append(quad(lambda t, s=std, m=mean: (rate(t, s) - m) ** 2, 0.0, last)[0] / last)
    exact = float((np.array(bends) * (EPS**2).mean(0)).mean())
    assert numbers["straightness"] == pytest.approx(exact, rel=0.01)
    assert numbers["teacher_straightness"] == pytest.approx(numbers["straightness"], rel=1e-3)


def test_uneven_times_and_repeated_ones_do_not_bend_a_path():
    """`ve` starts below infinite noise, so that its first levels are one."""
    t = jnp.array([0.9, 0.9, 0.7, 0.4, 0.0])[:, None]
    line = 2.0 + 3.0 * t[..., None]
    np.testing.assert_allclose(straightness(line, t), 0.0, atol=1e-10)
    # Velocities 1 and 3 on halves of the time: they are 1 from their mean.
    kink = jnp.array([0.0, -1.0, -4.0])[:, None, None]
    np.testing.assert_allclose(straightness(kink, jnp.array([[2.0], [1.0], [0.0]])), 1.0)
    np.testing.assert_allclose(straightness(kink, jnp.array([[8.0], [7.0], [6.0]])), 1.0)


def test_a_denoiser_guides_as_many_channels_as_in_its_samples():
    model = unscaled_model(affine_network(), PATH, "velocity")
    run = SimpleNamespace(model=model, objective=denoising(model))
    params, t = model.network.init(jax.random.key(0)), jnp.full(3, 0.5)
    predict = [guided(run, params, scale, 1) for scale in (1.0, 3.0)]
    plain, found = (each(jnp.ones((3, 2)), t, t, {"label": jnp.zeros(3, int)}) for each in predict)
    np.testing.assert_array_equal(found[:, 1], plain[:, 1])
    assert np.abs(found - plain)[:, 0].min() > 0.1


def test_agreement_is_one_for_equal_maps_and_zero_for_independent_ones():
    one, other = np.random.default_rng(0).standard_normal((2, 20_000, 2))
    none = np.full(20_000, -1)
    assert agreement(one, one, none) == 1.0
    assert agreement(one, other, none) == pytest.approx(0.0, abs=0.02)
    # Half of the variance is shared.
    assert agreement(one, (one + other) / 2**0.5, none) == pytest.approx(0.5**0.5, abs=0.02)


def test_maps_that_share_only_the_label_do_not_agree():
    labels = proportional_labels((1, 1, 1), 20_001)
    noise = np.random.default_rng(0).standard_normal((2, 20_001, 2))
    one, other = 2.0 * labels[:, None] + noise
    assert agreement(one, one, labels) == 1.0
    assert agreement(one, other, labels) == pytest.approx(0.0, abs=0.02)
