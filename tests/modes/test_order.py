"""A run keeps the data order that it began with, in every mode that makes batches."""

import json
from importlib import import_module

import numpy as np
import pytest

from fewstep import data
from fewstep.data.order import ORDERS
from fewstep.modes import job as JOB
from fewstep.modes.joint_checks import inspect_first_batch
from fewstep.modes.next_job import NextJob
from fewstep.modes.request import Request
from fewstep.training.experiment import build_on
from fewstep.training.report import NonFiniteError
from fewstep.training.sharding import make_mesh
from fewstep.training.storage import identity, workdir
from fewstep.training.storage.seal import seal_record, unseal_record
from tests.training.runs import small_config

TRAIN, REPLAY = import_module("fewstep.modes.train_run"), import_module("fewstep.modes.replay")
CONFIG = small_config("flow_matching", **{"data.name": "digits", "evaluate.steps": ()})


def first_rows(order):
    """Return the labels of the first batch of a run with this data order."""
    split = data.load_selection(data.Selection("digits")).train
    return next(data.image_batches(split, batch_size=64, seed=0, order=order))["label"]


@pytest.fixture(params=ORDERS)
def new_run(request, tmp_path):
    """The folder of a run before its first step, its data order and its first labels."""
    config = JOB.prepare_job(tmp_path, CONFIG).config
    workdir.start_run(tmp_path, config)
    if request.param == 1:  # records of the first version have no number
        path = tmp_path / identity.RUN
        record = unseal_record(json.loads(path.read_text()))
        del record["order"]
        path.write_text(json.dumps(seal_record(record)))
    return tmp_path, request.param, first_rows(request.param)


def test_orders_differ():
    assert (first_rows(1) != first_rows(2)).any()


def test_training_goes_on_in_the_order_that_it_began(new_run, monkeypatch):
    folder, order, labels = new_run

    def diverge(training, stream, *_, **__):
        np.testing.assert_array_equal(next(stream.batches(0))["images"]["label"], labels)
        raise NonFiniteError("broken", 4, {"loss": np.inf})

    monkeypatch.setattr(TRAIN, "train_network", diverge)
    for _ in range(2):  # the first start writes a new record
        with pytest.raises(NonFiniteError, match="broken"):
            TRAIN.train_run(Request(config=CONFIG, workdir=folder))
        assert identity.read_identity(folder).order == order
    count = len(data.load_selection(data.Selection("digits")).train.labels)
    images = data.batch_indices(count, batch_size=64, seed=0, step=3, order=order)
    assert json.loads((folder / "replay" / "4.json").read_text())["indices"] == images.tolist()


class OrderRequested(Exception):
    """Its argument is the data order of the requested batches."""


def test_replay_and_doctor_read_in_the_order_of_the_run(new_run, monkeypatch):
    folder, order, _ = new_run

    def ask(*_, **share):
        raise OrderRequested(share["order"])

    monkeypatch.setattr(data, "image_batches", ask)
    with pytest.raises(OrderRequested, match=str(order)):
        inspect_first_batch(NextJob(Request(config=CONFIG, workdir=folder)))
    config, mesh = workdir.load_config(folder), make_mesh()
    experiment = build_on(config, mesh)
    job = JOB.assemble_job(
        folder, config, experiment, data.load_selection(data.Selection("digits")), mesh
    )
    with pytest.raises(OrderRequested, match=str(order)):
        REPLAY.redo_step(folder, 1, job)
