import hashlib

import numpy as np
import pytest

from fewstep import progress
from fewstep.data import Dataset, Split, identity_changes
from fewstep.data.arrays import identity


@pytest.fixture
def dataset(draw_images):
    train = Split(draw_images(6, 4, 4, 1), np.arange(6, dtype=np.int32) % 2)
    test = Split(draw_images(3, 4, 4, 1, seed=1), np.zeros(3, np.int32))
    return Dataset("x", train, test, 2, ("ant", "bee"))


def test_the_identity_holds_counts_shape_names_and_hashes(dataset):
    found = dataset.identity
    assert found["image_shape"] == [4, 4, 1] and found["classes"] == ["ant", "bee"]
    assert list(found["splits"]) == ["train", "test"]
    train = found["splits"]["train"]
    assert train["count"] == 6
    assert train["images_sha256"] == hashlib.sha256(dataset.train.images.tobytes()).hexdigest()
    labels = bytes([0, 0, 0, 0, 1, 0, 0, 0] * 3)
    assert train["labels_sha256"] == hashlib.sha256(labels).hexdigest()


def test_hashes_do_not_depend_on_chunks_or_bars(dataset, monkeypatch, capsys):
    whole = dataset.digest
    monkeypatch.setattr(identity, "CHUNK_BYTES", 40)
    monkeypatch.setattr(identity, "SHOWN_BYTES", 0)
    assert (
        identity.images_sha256(dataset.train.images, "hashing x")
        == (dataset.identity["splits"]["train"]["images_sha256"])
    )
    assert dataset.digest == whole
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "is_terminal", lambda: True)
    identity.images_sha256(dataset.train.images, "hashing x")
    assert "hashing x" in capsys.readouterr().err


def other_pixel(dataset):
    images = dataset.train.images.copy()
    images[-1, -1, -1] ^= 1
    return dataset._replace(train=dataset.train._replace(images=images))


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        (other_pixel, ["splits.train.images_sha256"]),
        (
            lambda d: d._replace(train=d.train._replace(labels=1 - d.train.labels)),
            ["splits.train.labels_sha256"],
        ),
        (
            lambda d: d._replace(test=Split(d.test.images[:2], d.test.labels[:2])),
            [f"splits.test.{field}" for field in ("count", "images_sha256", "labels_sha256")],
        ),
        (lambda d: d._replace(classes=("ant", "fly")), ["classes"]),
        (
            lambda d: d._replace(test=None),
            [f"splits.test.{field}" for field in ("count", "images_sha256", "labels_sha256")],
        ),
    ],
)
def test_every_change_is_another_identity_and_is_named(dataset, change, fields):
    changed = change(dataset)
    assert changed.digest != dataset.digest
    assert [
        text.split(" ")[0] for text in identity_changes(dataset.identity, changed.identity)
    ] == fields
    assert identity_changes(dataset.identity, dataset.identity) == []


def test_changes_say_both_values(dataset):
    fewer = dataset._replace(test=Split(dataset.test.images[:2], dataset.test.labels[:2]))
    found = identity_changes(dataset.identity, fewer.identity)
    assert found[0] == "splits.test.count (3 recorded, 2 now)"
    assert len(found[1]) < 80
    assert identity_changes({}, dataset.identity)[0] == "image_shape (null recorded, [4, 4, 1] now)"


def test_the_name_does_not_matter_and_what_is_recorded_is_used(dataset):
    assert dataset._replace(name="y").digest == dataset.digest
    assert dataset._replace(recorded={"image_shape": [1]}).identity == {"image_shape": [1]}
