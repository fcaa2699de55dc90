import jax
import numpy as np

from data import to_uint8
from eval.generate import batch_sampler
from eval.trajectory import SHOWN, trajectory
from tests.training.runs import perturbed, small_experiment
from training.sharding import make_mesh


def way_of(method, steps, label=3, **fields):
    config, experiment = small_experiment(method, **fields)
    params = perturbed(experiment.model.network.init(jax.random.key(0)))
    show = trajectory(config, steps=steps, guidance_scale=1.0, label=label)
    sample = batch_sampler(
        experiment.objective, (8, 8, 1), make_mesh(), seed=0, steps=steps, guidance_scale=1.0
    )
    x_0 = jax.device_get(sample(params, np.arange(8), np.full(8, label)))[0]
    return show(params), to_uint8(x_0), show(params)


def test_it_ends_at_the_sample_and_begins_at_its_noise():
    way, x_0, again = way_of("shortcut", 4)
    assert way.shape == (5, 8, 8, 1) and way.dtype == np.uint8
    assert np.abs(way[-1].astype(int) - x_0).max() <= 1
    np.testing.assert_array_equal(way, again)
    assert len(np.unique(way.reshape(5, -1), axis=0)) == 5


def test_many_evaluations_are_shown_evenly():
    way, _, _ = way_of("edm", 16, **{"objective.solver.name": "heun"})
    assert len(way) == SHOWN + 1


def test_one_step_is_noise_and_image():
    way, x_0, _ = way_of("sim_flow", 1, teacher="")
    assert len(way) == 2 and np.abs(way[-1].astype(int) - x_0).max() <= 1
