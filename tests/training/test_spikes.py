import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fewstep.diffusion.path import linear
from fewstep.objectives.denoising import denoising
from fewstep.training.compiled_step import Training
from fewstep.training.loop import train
from fewstep.training.metrics import read_rows
from fewstep.training.optimizer import build_optimizer
from fewstep.training.report import SpikesError
from fewstep.training.schedule import Schedule
from fewstep.training.session import Upkeep
from fewstep.training.sources import Stream
from fewstep.training.spikes import SpikeState, is_above, skip_spikes
from tests.networks import affine_network, build_model
from tests.training.runs import largest_difference, small_config, synthetic_batches
from tests.training.test_optimizer import FIELDS
from tests.training.test_sharding import mesh_of

FACTOR, WINDOW, UPDATES = 3.0, 8, 60
# Before the window is full, of the loss, of the gradient, of both, and one that is still in sight.
PLANTED = {3: (50.0, 1.0), 20: (30.0, 1.0), 33: (1.0, 40.0), 47: (9.0, 9.0), 49: (9.0, 1.0)}


def sequence():
    """Losses [N] and gradients [N, 3] with planted spikes."""
    rng = np.random.default_rng(0)
    losses = rng.normal(1.0, 0.1, UPDATES).astype(np.float32)
    gradients = rng.normal(0.0, 1.0, (UPDATES, 3)).astype(np.float32)
    for step, (of_loss, of_gradient) in PLANTED.items():
        losses[step] *= of_loss
        gradients[step] *= of_gradient
    return losses, gradients


def spikes(losses, norms, factor=FACTOR, window=WINDOW):
    """Which updates are spikes, in NumPy."""
    past = [[], []]
    found = []
    for values in zip(losses, norms, strict=True):
        above = [
            value > np.mean(seen[-window:]) + factor * np.std(seen[-window:], ddof=1)
            for value, seen in zip(values, past, strict=True)
            if len(seen) >= window
        ]
        found.append(any(above))
        for value, seen in zip(values, past, strict=True):
            seen.append(value)
    return np.array(found)


def test_skipped_updates_are_those_of_numpy_and_change_nothing():
    losses, gradients = sequence()
    expected = spikes(losses.astype(float), np.linalg.norm(gradients.astype(float), axis=1))
    assert expected[[20, 33, 47]].all() and not expected[[3, 49]].any()
    adam = optax.adam(0.1)
    transform = skip_spikes(adam, FACTOR, WINDOW)
    update = jax.jit(lambda g, s, p, loss: transform.update(g, s, p, value=loss))
    params = {"w": jnp.array([1.0, -2.0, 3.0])}
    state = transform.init(params)
    alone, kept = params, adam.init(params)  # what Adam makes of the other updates
    for step in range(UPDATES):
        gradient = {"w": jnp.asarray(gradients[step])}
        updates, after = update(gradient, state, params, losses[step])
        if expected[step]:
            assert not updates["w"].any()
            chex.assert_trees_all_equal(after.inner, state.inner)
        else:
            made, kept = jax.jit(adam.update)(gradient, kept)
            alone = optax.apply_updates(alone, made)
        params, state = optax.apply_updates(params, updates), after
        assert int(state.skipped) == expected[: step + 1].sum()
    np.testing.assert_allclose(params["w"], alone["w"], rtol=1e-5)


def test_without_a_factor_the_state_is_the_optimizer_s_own():
    def state(**fields):
        return build_optimizer(**FIELDS | fields).transform.init({"w": jnp.ones(3)})

    own = optax.adamw(optax.constant_schedule(0.1)).init({"w": jnp.ones(3)})
    assert jax.tree.structure(state()) == jax.tree.structure(own)
    watched = state(spike_factor=6.0, spike_window=4)
    assert isinstance(watched, SpikeState) and watched.losses.shape == (4,)
    with pytest.raises(ValueError, match="spike_window >= 2"):
        build_optimizer(**FIELDS, spike_factor=6.0, spike_window=1)


def run(workdir, cap):
    """Train a network of five numbers for eight steps; the small factor makes many spikes."""
    config = small_config("flow_matching")
    objective = denoising(build_model(affine_network(), linear()))._replace(init_from={})
    own = build_optimizer(**FIELDS, spike_factor=1e-3, spike_window=2, spike_cap=cap)
    return train(
        Training(objective, {"network": own}, {}, mesh_of(1, 1), 0, config.batch_size),
        Stream(lambda start: synthetic_batches(config, start), dict),
        Schedule(steps=8, log=1, save=4),
        Upkeep(workdir, {}),
        lambda state: {},
    )


def test_resuming_a_run_that_skips_equals_not_stopping(tmp_path):
    final = run(tmp_path / "whole", cap=8)
    shutil.copytree(*(tmp_path / each / "checkpoints" / "4" for each in ("whole", "cut")))
    assert largest_difference(final, run(tmp_path / "cut", cap=8)) == 0.0
    rows = [row for row in read_rows(tmp_path / "whole" / "metrics.jsonl") if "loss" in row]
    losses, norms, counts = (
        [row[name] for row in rows] for name in ("loss", "gradient_norm", "skipped")
    )
    np.testing.assert_array_equal(counts, np.cumsum(spikes(losses, norms, 1e-3, 2)))
    assert counts[-1] == int(final.optimizers["network"].skipped) >= 2


def test_more_spikes_than_the_cap_end_the_run(tmp_path):
    message = r"network has skipped 2 updates at step \d, .*spike_cap=1: .* 0.001 standard"
    with pytest.raises(SpikesError, match=message):
        run(tmp_path, cap=1)


def test_a_deviation_is_that_of_a_sample():
    # 1, 2 and 3 deviate by 1 as a sample and by 0.82 as a whole.
    past = jnp.array([1.0, 2.0, 3.0])
    assert is_above(4.1, past, 2.0) and not is_above(3.9, past, 2.0)


def test_the_first_update_after_a_full_window_can_be_a_spike():
    transform = skip_spikes(optax.sgd(1.0), 3.0, 4)
    params = {"w": jnp.zeros(1)}
    state = transform.init(params)
    losses, gradient = (1.0, 1.1, 0.9, 1.0, 50.0), {"w": jnp.ones(1)}
    moved = []
    for loss in losses:
        updates, state = transform.update(gradient, state, params, value=jnp.float32(loss))
        moved.append(bool(updates["w"].any()))
    assert moved == [True, True, True, True, False]
    assert (int(state.seen), int(state.skipped)) == (5, 1)


def test_a_value_at_the_border_is_no_spike():
    past = jnp.ones(4)  # without deviation
    assert not is_above(1.0, past, 3.0) and is_above(1.0 + 1e-6, past, 3.0)
