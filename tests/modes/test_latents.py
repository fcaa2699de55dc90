"""A run on latents is prepared, trained, evaluated, sampled and taught from like one on pixels."""

from importlib import import_module

import jax
import numpy as np
import pytest
from PIL import Image

from fewstep.data.encoded import LATENTS
from fewstep.eval.report.runs import load_runs
from fewstep.modes.prepare import prepare
from fewstep.modes.recorded_run import load_run
from fewstep.modes.request import Request, resolve_and_load
from fewstep.modes.student import read_student
from fewstep.training.storage import workdir
from fewstep.training.storage.identity import as_dict
from tests.training.runs import small_config

TRAIN, SAMPLE = (import_module(f"fewstep.modes.{name}") for name in ("train_run", "sample"))
EVALUATE = import_module("fewstep.modes.evaluate_run")


def config_of(method="flow_matching", **fields):
    config = small_config(method)
    config.steps, config.optimizer.warmup_steps = 2, 0
    config.data.name, config.codec.name, config.model.patch_size = "digits", "linear", 1
    config.evaluate.steps, config.evaluate.num_samples = (1,), 32
    config.evaluate.features, config.evaluate.batch_size = "pixels", 16
    config.update_from_flattened_dict(fields)
    return config


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSTEP_DATA", str(folder))
        yield folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_folder):
    """The folder of a trained and evaluated run."""
    folder = tmp_path_factory.mktemp("latents") / "run"
    TRAIN.train_run(Request(config=config_of(), workdir=folder))
    return folder


def test_the_record_has_the_codec_and_the_identity_of_the_latents(run):
    recorded = workdir.recorded_identity(run)
    codec = recorded.config["codec"]
    assert (codec["name"], codec["scale"], codec["shift"]) == ("linear", [1.0], [0.0])
    assert recorded.data[LATENTS]["fingerprint"] == codec["fingerprint"] != ""
    assert recorded.config["data"]["image_size"] == 8


def test_metrics_are_of_decoded_pictures(run):
    (shown,) = load_runs([run])
    (result,) = shown.results.values()
    assert shown.images[1].dtype == np.uint8 and shown.images[1].shape[1:] == (8, 8, 1)
    measured = result["protocol"]["measurement"]
    assert measured["rounding"].startswith("decoded by linear ")


def test_preparing_again_verifies(run, data_folder, capsys):
    prepare(Request(config=config_of()))
    said = capsys.readouterr()
    assert "digits as latents train: 1437 images verified" in said.err
    assert f"its latents by linear are ready in {data_folder}" in said.out


def test_samples_are_pictures(run, tmp_path):
    SAMPLE.sample(Request(workdir=run, seeds=range(3), steps=2, out=tmp_path / "drawn"))
    files = sorted((tmp_path / "drawn").glob("*.png"))
    assert len(files) == 3 and {Image.open(file).size for file in files} == {(8, 8)}


def test_an_evaluation_needs_no_latents(run, tmp_path, monkeypatch):
    monkeypatch.setattr("fewstep.modes.request.encode_dataset", None)
    EVALUATE.evaluate_run(Request(workdir=run, out=tmp_path / "eval"))
    assert list((tmp_path / "eval").rglob("*.json"))


def test_a_student_takes_the_codec_of_its_teacher(run, tmp_path):
    own = config_of("sim_flow", **{"codec.name": "", "teacher": str(run)})
    own = Request(config=own, workdir=tmp_path / "student", given=("teacher",))
    student = read_student(own).config
    taught = as_dict(workdir.load_config(run))["codec"]
    assert as_dict(student)["codec"] == taught
    # It reads no images, so it needs no latents of them.
    resolved, dataset = resolve_and_load(student)
    assert as_dict(resolved)["codec"] == taught and (dataset is None or dataset.moments is None)


@pytest.mark.parametrize("on_device", [False, True])
def test_a_run_goes_on_with_the_latents_that_it_began_with(run, tmp_path, on_device):
    first = tmp_path / "whole"
    longer = {"steps": 4, "optimizer.schedule": "constant", "evaluate.steps": ()}
    TRAIN.train_run(Request(config=config_of(**longer), workdir=first))
    second = tmp_path / "parts"
    fields = {**longer, "data.on_device": on_device}
    TRAIN.train_run(Request(config=config_of(**{**fields, "steps": 2}), workdir=second))
    TRAIN.train_run(Request(config=config_of(**fields), workdir=second))
    loaded = [restore_params(folder) for folder in (first, second)]
    jax.tree.map(np.testing.assert_array_equal, *loaded)


def restore_params(folder):
    return jax.device_get(load_run(Request(workdir=folder)).params)
