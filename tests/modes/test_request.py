"""The run that a request names: its folder, checkpoint and network."""

import os
from pathlib import Path
from types import SimpleNamespace

import chex
import pytest
from ml_collections import ConfigDict

from fewstep.modes import recorded_run
from fewstep.modes.recorded_run import load_run
from fewstep.modes.request import Request, require_workdir
from fewstep.modes.resolve import read_dataset, resolve, resolve_and_load
from fewstep.modes.student import read_student
from fewstep.training.storage import checkpoint, restore
from fewstep.training.storage.identity import Identity
from tests.modes.recorded import make_dataset, random_network, replace_dit
from tests.training.runs import save_run, small_config

FIELDS = {"ema.decays": (0.9, 0.99), "evaluate.batch_size": 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with seed 1, a network of nine numbers and checkpoints at steps 3 and 5."""
    with pytest.MonkeyPatch.context() as patch:
        replace_dit(patch, lambda *_, **fields: random_network((8, 8, 1)))
        folder = tmp_path_factory.mktemp("run")
        save_run(folder, "flow_matching", (3, 5), **FIELDS, seed=1)
        yield folder


def read_network(folder, name, step):
    """Read a network with Orbax alone."""
    with restore.read_checkpoints(folder) as checkpoints:
        arguments = checkpoint.ocp.args.Composite(**{name: checkpoint.ocp.args.StandardRestore()})
        return checkpoints.restore(step, args=arguments)[name]


@pytest.mark.parametrize(
    ("asked", "name", "step"),
    [
        ({}, "ema_0.9", 5),
        ({"checkpoint": 3}, "ema_0.9", 3),
        ({"network": "ema_0.99"}, "ema_0.99", 5),
        ({"network": "network", "checkpoint": 3}, "network", 3),
    ],
)
def test_the_network_of_the_step_is_loaded(folder, asked, name, step):
    loaded = load_run(Request(config=None, workdir=folder, **asked))
    assert (loaded.step, loaded.experiment.sample_with, loaded.config.seed) == (step, name, 1)
    chex.assert_trees_all_equal(dict(loaded.params), read_network(folder, name, step))
    # The batch size becomes a multiple of the eight devices.
    assert loaded.config.evaluate.batch_size == 24


@pytest.mark.parametrize(("classes", "resolved"), [(-1, 10), (0, 0), (10, 10)])
def test_open_fields_are_those_of_the_data(classes, resolved):
    fields = {"data.image_size": 0, "data.channels": 0, "data.num_classes": classes}
    config = resolve(small_config(**fields), make_dataset(image_size=6, channels=3))
    data = config.data
    assert (data.image_size, data.channels, data.num_classes) == (6, 3, resolved)


def test_classes_that_the_data_do_not_have_are_refused():
    with pytest.raises(ValueError, match="data.num_classes=5, but made has 10"):
        resolve(small_config(**{"data.num_classes": 5}), make_dataset(8, 1))


def test_without_a_data_set_sizes_are_the_config_s_which_a_student_inherits(folder):
    none = {"data.name": "none", "evaluate.steps": ()}
    open_sizes = {"data.image_size": 0, "data.channels": 0, "data.num_classes": -1}
    student = small_config("sim_flow", teacher=str(folder), **none, **open_sizes)
    request = Request(config=student, given=("data.name",), teachers={})
    config, found = resolve_and_load(read_student(request).config)
    assert (found, config.data.image_size, config.data.num_classes) == (None, 8, 10)
    with pytest.raises(FileNotFoundError, match="data.name=none has no images"):
        resolve_and_load(small_config("flow_matching", **none))
    with pytest.raises(FileNotFoundError, match="data.name=none has no images"):
        resolve_and_load(small_config("flow_matching", **none, **open_sizes))


def test_a_data_set_is_read_at_the_size_of_the_config():
    config = small_config(**{"data.image_size": 6, "data.channels": 3})
    assert read_dataset(config).image_shape == (6, 6, 3)


def test_the_address_of_a_bucket_is_not_a_workdir():
    for address in ("gs://bucket/run", "s3://bucket/run"):
        with pytest.raises(ValueError, match="mount the bucket"):
            require_workdir(Request(config=None, workdir=Path(address)))
    for folder in ("runs/digits", "/shared/a:b", "."):
        assert require_workdir(Request(config=None, workdir=Path(folder))) == Path(folder)
    with pytest.raises(ValueError, match="--workdir is missing; name"):
        require_workdir(Request(config=None, workdir=None))


def test_a_workdir_that_no_checkpoint_can_be_written_to_is_refused(tmp_path):
    strange = tmp_path / os.fsdecode(b"\xff")
    with pytest.raises(ValueError, match=r"--workdir=b.*\\xff' is not UTF-8"):
        require_workdir(Request(config=None, workdir=strange))
    assert require_workdir(Request(config=None, workdir=tmp_path / "Zürich"))


def test_a_run_without_a_whole_checkpoint_says_so(tmp_path):
    (tmp_path / checkpoint.FOLDER).mkdir()
    with pytest.raises(ValueError, match="has no complete checkpoint; train there first$"):
        restore.read_record(tmp_path)


def test_images_in_a_moved_folder_must_be_those_of_the_run(monkeypatch, tmp_path):
    recorded = Identity("1", {"data": {"name": "folder:/old"}}, data={"train": {"sha256": "a"}})
    monkeypatch.setattr(recorded_run.workdir, "recorded_identity", lambda run: recorded)
    reading, blind = (
        SimpleNamespace(objective=SimpleNamespace(reads=(name,))) for name in ("images", "labels")
    )
    same, other = (
        SimpleNamespace(identity={"train": {"sha256": h}}, files=(), moments=None) for h in "ab"
    )
    moved = ConfigDict({"data": {"name": "folder:/new"}})
    recorded_run.check_moved_data(tmp_path, moved, reading, same)
    recorded_run.check_moved_data(tmp_path, moved, blind, other)
    recorded_run.check_moved_data(tmp_path, moved, reading, None)
    with pytest.raises(ValueError, match="has changed since the run began"):
        recorded_run.check_moved_data(tmp_path, moved, reading, other)
