"""Batches of every source in the table, alone and together with others."""

from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from fewstep.data import (
    NEWEST_ORDER,
    Pairs,
    image_batches,
    index_batches,
    label_batches,
    pair_batches,
)
from fewstep.data.spaces.pixels import pixel_space
from fewstep.training import sources
from fewstep.training.sharding import put_batch
from fewstep.training.sources import SOURCES, Supply, abstract_batch, open_sources
from tests.modes.recorded import make_dataset
from tests.training.runs import small_config
from tests.training.test_sharding import mesh_of

IMAGES = np.random.default_rng(0).normal(size=(90, 8, 8, 1)).astype(np.float32)
PAIRS = Pairs(IMAGES, 2.0 * IMAGES, np.arange(90, dtype=np.int32) % 10)
COUNTS = (1,) * 9 + (5,)
READ = [(name,) for name in SOURCES] + [("images", "pairs"), ("labels", "pairs")]


def objective_with(*names):
    return SimpleNamespace(reads=names, guidance_scale=1.5, frozen=(), init_from={})


def supply_of(names, **fields):
    config = small_config("flow_matching", **fields)
    experiment = SimpleNamespace(objective=objective_with(*names), space=pixel_space((8, 8, 1)))
    frozen = {sources.TEACHER: "adopted", sources.SAMPLED_TEACHER: "parameters"}
    given = config, experiment, make_dataset(8, 1), COUNTS, NEWEST_ORDER, mesh_of(2, 4), Path("run")
    return Supply(*given, taught="taught", frozen=frozen)


@pytest.fixture(autouse=True)
def asked(monkeypatch):
    """Replaces the teacher's pairs; returns the arguments that they were asked with."""
    seen = []
    monkeypatch.setattr(sources, "teacher_pairs", lambda *a, **k: seen.append((a, k)) or PAIRS)
    return seen


def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("names", READ)
def test_a_completed_batch_is_what_the_objective_reads(names, on_device):
    supply = supply_of(names, **{"data.flip": True, "data.on_device": on_device})
    stream = open_sources(supply)
    late, whole = stream.batches(3), islice(stream.batches(0), 3, 5)
    for batch, other in zip(islice(late, 2), whole, strict=True):
        assert set(batch) == set(names)
        completed = [stream.complete(put_batch(b, supply.mesh)) for b in (batch, other)]
        expected = abstract_batch(objective_with(*names), supply.config.batch_size, (8, 8, 1))
        assert shapes(completed[0]) == shapes(expected)
        jax.tree.map(np.testing.assert_array_equal, *completed)


@pytest.mark.parametrize("on_device", [False, True])
def test_each_source_is_its_own_part_of_the_data(on_device):
    share = {"batch_size": 64, "seed": 0, "start_step": 4}
    fields = {"data.flip": True, "data.on_device": on_device}
    batch = next(open_sources(supply_of(("images", "pairs"), **fields)).batches(4))
    rows = index_batches if on_device else image_batches
    expected = next(rows(make_dataset(8, 1).train, flip=True, **share))
    jax.tree.map(np.testing.assert_array_equal, batch["images"], expected)
    np.testing.assert_array_equal(batch["pairs"]["x_0"], 2.0 * batch["pairs"]["eps"])
    earlier = supply_of(("pairs",))._replace(order=1)
    batch = next(open_sources(earlier).batches(4))
    expected = next(pair_batches(PAIRS, order=1, **share))
    jax.tree.map(np.testing.assert_array_equal, batch["pairs"], expected)
    batch = next(open_sources(supply_of(("labels",))).batches(4))
    expected = next(label_batches(COUNTS, **share))
    np.testing.assert_array_equal(batch["labels"]["label"], expected["label"])


def test_pairs_are_those_of_the_teacher_at_the_scale_of_the_objective(asked):
    supply = supply_of(("pairs",), **{"pairs.count": 90, "pairs.steps": 3})
    open_sources(supply)
    ((given, how),) = asked
    assert given == (Path("run"), "taught", "parameters", supply.mesh)
    assert (how["count"], how["steps"], how["guidance_scale"]) == (90, 3, 1.5)
    assert how["label_counts"] == COUNTS


@pytest.mark.parametrize("names", READ)
def test_what_an_objective_needs_follows_from_what_it_reads(names):
    assert sources.reads_data(objective_with(*names)) == ("images" in names)
    assert sources.reads_teacher(objective_with(*names)) == ("pairs" in names)
    assert sources.teacher_sources(objective_with(*names)) == [n for n in names if n == "pairs"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "at least one entry"),
        (("images", "labels"), "each entry from one source"),
        (("imags",), "reads='imags' is not one of images, .* did you mean 'images'"),
    ],
)
def test_a_batch_of_nothing_or_with_an_entry_of_two_sources_is_refused(names, message):
    with pytest.raises(ValueError, match=message):
        abstract_batch(objective_with(*names), 4, (8, 8, 1))
