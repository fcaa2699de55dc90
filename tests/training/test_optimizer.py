import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fewstep.training.experiment import build
from fewstep.training.optimizer import (
    OPTIMIZERS,
    SCHEDULES,
    Continuation,
    build_optimizer,
    restart_optimizer,
)
from fewstep.training.trees import leaves_by_path
from tests.training.runs import small_config
from tests.unets import small_unet

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
        schedule = build_optimizer(**{**FIELDS, **fields}).learning_rate
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
    transform = build_optimizer(**{**FIELDS, **fields}).transform
    params = {"w": jnp.array([2.0, -1.0])}
    return transform.update({"w": gradient}, transform.init(params), params)[0]["w"]


def test_adamw_s_first_update_in_numpy():
    # Bias correction makes the first update the sign of the gradient; decay is decoupled.
    gradient = jnp.array([0.3, -4.0])
    np.testing.assert_allclose(one_update(gradient), [-0.1, 0.1], rtol=1e-5)
    decayed = one_update(gradient, weight_decay=0.5)
    np.testing.assert_allclose(decayed, [-0.1 - 0.1 * 0.5 * 2.0, 0.1 + 0.1 * 0.5], rtol=1e-5)


@pytest.mark.parametrize("fields", [{}, {"heads": {"judge": {"weight_decay": 0.3}}}])
def test_frequencies_without_a_gradient_stay_and_the_state_is_that_of_optax(fields):
    network, params, _ = small_unet("song_unet", "ncsnpp")
    params = {**params, "judge": {"kernel": jnp.ones(2)}}
    fields = FIELDS | {"weight_decay": 0.5} | fields
    transform = build_optimizer(**fields).transform
    state = transform.init(params)
    if "heads" not in fields:
        theirs = optax.adamw(lambda count: 0.1, 0.9, 0.99, weight_decay=0.5)
        assert jax.tree.structure(state) == jax.tree.structure(theirs.init(params))
    updates, _ = transform.update(jax.tree.map(jnp.zeros_like, params), state, params)
    moved = {path for path, update in leaves_by_path(updates).items() if np.any(update)}
    still = {path for path, leaf in leaves_by_path(params).items() if not np.any(leaf)}
    assert leaves_by_path(params).keys() - moved - still == {"mapping/frequencies"}


def test_gradients_are_clipped_by_their_global_norm():
    # RAdam's first updates are plain momentum, so the size of the gradient shows.
    gradient = jnp.array([3.0, 4.0])
    clipped = one_update(gradient, name="radam", clip_norm=1.0)
    np.testing.assert_allclose(clipped, one_update(gradient / 5.0, name="radam"), rtol=1e-5)
    assert np.abs(one_update(gradient, name="radam") - clipped).max() > 0.1


# Gradients of 12 updates; the rectification of RAdam begins within them.
GRADIENTS = jax.random.normal(jax.random.key(0), (12, 2)) * jnp.array([1.0, 0.1])
# All numbers differ, so that a test notices one in the place of another.
SET = {
    "learning_rate": 0.03,
    "schedule": "cosine",
    "warmup_steps": 3,
    "b1": 0.6,
    "b2": 0.8,
    "eps": 0.07,
    "weight_decay": 0.0,
    "clip_norm": 0.9,
    "updates": 11,
}


def trajectory(transform):
    """The parameters after each of the updates by GRADIENTS."""
    params, points = jnp.array([2.0, -1.0]), []
    state, update = transform.init(params), jax.jit(transform.update)
    for gradient in GRADIENTS:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        points.append(params)
    return np.array(points)


def rate_of(learning_rate, schedule, warmup_steps, updates):
    """The learning rate of the n-th update: rises from 0, then falls to 0 at the last one."""

    def rate(n):
        share = jnp.clip((n - warmup_steps) / (updates - warmup_steps), 0.0, 1.0)
        falls = {
            "constant": 1.0,
            "cosine": 0.5 * (1.0 + jnp.cos(jnp.pi * share)),
            "linear": 1.0 - share,
        }
        rise = n / max(warmup_steps, 1)
        return learning_rate * jnp.where(n < warmup_steps, rise, falls[schedule])

    return rate


def reference_optimizer(
    name, learning_rate, schedule, warmup_steps, b1, b2, eps, weight_decay, clip_norm, updates
):
    """The same optimizer, built from optax alone."""
    rate = rate_of(learning_rate, schedule, warmup_steps, updates)
    scaled = {
        "adamw": optax.scale_by_adam,
        "adam": optax.scale_by_adam,
        "radam": optax.scale_by_radam,
    }
    return optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        scaled[name](b1, b2, eps),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(rate),
    )


