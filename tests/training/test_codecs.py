"""The codec of a run: where its parameters come from, its scale, and what is refused."""

import pickle

import jax
import numpy as np
import pytest

from fewstep.data import Dataset
from fewstep.data.arrays.shards import CHUNK
from fewstep.data.encoded import with_latents
from fewstep.files import write_npz
from fewstep.models import codecs as CODECS
from fewstep.models.codecs import NamedCodec
from fewstep.models.tiny_autoencoder import tiny_autoencoder
from fewstep.training import codec_weights as WEIGHTS
from fewstep.training import encoding as ENCODING
from fewstep.training.codec_weights import load_codec, load_same_codec
from fewstep.training.codecs import (
    network_decoder,
    network_encoder,
    on_this_host,
    rows_at_once,
)
from fewstep.training.encoding import dataset_encoder as encoder
from fewstep.training.encoding import encode_dataset
from fewstep.training.experiment import build
from fewstep.weights.layouts.names import flatten
from tests.training.runs import small_config, synthetic_split


@pytest.fixture
def dataset():
    return Dataset("digits", synthetic_split(40), None, 10)


@pytest.fixture
def config(tmp_path):
    def make(method="flow_matching", name="linear", **fields):
        fields = {"codec.name": name, "data.dir": str(tmp_path), "model.patch_size": 1, **fields}
        return small_config(method, **fields)

    return make


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """A codec that needs weights, and the file of random ones."""
    named = NamedCodec(tiny_autoencoder, {"width": 8, "blocks": (1, 1)}, None)
    monkeypatch.setitem(CODECS.CODECS, "trained", named)
    codec = named.build((8, 8, 1), **named.fields)
    file = tmp_path / "weights.npz"
    write_npz(file, **flatten(jax.device_get(codec.init(jax.random.key(1)))))
    return file


def test_a_fitted_codec_is_fitted_once_and_known_by_its_fingerprint(config, dataset, tmp_path):
    resolved, found = encode_dataset(config(), dataset)
    assert resolved.codec.fingerprint == found.moments.codec["fingerprint"]
    (kept,) = (tmp_path / "codecs").iterdir()
    assert kept.name == f"linear-{resolved.codec.fingerprint}.npz"
    # A recorded config finds it without images.
    known = load_codec(resolved)
    refitted = load_codec(config(), dataset.train.images)
    jax.tree.map(np.testing.assert_array_equal, known.params, refitted.params)
    kept.unlink()
    fresh = resolved.copy_and_resolve_references()
    fresh.data.dir = str(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="the linear codec of this run is not in .*prepare"):
        load_codec(fresh)
    load_codec(fresh, dataset.train.images)  # fits it again, and keeps it
    jax.tree.map(np.testing.assert_array_equal, known.params, load_codec(fresh).params)


def test_a_codec_of_a_run_is_read_by_all_processes(config, dataset, monkeypatch, tmp_path):
    asked = config(**{"codec.weights": str(tmp_path)})
    monkeypatch.setattr(WEIGHTS.workdir, "is_run", lambda folder: True)
    monkeypatch.setattr(WEIGHTS, "decides", lambda: False)
    monkeypatch.setattr(WEIGHTS, "load_codec", lambda *given: given)
    assert load_same_codec(asked, dataset.train.images)[0] is asked


def test_an_open_scale_is_that_of_process_0(config, dataset, trained, monkeypatch):
    own = config(name="trained", **{"codec.weights": str(trained)})
    _, found = encode_dataset(own, dataset)
    first = lambda here: here if isinstance(here, str) else [[2.0] * 4, [0.5] * 4]
    monkeypatch.setattr(ENCODING, "broadcast", first)
    fields = ENCODING.resolve_codec(own, found).codec
    assert (fields.scale, fields.shift) == ((2.0,) * 4, (2.0,) * 4)


def test_what_finishes_samples_inverts_what_training_reads(config, dataset):
    resolved, found = encode_dataset(config(), dataset)
    space = build(resolved).space
    assert (space.name, space.shape, space.example.shape) == ("latents", (2, 2, 4), (8, 8, 1))
    images = dataset.train.images[:7]
    latents = network_encoder(resolved)(images)
    np.testing.assert_allclose(found.moments.array[:7, 0, 0], latents, atol=2e-3)
    # Four components of patches of sixteen pixels keep the best approximation of rank four.
    shown = space.finish(latents)
    assert shown.dtype == np.uint8 and shown.shape == images.shape
    again = network_encoder(resolved)(shown)
    assert np.abs(again - latents).mean() < 0.1 * np.abs(latents).mean()
    assert resolved.codec.fingerprint in space.rounding


def test_an_open_scale_is_that_of_the_latents_and_a_given_one_stays(config, dataset, trained):
    name = {"name": "trained", "codec.weights": str(trained)}
    resolved, found = encode_dataset(config(**name), dataset)
    scale, shift = (np.asarray(v) for v in (resolved.codec.scale, resolved.codec.shift))
    drawn = found.moments.array[:, 0, 0].astype(np.float64)
    scaled = (drawn - shift) * scale
    np.testing.assert_allclose(scaled.mean(axis=(0, 1, 2)), 0.0, atol=1e-6)
    np.testing.assert_allclose(scaled.std(axis=(0, 1, 2)), 1.0, atol=1e-6)
    given = config(**name, **{"codec.scale": (3.0,)})
    resolved, _ = encode_dataset(given, dataset)
    assert (resolved.codec.scale, resolved.codec.shift) == ((3.0,), ())
    latents = network_encoder(resolved)(dataset.train.images[:2])
    np.testing.assert_allclose(latents, 3.0 * drawn[:2], atol=3e-2)
    decoded = network_decoder(resolved)(latents)
    assert decoded.shape == (2, 8, 8, 1)


