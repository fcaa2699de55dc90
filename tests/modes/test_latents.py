"""A run on latents is prepared, trained, evaluated, sampled and taught from like one on pixels.

The pictures are photographs, and the codec a tiny one of Stable Diffusion's layout.
"""

from importlib import import_module
from pathlib import Path

import jax
import matplotlib
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from fewstep.data.encoded import LATENTS
from fewstep.eval.report.runs import load_runs
from fewstep.models import codecs as CODECS
from fewstep.models.autoencoder import autoencoder
from fewstep.models.codecs import NamedCodec
from fewstep.modes.checks import inspect_earlier_run
from fewstep.modes.job import prepare_job
from fewstep.modes.joint_checks import inspect_first_batch
from fewstep.modes.next_job import NextJob
from fewstep.modes.prepare import prepare
from fewstep.modes.recorded_run import load_run
from fewstep.modes.request import Request
from fewstep.modes.resolve import load_local_copy, resolve_and_load
from fewstep.modes.student import read_student
from fewstep.training.storage import workdir
from fewstep.training.storage.identity import as_dict
from fewstep.weights.layouts.autoencoder import Structure, write_autoencoder
from tests.data.latent_fixtures import write_shard
from tests.training.runs import small_config

TRAIN, SAMPLE = (import_module(f"fewstep.modes.{name}") for name in ("train_run", "sample"))
EVALUATE = import_module("fewstep.modes.evaluate_run")


SIDE, CROP = 8, 80
# Stable Diffusion's network with a hundredth of its width, and half of its levels.
STRUCTURE = Structure((4, 8), 1, 4, quant_convolutions=True, attention=True, channels=3)
TINY = {**STRUCTURE.fields, "groups": 4}


def write_photographs(folder):
    """Write 75 crops of three photographs, in two classes."""
    china, flower = load_sample_images().images
    hopper = Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")
    for name, picture in {
        "landscape/china": china,
        "portrait/flower": flower,
        "portrait/hopper": np.asarray(Image.open(hopper).convert("RGB")),
    }.items():
        for row in range(0, 400, CROP):
            for column in range(0, 400, CROP):
                file = folder / f"{name}_{row}_{column}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture[row : row + CROP, column : column + CROP]).save(file)