@pytest.mark.parametrize(
    ("name", "schedule"),
    [("adamw", "constant"), ("adamw", "linear"), *((name, "cosine") for name in OPTIMIZERS)],
)
def test_updates_are_those_of_optax_with_every_field_set(name, schedule):
    decay = {"weight_decay": 0.3} if name == "adamw" else {}
    fields = SET | {"name": name, "schedule": schedule} | decay
    ours = build_optimizer(**fields)
    points = trajectory(ours.transform)
    np.testing.assert_allclose(points, trajectory(reference_optimizer(**fields)), rtol=2e-6)
    rates = [float(ours.learning_rate(n)) for n in range(13)]
    rate = rate_of(0.03, schedule, 3, 11)
    np.testing.assert_allclose(rates, [float(rate(n)) for n in range(13)], rtol=1e-5, atol=1e-9)


def test_fields_of_spikes_reach_the_transformation():
    def skipped(factor, window):
        fields = FIELDS | {"spike_factor": factor, "spike_window": window, "spike_cap": 7}
        made = build_optimizer(**fields)
        assert (made.spike_factor, made.spike_cap) == (factor, 7)
        params = jnp.ones(1)
        state = made.transform.init(params)
        for loss in (1.0, 2.0, 3.0, 6.0):
            state = made.transform.update(params, state, params, value=loss)[1]
        return int(state.skipped)

    # 6 lies 4 deviations above the mean of 1, 2, 3, and 5 above that of 2, 3.
    assert [skipped(f, w) for f, w in ((3.9, 3), (4.1, 3), (4.1, 2), (5.1, 2))] == [1, 0, 1, 0]