def test_weights_are_required_found_and_those_of_the_run(config, dataset, trained, tmp_path):
    with pytest.raises(ValueError, match="codec.weights is required for codec.name=trained"):
        encoder(config(name="trained"), dataset)
    with pytest.raises(FileNotFoundError, match="codec.weights=/nowhere does not exist"):
        encoder(config(name="trained", **{"codec.weights": "/nowhere"}), dataset)
    good = config(name="trained", **{"codec.weights": str(trained)})
    good, _ = encode_dataset(good, dataset)
    with np.load(trained) as arrays:
        other = {name: array + 1 for name, array in arrays.items()}
        wrong = {name: array[..., :1] for name, array in arrays.items()}
    write_npz(tmp_path / "other.npz", **other)
    good.codec.weights = str(tmp_path / "other.npz")
    with pytest.raises(ValueError, match="other.npz is another codec .* than the run's"):
        load_codec(good)
    # A checkpoint of a training, as Stable Diffusion is published, has its tensors in a part.
    content = {"global_step": np.int64(7), "state_dict": other}
    (tmp_path / "model.ckpt").write_bytes(pickle.dumps(content))
    good.codec.weights = str(tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match="model.ckpt is another codec .* than the run's"):
        load_codec(good)
    write_npz(tmp_path / "wrong.npz", **wrong)
    good.codec.weights = str(tmp_path / "wrong.npz")
    with pytest.raises(ValueError, match=r"wrong.npz belongs to another network than .*trained"):
        load_codec(good)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "sd", "data.image_size": 12}, "codec.name=sd: .* 12 x 12 pixels; this codec"),
        ({"name": "linaer"}, "codec.name='linaer'.*did you mean 'linear'"),
        ({"data.image_size": 10}, "10 x 10 pixels; this codec takes sides that 4 divides"),
        ({"codec.scale": (1.0, 2.0)}, r"codec.scale has 2 values; latents of 4 channels"),
        (
            {"data.name": "mixture:ring", "data.image_size": 0, "data.channels": 0},
            "codec.name=linear is for images, and data.name=mixture",
        ),
    ],
)
def test_codecs_that_do_not_fit_the_images_are_refused(config, fields, message):
    with pytest.raises(ValueError, match=message):
        build(config(**fields))


def test_rows_are_made_in_batches_of_one_size(config, dataset, monkeypatch):
    resolved, _ = encode_dataset(config(), dataset)
    whole = network_encoder(resolved)(dataset.train.images)
    monkeypatch.setattr("fewstep.training.codecs.CPU_PIXELS", 64)
    by_ones = network_encoder(resolved)(dataset.train.images[:19])
    np.testing.assert_allclose(by_ones, whole[:19], atol=1e-5)


def test_a_batch_is_small_and_as_small_images_are_encoded():
    # The decoder of Stable Diffusion needs 224 MiB for each image of 256 x 256.
    assert 0.224 * rows_at_once((256, 256, 3), "gpu") < 1.0
    assert rows_at_once((256, 256, 3), "cpu") == 1
    assert rows_at_once((1024, 1024, 3), "tpu") == 1
    # Both views of 256 images, on eight devices.
    assert rows_at_once((32, 32, 3), "tpu") == rows_at_once((8, 8, 1), "cpu") == 2 * CHUNK / 8


def test_a_number_of_rows_neither_compiles_anew_nor_changes_bits():
    compiled = []

    def encode(params, rows):
        compiled.append(rows.shape)
        return rows * params

    shape = (128, 256, 3)  # two for each of 8 CPU devices
    apply = on_this_host(encode, np.float32(0.5), shape)
    rows = np.random.default_rng(0).normal(size=(19, *shape)).astype(np.float32)
    for count in (1, 16, 19):
        np.testing.assert_array_equal(apply(rows[:count]), 0.5 * rows[:count])
    assert compiled == [(2 * 8, *shape)]


def test_memory_that_is_not_enough_names_the_codec(monkeypatch):
    def fail(text):
        def encode(params, rows):
            raise jax.errors.JaxRuntimeError(text)

        return on_this_host(encode, np.float32(0.5), (8, 16, 1))

    rows = np.zeros((3, 8, 16, 1), np.float32)
    words = r"codec \(RESOURCE_EXHAUSTED: 9 GiB\), which computes 64 .* of 8 x 16 pixels"
    with pytest.raises(ValueError, match=words):
        fail("RESOURCE_EXHAUSTED: 9 GiB\nstack")(rows)
    with pytest.raises(jax.errors.JaxRuntimeError, match="no kernel"):
        fail("INTERNAL: no kernel")(rows)


def test_identities_differ_by_codec(config, dataset, tmp_path):
    first = with_latents(dataset, encoder(config(), dataset), tmp_path)
    plain = with_latents(dataset, encoder(config(name="pixels"), dataset), tmp_path)
    assert first.identity["latents"] != plain.identity["latents"]
    assert plain.moments.array.shape == (40, 2, 2, 8, 8, 1)
