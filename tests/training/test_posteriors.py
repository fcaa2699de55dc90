"""Latents drawn on the devices: their distribution, and what a draw is a function of."""

import jax
import numpy as np
import pytest

from fewstep.training.posteriors import draw_latents
from fewstep.training.sharding import put_batch, put_batches
from tests.training.runs import small_config
from tests.training.test_sharding import mesh_of

ROWS, SHAPE = 16, (2, 3, 4)


def config(**fields):
    return small_config("flow_matching", **{"codec.scale": (2.0,), "codec.shift": (1.0,), **fields})


def batch(position=0, mean=3.0, std=0.5, rows=ROWS):
    moments = np.stack([np.full((rows, *SHAPE), value, np.float16) for value in (mean, std)], 1)
    label = np.arange(rows, dtype=np.int32)
    positions = np.arange(position, position + rows, dtype=np.uint32)
    return {"moments": moments, "position": positions, "label": label}


def test_latents_are_scaled_draws_from_the_posterior():
    drawn = draw_latents(config())(batch(rows=4096))
    assert drawn.keys() == {"x", "label"} and drawn["x"].dtype == np.float32
    # 2 (N(3, 0.5^2) - 1)
    assert float(drawn["x"].mean()) == pytest.approx(4.0, abs=0.01)
    assert float(drawn["x"].std()) == pytest.approx(1.0, abs=0.01)
    plain = draw_latents(config())(batch(std=0.0))
    np.testing.assert_array_equal(plain["x"], np.full((ROWS, *SHAPE), 4.0, np.float32))


def test_channels_have_scales_of_their_own():
    scales = {"codec.scale": (1.0, 2.0, 3.0, 4.0), "codec.shift": (0.0, 1.0, 2.0, 3.0)}
    drawn = draw_latents(config(**scales))(batch(std=0.0))["x"]
    np.testing.assert_array_equal(drawn[0, 0, 0], [3.0, 4.0, 3.0, 0.0])


def test_a_draw_is_a_function_of_seed_and_position():
    draw = draw_latents(config())
    first, later = draw(batch()), draw(batch(position=ROWS // 2))
    assert len(np.unique(np.asarray(first["x"]))) > 0.99 * first["x"].size
    np.testing.assert_array_equal(first["x"][ROWS // 2 :], later["x"][: ROWS // 2])
    assert (draw_latents(config(seed=1))(batch())["x"] != first["x"]).any()


def test_one_device_draws_what_eight_draw_and_a_dispatch_what_single_steps_draw():
    draw = draw_latents(config())
    first = jax.device_get(draw(batch())["x"])
    for mesh in (mesh_of(1, 1), mesh_of(2, 4)):
        np.testing.assert_array_equal(draw(put_batch(batch(), mesh))["x"], first)
        both = iter([batch(), batch(position=ROWS)])
        stacked = draw(put_batches(both, 2, mesh))
        np.testing.assert_array_equal(stacked["x"][0], first)
        np.testing.assert_array_equal(stacked["x"][1], draw(batch(position=ROWS))["x"])
