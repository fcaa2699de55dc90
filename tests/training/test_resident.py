from itertools import islice

import jax
import numpy as np
import pytest

from fewstep.data import Posteriors, image_batches, index_batches, moment_batches
from fewstep.training.resident import load_images, load_moments
from fewstep.training.sharding import batch_sharding, put_batch, put_batches
from tests.training.runs import synthetic_split
from tests.training.test_sharding import mesh_of

SHARE = {"batch_size": 16, "seed": 3, "start_step": 11, "flip": True}


@pytest.mark.parametrize("sizes", [(1, 1), (2, 4)])
def test_batches_are_those_of_the_host_bit_for_bit_and_split_alike(sizes):
    mesh, split = mesh_of(*sizes), synthetic_split(50)
    complete = load_images(split, mesh)
    on_host = list(islice(image_batches(split, **SHARE), 6))
    source = index_batches(split, **SHARE)
    mirrored = False
    for host in on_host[:3]:
        rows = next(source)
        mirrored |= rows["mirrored"].any()
        batch = complete(put_batch(rows, mesh))
        assert set(batch) == {"x", "label"}
        np.testing.assert_array_equal(batch["x"], host["x"])
        np.testing.assert_array_equal(batch["label"], host["label"])
        assert batch["x"].sharding.is_equivalent_to(batch_sharding(mesh), 4)
    assert mirrored
    stacked = jax.device_get(complete(put_batches(source, 3, mesh)))
    for number, host in enumerate(on_host[3:]):
        np.testing.assert_array_equal(stacked["x"][number], host["x"])
        np.testing.assert_array_equal(stacked["label"][number], host["label"])


def test_posteriors_on_the_devices_are_those_of_the_host():
    mesh, split = mesh_of(2, 4), synthetic_split(50)
    array = np.random.default_rng(1).normal(size=(50, 2, 2, 3, 3, 4)).astype(np.float16)
    moments = Posteriors(array, {})
    complete = load_moments(split, moments, mesh)
    on_host = moment_batches(split, moments, **SHARE)
    for rows, host in islice(zip(index_batches(split, **SHARE), on_host, strict=False), 3):
        assert rows["mirrored"].any() and not rows["mirrored"].all()
        batch = complete(put_batch(rows, mesh))
        assert batch.keys() == host.keys()
        for name, expected in host.items():
            np.testing.assert_array_equal(batch[name], expected)