@pytest.fixture(scope="module", autouse=True)
def data_folder(tmp_path_factory):
    """The folder of prepared data; beside it are the photographs and the weights of the codec."""
    root = tmp_path_factory.mktemp("photographs")
    write_photographs(root / "pictures")
    params = jax.device_get(autoencoder((SIDE, SIDE, 3), **TINY).init(jax.random.key(3)))
    write_shard(root / "vae.safetensors", **write_autoencoder(params, STRUCTURE, "diffusers"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSTEP_DATA", str(root / "data"))
        patch.setitem(CODECS.CODECS, "sd", NamedCodec(autoencoder, TINY, None))
        yield root / "data"


@pytest.fixture(scope="module")
def config_of(data_folder):
    """A function from a method and fields to the config of a run on latents of the photographs."""

    def make(method="flow_matching", **fields):
        config = small_config(method)
        config.steps, config.optimizer.warmup_steps, config.model.patch_size = 2, 0, 1
        config.data.name = f"folder:{data_folder.parent / 'pictures'}"
        config.data.image_size, config.data.channels, config.data.num_classes = SIDE, 3, -1
        config.codec.name = "sd"
        config.codec.weights = str(data_folder.parent / "vae.safetensors")
        config.evaluate.steps, config.evaluate.num_samples = (1,), 32
        config.evaluate.features, config.evaluate.batch_size = "pixels", 16
        config.update_from_flattened_dict(fields)
        return config

    return make


@pytest.fixture(scope="module")
def run(tmp_path_factory, config_of):
    """The folder of a trained and evaluated run."""
    folder = tmp_path_factory.mktemp("latents") / "run"
    TRAIN.train_run(Request(config=config_of(), workdir=folder))
    return folder


@pytest.mark.some_days(3)
def test_the_record_has_the_codec_and_the_identity_of_the_latents(run):
    recorded = workdir.recorded_identity(run)
    codec = recorded.config["codec"]
    assert codec["name"] == "sd" and len(codec["scale"]) == len(codec["shift"]) == 4
    assert recorded.data[LATENTS]["fingerprint"] == codec["fingerprint"] != ""
    assert recorded.config["data"]["image_size"] == SIDE
    assert recorded.data["classes"] == ["landscape", "portrait"]


def test_metrics_are_of_decoded_pictures(run):
    (shown,) = load_runs([run])
    (result,) = shown.results.values()
    assert shown.images[1].dtype == np.uint8 and shown.images[1].shape[1:] == (SIDE, SIDE, 3)
    measured = result["protocol"]["measurement"]
    assert measured["rounding"].startswith("decoded by sd ")


def test_preparing_again_verifies(run, config_of, data_folder, capsys):
    prepare(Request(config=config_of()))
    said = capsys.readouterr()
    assert "pictures as latents train: 75 images verified" in said.err
    assert f"its latents by sd are ready in {data_folder}" in said.out


def test_samples_are_pictures(run, tmp_path):
    SAMPLE.sample(Request(workdir=run, seeds=range(3), steps=2, out=tmp_path / "drawn"))
    files = sorted((tmp_path / "drawn").glob("*.png"))
    assert len(files) == 3 and {Image.open(file).size for file in files} == {(SIDE, SIDE)}


def test_an_evaluation_needs_no_latents(run, tmp_path, monkeypatch):
    monkeypatch.setattr("fewstep.modes.resolve.encode_dataset", None)
    EVALUATE.evaluate_run(Request(workdir=run, out=tmp_path / "eval"))
    assert list((tmp_path / "eval").rglob("*.json"))


def test_a_local_disk_gets_the_latents_alone(run, config_of, tmp_path):
    config, _ = resolve_and_load(config_of(**{"data.local_dir": str(tmp_path)}))
    assert not list(tmp_path.iterdir())  # checks come before copies
    copied = load_local_copy(config)
    (folder,) = (tmp_path / "arrays").iterdir()
    assert "pictures_as_latents-" in folder.name
    assert str(copied.moments.array.filename).startswith(str(folder))
    assert not str(copied.train.images.filename).startswith(str(tmp_path))


def test_the_doctor_reads_latents_and_makes_none(run, config_of, tmp_path):
    job = NextJob(Request(config=config_of(), workdir=run))
    assert job.dataset.moments is not None
    assert inspect_first_batch(job) == "64 rows in each process"
    assert inspect_earlier_run(job) == "goes on from step 2"
    fresh = config_of(**{"data.dir": str(tmp_path / "data")})
    job = NextJob(Request(config=fresh, workdir=tmp_path / "run"))
    assert "training encodes the images first" in inspect_first_batch(job)
    assert not list((tmp_path / "data").rglob("*latents*"))


def test_a_student_takes_the_codec_of_its_teacher(run, config_of, tmp_path):
    own = config_of("sim_flow", **{"codec.name": "", "teacher": str(run)})
    own = Request(config=own, workdir=tmp_path / "student", given=("teacher",))
    student = read_student(own).config
    taught = as_dict(workdir.load_config(run))["codec"]
    assert as_dict(student)["codec"] == taught
    # It reads no images, so it needs no latents of them.
    resolved, dataset = resolve_and_load(student)
    assert as_dict(resolved)["codec"] == taught and (dataset is None or dataset.moments is None)


@pytest.mark.in_turn("on_device", 2)
@pytest.mark.parametrize("on_device", [False, True])
def test_a_run_goes_on_with_the_latents_that_it_began_with(config_of, tmp_path, on_device):
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


@pytest.mark.some_days(2)
def test_the_latents_alone_train_the_same_network(run, config_of, data_folder, tmp_path):
    prepare(Request(config=config_of()))
    (folder,) = (data_folder / "arrays").glob("*as_latents*")
    pictures = f"folder:{data_folder.parent / 'pictures'}"
    alone = {"data.name": f"latents:{folder}", "evaluate.reference": pictures}
    config = config_of(**alone, **{"data.image_size": 0})
    TRAIN.train_run(Request(config=config, workdir=tmp_path / "alone"))
    # The same posteriors in the same order, measured against the same pictures.
    results = [load_runs([path])[0].results for path in (run, tmp_path / "alone")]
    ours, theirs = (result["metrics"] for own in results for result in own.values())
    assert ours == theirs != {}
    for fields, message in (
        ({"evaluate.reference": "train"}, "latents and no pictures; .*reference=folder:PATH"),
        ({"codec.name": "linear"}, "has latents by codec.name=sd, not linear"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare_job(tmp_path / "new", config_of(**{**alone, **fields}))
