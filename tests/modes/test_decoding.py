"""A run keeps the decoding rules, and what was chosen for it, that it began with."""

import json
import shutil
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fewstep import data
from fewstep.modes import job as JOB
from fewstep.modes.next_job import NextJob
from fewstep.modes.request import Request
from fewstep.modes.resolve import fill_open_fields, read_dataset
from fewstep.training.classes import class_names
from fewstep.training.cost.choice import field_value
from fewstep.training.cost.memory import with_values
from fewstep.training.inheritance import inherit
from fewstep.training.storage import identity, workdir
from fewstep.training.storage.identity import as_dict
from fewstep.training.storage.seal import seal_record, unseal_record
from tests.training.runs import small_config

TRAIN = import_module("fewstep.modes.train_run")
LATER = ("decoding", "background", "unreadable")


@pytest.fixture(autouse=True)
def skip_tracing(monkeypatch):
    """Skip tracing the step, which takes long."""
    monkeypatch.setattr(JOB, "check_step", lambda *_: (None, None))


@pytest.fixture
def config(tmp_path):
    """A config for an image folder whose classes and pixels depend on the rules."""
    for name, level in (("2", 20), ("10", 100)):
        (tmp_path / "images" / name).mkdir(parents=True)
        deep = np.full((8, 8), level * 257, np.uint16)
        Image.fromarray(deep).save(tmp_path / "images" / name / "a.png")
    return small_config(
        "flow_matching",
        **{
            "data.name": f"folder:{tmp_path / 'images'}",
            "data.dir": str(tmp_path / "arrays"),
            "data.num_classes": -1,
            "batch_size": 8,
            "evaluate.steps": (),
        },
    )


def start_run(folder, config, older=False):
    """Write the record of a new run. older: without the fields that older versions lacked."""
    job = JOB.prepare_job(folder, config)
    workdir.start_run(folder, job.config, JOB.data_identity(job.dataset, job.experiment))
    if older:
        path = folder / identity.RUN
        record = unseal_record(json.loads(path.read_text()))
        for name in LATER:
            del record["config"]["data"][name]
        path.write_text(json.dumps(seal_record(record)))
    return job.dataset


def with_first_decoding(config):
    """Return the config with the first decoding rules."""
    config = config.copy_and_resolve_references()
    config.data.decoding = data.FIRST_DECODING
    return config


def as_saved(monkeypatch):
    """Let open fields be those of a record without checkpoint too, as if there were one."""
    saved = SimpleNamespace(has_checkpoint=lambda folder: True)
    monkeypatch.setattr("fewstep.modes.resolve.restore", saved)


def grey_levels(dataset):
    """Return the grey level of each label."""
    return dict(
        zip(dataset.train.labels.tolist(), dataset.train.images[:, 0, 0, 0].tolist(), strict=True)
    )


def test_rules_differ(config):
    first, newest = read_dataset(with_first_decoding(config)), read_dataset(config)
    assert (first.classes, grey_levels(first)) == (("10", "2"), {0: 255, 1: 255})
    assert (newest.classes, grey_levels(newest)) == (("2", "10"), {0: 20, 1: 100})


@pytest.mark.parametrize("cached", [True, False])
def test_an_older_run_goes_on_with_its_pixels_and_labels(
    tmp_path, config, cached, capsys, monkeypatch
):
    begun = start_run(tmp_path / "run", with_first_decoding(config), older=True)
    as_saved(monkeypatch)
    if not cached:
        shutil.rmtree(tmp_path / "arrays")
    capsys.readouterr()
    for _ in range(2):  # the first start writes a new record
        job = JOB.prepare_job(tmp_path / "run", config)
        assert job.config.data.decoding == data.FIRST_DECODING
        assert job.dataset.identity == begun.identity
        workdir.start_run(tmp_path / "run", job.config, job.dataset.identity)
    said = "is decoded by the rules of earlier versions (data.decoding=1)"
    assert (said in capsys.readouterr().err) != cached
    # Evaluations, whose config is the record, and the doctor do the same.
    recorded = workdir.load_config(tmp_path / "run")
    assert read_dataset(recorded, writable=False).identity == begun.identity
    assert (
        NextJob(Request(config=config, workdir=tmp_path / "run")).dataset.identity == begun.identity
    )
    assert class_names(tmp_path / "run") == ("10", "2")


