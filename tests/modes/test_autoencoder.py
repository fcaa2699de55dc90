"""A codec is trained by the command line, evaluated by reconstructions, and then encodes."""

import json
import shutil
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.data import Selection, load_selection
from fewstep.eval.report.runs import load_runs
from fewstep.latents.codec import Moments
from fewstep.latents.linear import fit_linear_codec, linear_codec
from fewstep.models.codecs import CODECS, fit_codec
from fewstep.modes.evaluate_run import evaluate_run
from fewstep.modes.recorded_run import load_run, moved_run
from fewstep.modes.request import Request
from fewstep.modes.resolve import resolve_and_load
from fewstep.modes.train_run import train_run
from fewstep.training.codec_weights import load_codec, pin_codec
from fewstep.training.experiment import build
from fewstep.training.storage import restore, workdir
from tests.training.runs import save_run, small_config

SAMPLE, WEIGHTS = map(import_module, ("fewstep.modes.sample", "fewstep.training.codec_weights"))
ROWS = 48


def config_of(method="autoencoder", **fields):
    config = small_config(method)
    config.steps, config.data.name, config.optimizer.warmup_steps = 2, "digits", 0
    config.optimizer.learning_rate = 1e-9  # parameters stay as they start
    config.evaluate.num_samples, config.evaluate.batch_size = ROWS, 16
    config.update_from_flattened_dict(fields)
    return config


def noisy_linear_codec(shape):
    """The linear codec with a trained deviation; it compiles in a second."""
    linear = linear_codec(shape)

    def init(key):
        parts = {half: {"linear": part} for half, part in linear.init(key).items()}
        return {**parts, "encoder": {**parts["encoder"], "log_std": jnp.full(4, -3.0)}}

    def encode(params, images):
        mean = linear.encode({"encoder": params["encoder"]["linear"]}, images).mean
        return Moments(mean, jnp.broadcast_to(jnp.exp(params["encoder"]["log_std"]), mean.shape))

    def decode(params, latents):
        return linear.decode({"decoder": params["decoder"]["linear"]}, latents)

    return linear._replace(init=init, encode=encode, decode=decode)


