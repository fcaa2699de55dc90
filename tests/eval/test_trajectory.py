import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.data import to_uint8
from fewstep.eval import trajectory as module
from fewstep.eval.trajectory import SHOWN, record_inputs, trajectory
from fewstep.models.dit import SIZES
from fewstep.training.generate import batch_sampler, initial_noise
from fewstep.training.sharding import make_mesh
from tests.modes.recorded import random_network
from tests.networks import NO_BLOCKS
from tests.training.runs import perturb, small_config, small_experiment


@pytest.fixture
def no_blocks(monkeypatch):
    monkeypatch.setitem(SIZES, "nano", NO_BLOCKS)


def way_of(method, steps, label=3, **fields):
    """A way, the sample where it ends, and the same way again."""
    config, experiment = small_experiment(method, **fields)
    params = perturb(experiment.model.network.init(jax.random.key(0)))
    show = trajectory(config, steps=steps, guidance_scale=1.0, label=label)
    sample = batch_sampler(
        experiment.objective, (8, 8, 1), make_mesh(), seed=0, steps=steps, guidance_scale=1.0
    )
    x_0 = jax.device_get(sample(params, np.arange(8), np.full(8, label)))[0]
    return show(params), x_0, show(params)


def furthest(image, x):
    """The largest difference of an image from floats, in its levels."""
    return np.abs(image.astype(int) - to_uint8(x)).max()


def test_it_ends_at_the_sample_and_begins_at_its_noise(no_blocks):
    way, x_0, again = way_of("shortcut", 4)
    assert way.shape == (5, 8, 8, 1) and way.dtype == np.uint8
    assert furthest(way[-1], x_0) <= 1
    eps = np.asarray(initial_noise(0, np.zeros(1, np.int32), (8, 8, 1))[0][0])
    assert furthest(way[0], eps * x_0.std() / eps.std()) <= 1
    np.testing.assert_array_equal(way, again)
    assert len(np.unique(way.reshape(5, -1), axis=0)) == 5


def test_many_evaluations_are_shown_evenly(no_blocks):
    way, _, _ = way_of("edm", 16, **{"objective.solver.name": "heun"})
    assert len(way) == SHOWN + 1


def test_one_step_is_noise_and_image(no_blocks):
    way, x_0, _ = way_of("sim_flow", 1, teacher="")
    assert len(way) == 2 and furthest(way[-1], x_0) <= 1


def test_the_image_is_that_of_the_run_s_seed_label_scale_and_steps(monkeypatch):
    network = random_network((8, 8, 1))
    params = {"a": 1.0, "b": 0.0, "c": 0.0, "d": 0.0, "e": jnp.zeros(4)}

    def sampler(watched):
        """A sampler of one evaluation, that tells all that it is given."""

        def sample(params, eps, condition, keys, *, steps, guidance_scale):
            label = condition["label"].astype(jnp.float32)
            own = jax.vmap(lambda key: jax.random.normal(key, eps.shape[1:]))(keys)
            told = 0.1 * (eps + own) + 0.02 * label.reshape(-1, 1, 1, 1)
            told = told + 0.05 * steps * guidance_scale
            return watched.apply(params, told, label, label, condition)

        return sample

    def build_sampler(config, watched):
        experiment = build(config, watched)
        objective = experiment.objective._replace(sample=sampler(watched))
        return experiment._replace(objective=objective)

    build = module.build
    monkeypatch.setattr(module, "build", build_sampler)
    monkeypatch.setattr(module, "record_inputs", lambda _, states: record_inputs(network, states))
    config = small_config("flow_matching", seed=3)
    shown = trajectory(config, steps=2, guidance_scale=1.5, label=3)(params)[-1]
    eps, keys = initial_noise(3, np.zeros(1, np.int32), (8, 8, 1))
    condition = {"label": np.array([3], np.int32)}
    x_0 = sampler(network)(params, eps, condition, keys, steps=2, guidance_scale=1.5)[0]
    assert furthest(shown, x_0) <= 1