def test_the_record_of_an_older_run_is_read_by_the_first_rules(tmp_path, config):
    begun = start_run(tmp_path / "run", with_first_decoding(config), older=True)
    recorded = workdir.load_config(tmp_path / "run")
    assert recorded.data.decoding == data.FIRST_DECODING
    assert read_dataset(recorded).identity == begun.identity


def test_a_new_run_records_the_newest_rules(tmp_path, config):
    begun = start_run(tmp_path / "run", config)
    assert workdir.load_config(tmp_path / "run").data.decoding == data.NEWEST_DECODING
    assert begun.classes == class_names(tmp_path / "run") == ("2", "10")


@pytest.mark.parametrize(
    ("older", "field", "value", "message"),
    [
        (True, "decoding", 2, r"data.decoding \(1 there, 2 now\)"),
        (True, "background", "black", "have no effect with data.decoding=1"),
        (False, "decoding", 1, r"data.decoding \(2 there, 1 now\)"),
        (False, "background", "black", r"data.background \(white there, black now\)"),
        (False, "decoding", 3, "data.decoding=3 must be 1 or 2"),
    ],
)
def test_a_run_does_not_go_on_by_other_rules(
    tmp_path, monkeypatch, config, older, field, value, message
):
    start_run(tmp_path / "run", with_first_decoding(config) if older else config, older)
    config.data[field] = value
    as_saved(monkeypatch)
    with pytest.raises(ValueError, match=message):
        job = JOB.prepare_job(tmp_path / "run", config)
        monkeypatch.setattr(workdir.restore, "has_checkpoint", lambda folder: True)
        workdir.start_run(tmp_path / "run", job.config)


def test_a_student_reads_its_images_as_its_teacher(tmp_path, config):
    start_run(tmp_path / "teacher", with_first_decoding(config), older=True)
    teacher = workdir.load_config(tmp_path / "teacher")
    assert inherit(config, teacher).data.decoding == data.FIRST_DECODING


def test_open_fields_are_those_of_the_run_and_a_network_that_of_the_teacher(
    tmp_path, config, monkeypatch
):
    start_run(tmp_path / "begun", config)
    fields = ("batch_size", "micro_batches", "optimizer.learning_rate", "model.patch_size")
    open_now = with_values(config, {**dict.fromkeys(fields), "model.size": "auto", "seed": 3})
    assert fill_open_fields(open_now, tmp_path / "begun") is open_now  # nothing was saved yet
    as_saved(monkeypatch)
    resumed = fill_open_fields(open_now, tmp_path / "begun")
    assert [field_value(resumed, name) for name in fields] == [8, 1, 1e-3, 2]
    assert (resumed.model.size, resumed.seed) == ("nano", 3)
    assert fill_open_fields(with_values(open_now, {"batch_size": 16}), tmp_path / "begun") == (
        with_values(resumed, {"batch_size": 16})
    )
    student = inherit(open_now, workdir.load_config(tmp_path / "begun"))
    assert (student.model.size, student.model.patch_size, student.batch_size) == ("nano", 2, None)


def test_a_run_without_images_has_the_classes_of_its_teacher(tmp_path, config):
    start_run(tmp_path / "teacher", config)
    config.teacher = f"{tmp_path / 'teacher'}@5"
    workdir.start_run(tmp_path / "student", config)
    assert class_names(tmp_path / "student") == ("2", "10")
    assert class_names(tmp_path / "nothing") == ()


def test_preparing_mends_the_arrays_of_older_runs_too(tmp_path, config, capsys):
    arguments = {"data_dir": config.data.dir, "image_size": 8, "channels": 1}
    name = config.data.name
    folder = data.prepare_dataset(data.Selection(name, decoding=data.FIRST_DECODING, **arguments))
    (folder / "train_images.npy").write_bytes(b"damaged")
    newest = data.prepare_dataset(data.Selection(name, **arguments))
    assert newest != folder
    assert "decoding again" in capsys.readouterr().err
    assert grey_levels(
        data.load_selection(data.Selection(name, decoding=data.FIRST_DECODING, **arguments))
    ) == {
        0: 255,
        1: 255,
    }


def test_fields_of_records_that_lack_them_are_those_of_the_time():
    new = as_dict(small_config())
    older = {**new, "data": {k: v for k, v in new["data"].items() if k not in LATER}}
    new["data"]["decoding"] = data.FIRST_DECODING
    assert identity.config_changes(older, new) == []
