"""Latents on disk: two views of every image, made once, found again, and damaged."""

import numpy as np
import pytest

from fewstep.data import Dataset, Posteriors, Split, moment_batches, verify
from fewstep.data import encoded as ENCODED
from fewstep.data.encoded import (
    Encoder,
    channel_statistics,
    prepare_latents,
    with_latents,
)

COUNT, SHAPE = 11, (4, 6, 3)


@pytest.fixture
def dataset(draw_images):
    labels = np.arange(COUNT, dtype=np.int32) % 3
    return Dataset("folder:x", Split(draw_images(COUNT, *SHAPE), labels), None, 3)


def halve(images):
    """Means of 2 x 2 squares, with the first column as deviation; no mirror symmetry."""
    x = images.astype(np.float32).reshape(len(images), 2, 2, 3, 2, 3)
    return np.stack([x.mean(axis=(2, 4)), x[:, :, 0, :, 0]], axis=1)


def encoder(encode=halve, fingerprint="a"):
    return Encoder("halves", {"codec": "halves", "fingerprint": fingerprint}, (2, 3, 3), encode)


def refuse(images):
    raise AssertionError("encoded twice")


def test_both_views_of_every_image_are_kept(dataset, tmp_path):
    found = with_latents(dataset, encoder(), tmp_path)
    images = dataset.train.images
    expected = np.stack([halve(images), halve(images[:, :, ::-1])], axis=1).astype(np.float16)
    assert found.moments.array.dtype == np.float16
    np.testing.assert_array_equal(found.moments.array, expected)
    # A mirrored latent is another one.
    assert (expected[:, 0, :, :, ::-1] != expected[:, 1]).any()
    assert found.train is dataset.train
    again = with_latents(dataset, encoder(refuse), tmp_path)
    np.testing.assert_array_equal(again.moments.array, expected)
    assert again.identity == found.identity != dataset.identity
    assert found.identity["latents"]["fingerprint"] == "a"


def test_other_images_and_other_codecs_have_latents_of_their_own(dataset, tmp_path):
    first = with_latents(dataset, encoder(), tmp_path)
    other = with_latents(dataset, encoder(lambda x: 2 * halve(x), "b"), tmp_path)
    np.testing.assert_array_equal(other.moments.array, 2 * first.moments.array)
    changed = dataset.train._replace(images=255 - dataset.train.images)
    third = with_latents(dataset._replace(train=changed), encoder(), tmp_path)
    assert (third.moments.array != first.moments.array).any()


def test_an_interrupted_encoding_continues_at_its_shard(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(ENCODED, "SHARD_ROWS", 4)
    encoded = []

    def stop_late(images):
        if len(encoded) == 2:
            raise KeyboardInterrupt
        encoded.append(len(images))
        return halve(images)

    with pytest.raises(KeyboardInterrupt):
        with_latents(dataset, encoder(stop_late), tmp_path)
    encoded.clear()
    found = with_latents(dataset, encoder(lambda x: encoded.append(len(x)) or halve(x)), tmp_path)
    assert encoded == [6]  # both views of the last three images
    whole = with_latents(dataset, encoder(), tmp_path / "undisturbed")
    np.testing.assert_array_equal(found.moments.array[:], whole.moments.array[:])
    assert found.identity == whole.identity


def test_damaged_latents_are_named_and_prepared_again(dataset, tmp_path, capsys):
    found = with_latents(dataset, encoder(), tmp_path)
    (file,) = tmp_path.rglob("train_images.npy")
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="train_images.npy holds other images.*--mode=prepare"):
        with_latents(dataset, encoder(refuse), tmp_path)
    with pytest.raises(ValueError, match="train_images.npy holds other images"):
        verify(found)
    prepare_latents(dataset, encoder(), tmp_path)
    assert "decoding again" in capsys.readouterr().err
    verify(with_latents(dataset, encoder(refuse), tmp_path))


def test_latents_that_float16_cannot_hold_are_refused(dataset, tmp_path):
    with pytest.raises(ValueError, match="folder:x by halves .*float16 cannot hold"):
        with_latents(dataset, encoder(lambda x: 1e6 * halve(x)), tmp_path)
    assert not list(tmp_path.rglob("*.npy"))


def test_a_copy_on_a_local_disk_is_the_same(dataset, tmp_path):
    found = with_latents(dataset, encoder(), tmp_path / "shared")
    copy = with_latents(dataset, encoder(refuse), tmp_path / "shared", tmp_path / "local")
    np.testing.assert_array_equal(copy.moments.array, found.moments.array)
    assert str(copy.moments.array.filename).startswith(str(tmp_path / "local"))


def test_statistics_are_of_draws_from_the_posteriors():
    rng = np.random.default_rng(0)
    mean = rng.normal([1.0, -2.0], [0.5, 3.0], (400, 1, 5, 5, 2))
    std = np.abs(rng.normal(0.3, 0.1, mean.shape))
    moments = np.stack([mean, std], axis=2).repeat(2, axis=1).astype(np.float16)
    draws = mean + std * rng.normal(size=mean.shape)
    found_mean, found_std = channel_statistics(moments)
    np.testing.assert_allclose(found_mean, draws.mean(axis=(0, 1, 2, 3)), atol=0.05)
    np.testing.assert_allclose(found_std, draws.std(axis=(0, 1, 2, 3)), rtol=0.02)


def test_a_batch_has_the_view_of_each_image(dataset):
    array = np.arange(COUNT * 4, dtype=np.float16).reshape(COUNT, 2, 2, 1, 1, 1)
    moments = Posteriors(array, {})
    options = {"batch_size": 10, "seed": 5, "flip": True}
    first = next(moment_batches(dataset.train, moments, **options))
    image, view = divmod(first["moments"][:, 0].ravel().astype(int) // 2, 2)
    np.testing.assert_array_equal(first["label"], dataset.train.labels[image])
    assert set(view) == {0, 1}
    np.testing.assert_array_equal(first["position"], np.arange(10))
    # The second of two processes has the last rows.
    part = next(moment_batches(dataset.train, moments, **options, process_index=1, process_count=2))
    for name, rows in part.items():
        np.testing.assert_array_equal(rows, first[name][5:])
    later = next(moment_batches(dataset.train, moments, **options, start_step=2))
    np.testing.assert_array_equal(later["position"], np.arange(20, 30))
    plain = next(moment_batches(dataset.train, moments, batch_size=10, seed=5))
    assert not (plain["moments"][:, 0].ravel().astype(int) // 2 % 2).any()