def fit_noisy_linear(images):
    return {half: {"linear": part} for half, part in fit_linear_codec(images).items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a trained and evaluated codec."""
    folder = tmp_path_factory.mktemp("codec") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSTEP_DATA", str(tmp_path_factory.mktemp("data")))
        quick = {"build": noisy_linear_codec, "fit": fit_noisy_linear, "fields": {}}
        patch.setitem(CODECS, "f4", CODECS["f4"]._replace(**quick))
        train_run(Request(config=config_of(), workdir=folder))
        yield folder


def test_a_run_starts_from_what_is_fitted_to_its_images(run):
    images = load_selection(Selection("digits")).train.images
    params = load_run(Request(workdir=run)).params
    fitted = fit_codec("f4", images)
    for half in fitted:
        ours, expected = params[half]["linear"], fitted[half]["linear"]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours, expected)


def test_an_evaluation_is_of_reconstructed_held_out_images(run):
    (shown,) = load_runs([run])
    (result,) = shown.results.values()
    held_out = load_selection(Selection("digits")).test
    loaded = load_run(Request(workdir=run))
    codec = loaded.experiment.model.network.codec
    images = held_out.images[np.random.default_rng(0).permutation(len(held_out.labels))[:ROWS]]
    made = np.asarray(codec.decode(loaded.params, codec.encode(loaded.params, images).mean))
    stored = loaded.experiment.space.finish(made)
    first = shown.images[1]
    assert np.abs(first.astype(int) - stored[: len(first)].astype(int)).max() <= 1
    error = ((np.clip(made, -1, 1) - (images / 127.5 - 1)) ** 2).mean(axis=(1, 2, 3))
    assert result["metrics"]["psnr"] == pytest.approx(np.mean(10 * np.log10(4 / error)), abs=1e-3)
    assert result["metrics"]["frechet"] >= 0.0
    measured = result["protocol"]["measurement"]
    assert (measured["samples"], measured["labels"]) == (
        ROWS,
        "of a random part of the test images, reconstructed",
    )


def test_more_samples_than_images_are_all_images(run, tmp_path):
    config = config_of(**{"evaluate.num_samples": 5000})
    request = Request(config=config, workdir=run, out=tmp_path, given=("evaluate.num_samples",))
    evaluate_run(request)
    (file,) = tmp_path.rglob("*.json")
    measured = json.loads(file.read_text())["protocol"]["measurement"]
    assert (measured["samples"], measured["labels"]) == (360, "of the test images, reconstructed")


def test_a_codec_draws_no_samples(run):
    with pytest.raises(ValueError, match=r"has trained a codec, .*--config.codec.weights="):
        SAMPLE.sample(Request(workdir=run, seeds=range(3), steps=1))


def test_its_latents_are_trained_on(run):
    fields = {"codec.name": "f4", "codec.weights": str(run), "model.patch_size": 1}
    config, dataset = resolve_and_load(config_of("flow_matching", **fields))
    params = load_run(Request(workdir=run)).params
    jax.tree.map(np.testing.assert_array_equal, load_codec(config).params, params)
    # They are scaled to deviation 1, since no scale is published.
    latents = build(config).space.shape
    assert latents == (2, 2, 4) and len(config.codec.scale) == 4
    assert dataset.moments.codec["fingerprint"] == config.codec.fingerprint
    at_step = config.copy_and_resolve_references()
    at_step.codec.weights = f"{run}@2"
    assert load_codec(at_step).fingerprint == config.codec.fingerprint


def test_a_run_keeps_the_step_of_its_codec(run, tmp_path, monkeypatch):
    asked = config_of("flow_matching", **{"codec.name": "f4", "codec.weights": str(run)})
    assert pin_codec(asked, tmp_path).codec.weights == f"{run}@2"
    file = config_of("flow_matching", **{"codec.weights": "weights.safetensors"})
    assert pin_codec(file, tmp_path) is file
    own = tmp_path / "own"
    kept = asked.copy_and_resolve_references()
    kept.codec.weights = "/moved@1"
    workdir.start_run(own, kept)
    assert pin_codec(asked, own).codec.weights == f"{run}@2"  # nothing was saved
    monkeypatch.setattr(restore, "has_checkpoint", lambda folder: folder in (own, run))
    assert pin_codec(asked, own).codec.weights == f"{run}@2"  # there is no such step
    monkeypatch.setattr(WEIGHTS, "has_step", lambda folder, step: (folder, step) == (run, 1))
    assert pin_codec(asked, own).codec.weights == f"{run}@1"
    asked.codec.weights = f"{run}@2"
    assert pin_codec(asked, own).codec.weights == f"{run}@2"


def test_a_codec_that_moved_keeps_the_step_of_the_record(run):
    assert moved_run("/a@1", f"{run}") == f"{run}@1"
    assert moved_run("/a@1", f"{run}@2") == f"{run}@2"
    assert moved_run("/a@1", "") == "/a@1" and moved_run("", "/b") == "/b"
    assert moved_run("/a@1", "/b.safetensors") == "/b.safetensors"


def test_a_codec_that_is_trained_anew_is_another(run, tmp_path):
    asked = config_of("flow_matching", **{"codec.name": "f4", "codec.weights": f"{tmp_path}/run@5"})
    prints = []
    for seed in (1, 2):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        save_run(tmp_path / "run", "autoencoder", seed=seed)
        prints.append(load_codec(asked).fingerprint)
    assert prints[0] != prints[1]


def test_codecs_that_a_run_has_not_trained_are_refused(run, tmp_path):
    fields = {"codec.name": "f4", "codec.weights": str(run)}
    with pytest.raises(ValueError, match="was trained on images of 1 channels; these have 3"):
        load_codec(config_of("flow_matching", **fields, **{"data.channels": 3}))
    other = save_run(tmp_path / "other", "flow_matching")
    for weights, name in ((other, "f4"), (str(run), "sd")):
        fields = {"codec.name": name, "codec.weights": weights, "data.image_size": 8}
        with pytest.raises(ValueError, match=f"has trained no codec {name}; name one of autoenc"):
            load_codec(config_of("flow_matching", **fields))
    with pytest.raises(ValueError, match="codec.weights is required .*train one with --config"):
        load_codec(config_of("flow_matching", **{"codec.name": "f4"}))


def test_an_autoencoder_trains_on_images_alone():
    with pytest.raises(ValueError, match="codec.name=linear is not used by autoencoder"):
        build(config_of(**{"codec.name": "linear"}))
