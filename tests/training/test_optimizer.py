import jax.numpy as jnp
import numpy as np
import pytest

from training.optimizer import SCHEDULES, optimizer

FIELDS = {
    "name": "adamw",
    "learning_rate": 0.1,
    "schedule": "constant",
    "warmup_steps": 0,
    "b1": 0.9,
    "b2": 0.99,
    "eps": 1e-8,
    "weight_decay": 0.0,
    "clip_norm": 0.0,
    "updates": 100,
}


def test_schedules():
    def rates(**fields):
        schedule = optimizer(**{**FIELDS, **fields}).learning_rate
        return [float(schedule(n)) for n in (0, 5, 10, 55, 100)]

    np.testing.assert_allclose(rates(), 0.1)
    np.testing.assert_allclose(rates(warmup_steps=10), [0, 0.05, 0.1, 0.1, 0.1], atol=1e-7)
    np.testing.assert_allclose(
        rates(warmup_steps=10, schedule="cosine"), [0, 0.05, 0.1, 0.05, 0], atol=1e-7
    )
    np.testing.assert_allclose(
        rates(warmup_steps=10, schedule="linear"), [0, 0.05, 0.1, 0.05, 0], atol=1e-7
    )


def one_update(gradient, **fields):
    transform = optimizer(**{**FIELDS, **fields}).transform
    params = {"w": jnp.array([2.0, -1.0])}
    return transform.update({"w": gradient}, transform.init(params), params)[0]["w"]


def test_adamw_s_first_update_in_numpy():
    # Bias correction makes the first update the sign of the gradient; decay is decoupled.
    gradient = jnp.array([0.3, -4.0])
    np.testing.assert_allclose(one_update(gradient), [-0.1, 0.1], rtol=1e-5)
    decayed = one_update(gradient, weight_decay=0.5)
    np.testing.assert_allclose(decayed, [-0.1 - 0.1 * 0.5 * 2.0, 0.1 + 0.1 * 0.5], rtol=1e-5)


def test_gradients_are_clipped_by_their_global_norm():
    # RAdam's first updates are plain momentum, so the size of the gradient shows.
    gradient = jnp.array([3.0, 4.0])
    clipped = one_update(gradient, name="radam", clip_norm=1.0)
    np.testing.assert_allclose(clipped, one_update(gradient / 5.0, name="radam"), rtol=1e-5)
    assert np.abs(one_update(gradient, name="radam") - clipped).max() > 0.1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "adam", "weight_decay": 0.1}, "optimizer.weight_decay"),
        ({"warmup_steps": 100}, "optimizer.warmup_steps"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        optimizer(**{**FIELDS, **fields})


@pytest.mark.parametrize(
    ("allowed", "refused", "message"),
    [
        ({"warmup_steps": 99}, {"warmup_steps": 100}, "must be below the run's 100 updates"),
        (
            {"warmup_steps": 1, "updates": 2},
            {"warmup_steps": 1, "updates": 1},
            "must be below the run's 1 updates",
        ),
        ({"spike_factor": 0.0}, {"spike_factor": -1e-3}, "spike_factor >= 0"),
        ({"spike_window": 2}, {"spike_window": 1}, "spike_window >= 2"),
        ({"spike_cap": 0}, {"spike_cap": -1}, "spike_cap >= 0"),
        ({"name": "adam"}, {"name": "adam", "weight_decay": 1e-9}, "use optimizer.name=adamw"),
    ],
)
def test_fields_have_edges(allowed, refused, message):
    optimizer(**{**FIELDS, **allowed})
    with pytest.raises(ValueError, match=message):
        optimizer(**{**FIELDS, **refused})


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_of_no_update_has_a_rate(schedule):
    rate = optimizer(**{**FIELDS, "schedule": schedule, "updates": 0}).learning_rate
    assert float(rate(0)) == pytest.approx(0.1)


def test_spikes_are_skipped_only_when_asked():
    assert optimizer(**FIELDS)[2:] == (0.0, 10)
    state = optimizer(**FIELDS, spike_factor=6.0).transform.init({"w": jnp.ones(3)})
    assert state.losses.shape == (128,)


def test_moments_and_epsilon_are_the_fields():
    # Two updates of Adam in NumPy, with a gradient that epsilon and both decays move.
    gradients, fields = (2e-4, -1e-4), {"b1": 0.5, "b2": 0.75, "eps": 1e-4}
    transform = optimizer(**{**FIELDS, **fields}).transform
    params, m, v = {"w": jnp.zeros(1)}, 0.0, 0.0
    state = transform.init(params)
    for count, g in enumerate(gradients, start=1):
        update, state = transform.update({"w": jnp.array([g])}, state, params)
        m, v = 0.5 * m + 0.5 * g, 0.75 * v + 0.25 * g**2
        expected = -0.1 * (m / (1 - 0.5**count)) / (np.sqrt(v / (1 - 0.75**count)) + 1e-4)
        np.testing.assert_allclose(update["w"], expected, rtol=1e-5)
