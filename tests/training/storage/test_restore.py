"""Which checkpoint is read, and that nothing without a fingerprint counts as whole."""

import json
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.training.cluster import processes
from fewstep.training.sharding import make_mesh, tree_shardings
from fewstep.training.storage import checkpoint, restore
from fewstep.training.storage.train_state import TrainState
from tests.training.runs import largest_difference

STEPS = (2, 4, 6)
CONFIG = {"method": "made"}


def state(step):
    """A state whose arrays encode its step and their names."""
    return TrainState(
        step=jnp.int32(step),
        networks={
            "network": {"w": jnp.full(3, step + 0.1)},
            "other": {"w": jnp.full(3, step + 0.2)},
        },
        followers={"average": {"w": jnp.full(3, step + 0.3)}},
        optimizers={
            "network": {"w": jnp.full(3, step + 0.4)},
            "other": {"w": jnp.full(3, step + 0.5)},
        },
    )


ABSTRACT = jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
    state(0),
    tree_shardings(state(0), make_mesh()),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run that was saved at STEPS."""
    folder = tmp_path_factory.mktemp("run")
    with checkpoint.open_checkpoints(folder) as checkpoints:
        for step in STEPS:
            checkpoint.save_state(checkpoints, state(step), CONFIG)
    return folder


@pytest.mark.parametrize(("step", "before"), [(2, None), (3, 2), (4, 2), (5, 4), (6, 4), (9, 6)])
def test_the_state_before_a_step_is_the_newest_of_an_earlier_one(run, step, before):
    found = restore.state_before(run, ABSTRACT, step)
    assert (found is None) == (before is None)
    if before is not None:
        assert largest_difference(found, state(before)) == 0.0


def test_every_part_of_a_state_comes_back_as_itself(run):
    assert largest_difference(restore.newest_state(run, ABSTRACT), state(6)) == 0.0
    with restore.read_checkpoints(run) as checkpoints:
        assert largest_difference(restore.read_state(checkpoints, 4, ABSTRACT), state(4)) == 0.0


@pytest.mark.parametrize(("name", "part"), [("network", 0.1), ("other", 0.2), ("average", 0.3)])
@pytest.mark.parametrize("step", [None, 2, 4])
def test_a_network_is_read_of_the_step_that_is_asked_for(run, name, part, step):
    abstract = ABSTRACT.networks["network"]
    params, found = restore.restore_network(run, name, abstract, step)
    assert found == (step or 6)
    np.testing.assert_array_equal(params["w"], np.full(3, found + part, np.float32))


def test_a_record_is_that_of_its_step(run):
    for step in (*STEPS, None):
        record = restore.read_record(run, step)
        assert (record["step"], record["config"]) == (step or 6, CONFIG)
        assert record["fingerprints"].keys() == checkpoint.named_trees(state(0)).keys()
    prints = [json.dumps(restore.read_record(run, step)["fingerprints"]) for step in STEPS]
    assert len(set(prints)) == 3


@pytest.mark.parametrize("forgotten", ["network", "average", "optimizer_other"])
def test_a_tree_without_a_fingerprint_is_not_whole(tmp_path, monkeypatch, forgotten):
    def seal_without(record):
        prints = {k: v for k, v in record["fingerprints"].items() if k != forgotten}
        return seal({**record, "fingerprints": prints})

    seal = checkpoint.seal_record
    monkeypatch.setattr(checkpoint, "seal_record", seal_without)
    with checkpoint.open_checkpoints(tmp_path) as checkpoints:
        checkpoint.save_state(checkpoints, state(2), CONFIG)
    with pytest.raises(ValueError, match=f"2 is damaged: {forgotten} is not what was written"):
        restore.newest_state(tmp_path, ABSTRACT)


@pytest.fixture
def second_of_two(monkeypatch):
    """Makes this process 1 of two; returns a function that takes what process 0 broadcasts."""

    def become(first):
        monkeypatch.setattr(restore, "broadcast", lambda _: first.pop(0))
        monkeypatch.setattr(processes, "gather", lambda own: [True, own])
        monkeypatch.setattr(processes, "VISIBLE", 0.3)

    return become


def test_files_that_appear_late_are_waited_for(run, tmp_path, second_of_two):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    wanted = restore.file_sizes(folder / "checkpoints" / "6")
    late = next((folder / "checkpoints" / "6").rglob("*.ocdbt"))
    late.rename(tmp_path / "late")
    second_of_two([[2, 4, 6], wanted])
    with restore.read_checkpoints(folder) as checkpoints:
        assert restore.steps_for_all(checkpoints) == [2, 4, 6]
        threading.Timer(0.1, (tmp_path / "late").rename, [late]).start()
        restore.wait_for_files(checkpoints, 6)


def test_no_process_computes_a_fingerprint_that_another_cannot(run, monkeypatch):
    def together(*_):
        raise AssertionError("a fingerprint is computed by all processes")

    monkeypatch.setattr(restore, "fingerprint", together)
    said = []
    monkeypatch.setattr(restore, "true_everywhere", lambda here: said.append(here))
    with pytest.raises(ValueError, match="checkpoints/6 cannot be read by another process"):
        restore.restore_network(run, "network", ABSTRACT.networks["network"], 6)
    assert said == [True]
    other = {"v": ABSTRACT.networks["network"]["w"]}
    with pytest.raises(ValueError, match="another model"):
        restore.restore_network(run, "network", other, 6)
    assert said == [True, False]


def test_files_that_do_not_appear_are_no_damage(run, tmp_path, second_of_two):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    wanted = restore.file_sizes(folder / "checkpoints" / "6")
    shutil.rmtree(folder / "checkpoints" / "6")
    second_of_two([[2, 4, 6], wanted])
    message = r"checkpoints/6 is not what process 0 sees for process 1; put it on a disk that all"
    with pytest.raises(ValueError, match=message):
        restore.newest_state(folder, ABSTRACT)
    assert not (folder / checkpoint.DAMAGED).exists()