def test_each_player_has_its_own_fields_and_counts_its_own_updates():
    # The generator is updated at every fifth step, 3 times in 11 steps.
    fields = {f"optimizer.{name}": value for name, value in SET.items() if name != "updates"}
    fields |= {"optimizer.name": "radam", "optimizer.warmup_steps": 1}
    config = small_config("dmd", steps=11, **fields)
    own = {
        "name": "adamw",
        "learning_rate": 0.02,
        "schedule": "linear",
        "warmup_steps": 4,
        "b1": 0.1,
        "b2": 0.7,
        "eps": 0.2,
        "weight_decay": 0.4,
        "clip_norm": 1.1,
    }
    config.player_optimizers = {"fake_score": own}
    built = build(config).optimizers
    theirs = {
        "generator": SET | {"name": "radam", "warmup_steps": 1, "updates": 3},
        "fake_score": own | {"updates": 11},
    }
    assert built.keys() == theirs.keys()
    for player, fields in theirs.items():
        points = trajectory(reference_optimizer(**fields))
        np.testing.assert_allclose(trajectory(built[player].transform), points, rtol=2e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "adam", "weight_decay": 0.1}, "optimizer.weight_decay"),
        ({"warmup_steps": 100}, "optimizer.warmup_steps"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        build_optimizer(**{**FIELDS, **fields})


@pytest.mark.parametrize(
    ("allowed", "refused", "message"),
    [
        ({"warmup_steps": 99}, {"warmup_steps": 100}, "must be below 100, the run's updates"),
        (
            {"warmup_steps": 1, "updates": 2},
            {"warmup_steps": 1, "updates": 1},
            "must be below 1, the run's updates",
        ),
        ({"spike_factor": 0.0}, {"spike_factor": -1e-3}, "spike_factor >= 0"),
        ({"spike_window": 2}, {"spike_window": 1}, "spike_window >= 2"),
        ({"spike_cap": 0}, {"spike_cap": -1}, "spike_cap >= 0"),
        ({"name": "adam"}, {"name": "adam", "weight_decay": 1e-9}, "use optimizer.name=adamw"),
    ],
)
def test_fields_have_edges(allowed, refused, message):
    build_optimizer(**{**FIELDS, **allowed})
    with pytest.raises(ValueError, match=message):
        build_optimizer(**{**FIELDS, **refused})


@pytest.mark.parametrize(
    ("how", "at", "rates"),
    [
        # Of a cosine of 100 updates from 0.1, at updates 50, 100, 101, 150 and 200 of 200.
        ("extend", 100, [0.05, 0.05, 0.0492, 0.0146, 0.0]),
        ("extend", 50, [0.0854, 0.05, 0.0492, 0.0146, 0.0]),
        ("hold", 100, [0.05, 0.02, 0.02, 0.02, 0.02]),
        ("rewarm", 100, [0.05, 0.02, 0.02, 0.01, 0.0]),
    ],
)
def test_a_continued_run_has_the_rate_that_was_asked_for(how, at, rates):
    continued = [Continuation(at, 200, how, 0.2)]
    own = {**FIELDS, "schedule": "cosine", "continued": continued}
    rate = build_optimizer(**own).learning_rate
    found = [float(rate(n)) for n in (50, 100, 101, 150, 200)]
    np.testing.assert_allclose(found, rates, atol=1e-4)
    constant = build_optimizer(**{**own, "schedule": "constant"}).learning_rate
    assert float(constant(150)) == pytest.approx(0.1)  # it does not depend on the length
    warmed = build_optimizer(**{**own, "warmup_steps": 20}).learning_rate
    assert (float(warmed(at + 10)) == pytest.approx(0.01)) == (how == "rewarm")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_of_no_update_has_a_rate(schedule):
    rate = build_optimizer(**{**FIELDS, "schedule": schedule, "updates": 0}).learning_rate
    assert float(rate(0)) == pytest.approx(0.1)


def test_spikes_are_skipped_only_when_asked():
    assert build_optimizer(**FIELDS)[2:] == (0.0, 10)
    state = build_optimizer(**FIELDS, spike_factor=6.0).transform.init({"w": jnp.ones(3)})
    assert state.losses.shape == (128,)


def test_moments_and_epsilon_are_the_fields():
    # Two updates of Adam in NumPy, with a gradient that epsilon and both decays move.
    gradients, fields = (2e-4, -1e-4), {"b1": 0.5, "b2": 0.75, "eps": 1e-4}
    transform = build_optimizer(**{**FIELDS, **fields}).transform
    params, m, v = {"w": jnp.zeros(1)}, 0.0, 0.0
    state = transform.init(params)
    for count, g in enumerate(gradients, start=1):
        update, state = transform.update({"w": jnp.array([g])}, state, params)
        m, v = 0.5 * m + 0.5 * g, 0.75 * v + 0.25 * g**2
        expected = -0.1 * (m / (1 - 0.5**count)) / (np.sqrt(v / (1 - 0.75**count)) + 1e-4)
        np.testing.assert_allclose(update["w"], expected, rtol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_each_stage_has_the_schedule_of_a_run_of_its_length(schedule):
    def rate(updates, **fields):
        fields = {**FIELDS, "schedule": schedule, "warmup_steps": 4, "updates": updates, **fields}
        return build_optimizer(**fields).learning_rate

    whole = rate(60, starts=(0, 10, 30, 70))  # the run ends before the last would begin
    for start, end in ((0, 10), (10, 30), (30, 60)):
        alone = rate(end - start)
        for n in range(start, end):
            assert float(whole(n)) == pytest.approx(float(alone(n - start)), abs=1e-7)


def test_a_warm_up_fits_into_the_shortest_stage():
    fields = {**FIELDS, "warmup_steps": 10}
    build_optimizer(**fields, starts=(0, 11, 50))
    with pytest.raises(ValueError, match="must be below 10, the updates of its shortest"):
        build_optimizer(**fields, starts=(0, 10, 50))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restarted_optimizer_keeps_only_the_count_of_its_schedule(name):
    fields = {**FIELDS, "name": name, "clip_norm": 1.0, "spike_factor": 9.0, "schedule": "linear"}
    transform = build_optimizer(**fields).transform
    params = {"w": jnp.array([2.0, -1.0])}
    first = state = transform.init(params)
    for _ in range(3):
        _, state = transform.update({"w": jnp.ones(2)}, state, params, value=jnp.float32(1.0))
    again = restart_optimizer(transform, params, jnp.int32(40))
    assert jax.tree.structure(again) == jax.tree.structure(first)
    differing = {
        jax.tree_util.keystr(path)
        for (path, a), b in zip(
            jax.tree.leaves_with_path(first), jax.tree.leaves(again), strict=True
        )
        if not np.array_equal(a, b)
    }
    (place,) = differing
    assert place.endswith(".count")
    made, _ = transform.update({"w": jnp.ones(2)}, again, params, value=jnp.float32(1.0))
    other, _ = transform.update({"w": jnp.ones(2)}, first, params, value=jnp.float32(1.0))
    np.testing.assert_allclose(made["w"], 0.6 * other["w"], rtol=1e-5)
