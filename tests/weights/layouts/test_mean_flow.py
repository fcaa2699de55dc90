"""Parameters of MeanFlow under their names become a run that samples in one step."""

import jax
import numpy as np
import pytest
from flax.serialization import msgpack_serialize

from fewstep.files import write_npz
from fewstep.models.dit import dit
from fewstep.modes.import_weights import import_weights
from fewstep.modes.recorded_run import load_run
from fewstep.modes.request import Request
from fewstep.training.published import published_tensors, read_published
from fewstep.weights.layouts.dit import Sizes
from fewstep.weights.layouts.mean_flow import write_mean_flow
from tests.training.runs import perturb

SIDE, CLASSES = 8, 5


@pytest.fixture
def params():
    network = dit(
        (SIDE, SIDE, 3), CLASSES, size="nano", second_time="interval", time_scale=1.0, patch_size=2
    )
    return perturb(network.init(jax.random.key(0)))


def saved_by_flax(tensors, folder):
    """The file of a train state, as the code of MeanFlow saves it."""
    tree = {}
    for name, array in tensors.items():
        *keys, last = name.split("/")
        below = tree
        for key in keys:
            below = below.setdefault(key, {})
        below[last] = array
    path = folder / "checkpoint_7"
    path.write_bytes(msgpack_serialize({"ema_params": tree, "params": tree, "step": 7}))
    return path


def test_a_file_becomes_a_run_of_mean_flow(params, tmp_path):
    width = params["patch_embedding"]["kernel"].shape[1]
    depth = sum(name.startswith("block_") for name in params)
    tensors = write_mean_flow(jax.device_get(params), Sizes(width, depth, 2, 3, CLASSES))
    path, run = tmp_path / "mean_flow.npz", tmp_path / "run"
    write_npz(path, **tensors)
    assert read_published(path).layout == "mean_flow"
    assert read_published(saved_by_flax(tensors, tmp_path), "ema_params").layout == "mean_flow"
    with pytest.raises(ValueError, match="does not say the size of its images"):
        import_weights(Request(workdir=run, weights=path))
    import_weights(Request(workdir=run, weights=path, fields={"data.image_size": SIDE}))
    loaded = load_run(Request(workdir=run))
    assert (loaded.config.method, loaded.config.model.time_scale) == ("mean_flow", 1.0)
    jax.tree.map(np.testing.assert_array_equal, dict(loaded.params), dict(params))
    back = published_tensors("mean_flow", loaded.params, read_published(path).sizes)
    assert back.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)
    # One step is x - u(x, 1, 0) of the network itself.
    eps, label = jax.random.normal(jax.random.key(1), (2, SIDE, SIDE, 3)), np.array([1, 4])
    made = loaded.experiment.objective.sample(
        loaded.params,
        eps,
        {"label": label},
        jax.random.split(jax.random.key(2), 2),
        steps=1,
        guidance_scale=1.0,
    )
    network = loaded.experiment.model.network
    u = network.apply(params, eps, np.ones(2, "f4"), np.zeros(2, "f4"), {"label": label})
    np.testing.assert_allclose(made, eps - u, rtol=1e-5, atol=1e-5)
