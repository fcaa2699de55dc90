"""Latents that other programs have made: every form is read, and nothing wrong is."""

import errno
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fewstep import data
from fewstep.data.arrays import shards
from fewstep.data.encoded import Encoder, prepare_latents
from fewstep.data.latent_files import prepared as prepared_files
from fewstep.data.latent_files.files import list_files
from fewstep.training.encoding import encode_dataset
from fewstep.training.latent_sets import picture_shape
from tests.data import latent_fixtures as fixtures
from tests.data.test_encoded import COUNT, SHAPE, halve
from tests.training.runs import small_config


def load(folder, root, **fields):
    return data.load_selection(data.Selection(f"latents:{folder}", data_dir=str(root), **fields))


@pytest.mark.parametrize("form", fixtures.FORMS)
def test_every_form_is_read_in_a_fixed_order(form, tmp_path, capsys):
    folder = fixtures.FORMS[form](tmp_path / "given")
    (folder / "notes.txt").write_text("beside")
    found = load(folder, tmp_path)
    # EDM2's folders hold every second picture.
    order = np.argsort(np.arange(fixtures.COUNT) % 2, kind="stable") if form == "numpy" else ...
    np.testing.assert_array_equal(found.moments.array, fixtures.posteriors(form)[order])
    np.testing.assert_array_equal(found.train.labels, fixtures.LABELS[order])
    assert found.num_classes == 3 and not found.has_pictures
    said = capsys.readouterr().err
    assert "latents:given: " in said and "7 latents" in said and "such as notes.txt" in said
    again = load(folder, tmp_path)
    assert again.identity == found.identity
    data.verify(again)


def test_log_variances_become_deviations(tmp_path):
    moments = np.concatenate([fixtures.MEAN, 2 * np.log(fixtures.DEVIATION)], axis=1)
    found = load(fixtures.write_torch(tmp_path / "given", moments), tmp_path, posterior="logvar")
    np.testing.assert_allclose(found.moments.array, fixtures.posteriors("torch"), rtol=2e-3)


def test_pictures_without_labels_have_none(tmp_path):
    found = load(fixtures.write_torch(tmp_path / "given", labels=None), tmp_path)
    assert found.num_classes == 0 and set(found.train.labels) == {data.NULL_LABEL}


def use(folder, root, fields):
    """Load a folder as a run does, with a codec of latents of its shape."""
    fields = dict(fields)
    selected = {name: fields[name] for name in fields if name == "posterior"}
    sizes = {"data.image_size": 0, "data.channels": 0, "codec.name": "sd"}
    named = {name if "." in name else f"data.{name}": value for name, value in fields.items()}
    config = small_config("flow_matching", **{**sizes, **named})
    config.data.name = f"latents:{folder}"
    dataset = load(folder, root, **selected)
    config.data.image_size, _, config.data.channels = picture_shape(config, dataset)
    return encode_dataset(config, dataset)


@pytest.mark.parametrize("name", fixtures.FAULTS)
def test_what_is_damaged_or_something_else_is_refused(name, tmp_path):
    write, fields, message = fixtures.FAULTS[name]
    write(tmp_path / "given")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        use(tmp_path / "given", tmp_path, fields)


@pytest.mark.parametrize(
    ("form", "file"), [("numpy", "dataset.json"), ("shards", "latents_stats.pt")]
)
def test_a_folder_above_that_of_the_latents_is_refused(form, file, tmp_path):
    above = tmp_path / "given"
    inner = fixtures.FORMS[form](above / "vae-sd")
    (above / "images/00000").mkdir(parents=True)
    (above / "images/dataset.json").write_text('{"labels": null}')  # of pictures that lie beside
    with pytest.raises(ValueError, match=f"{inner / file} is read only .*; give latents:{inner}$"):
        load(above, tmp_path)
    shutil.move(above / "images", inner)
    assert load(inner, tmp_path).num_classes == 3


def test_links_to_folders_above_are_not_followed(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "given" / name).mkdir(parents=True)
        (tmp_path / "given" / name / "x.npy").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "y.npy").touch()
    for link, target in {"self": ".", "a/b": "../b", "b/a": "../a", "c": "../elsewhere"}.items():
        (tmp_path / "given" / link).symlink_to(target)
    found = list_files(tmp_path / "given")
    assert found == ["a/b/x.npy", "a/x.npy", "b/a/x.npy", "b/x.npy", "c/y.npy"]


def test_a_sound_folder_is_used_and_a_changed_one_read_again(tmp_path):
    folder = fixtures.write_torch(tmp_path / "given")
    first = use(folder, tmp_path, {})[1]
    fixtures.write_torch(folder, fixtures.MOMENTS[::-1])
    second = use(folder, tmp_path, {})[1]
    assert (first.moments.array[0] == second.moments.array[-1]).all()
    assert first.identity != second.identity


@pytest.fixture
def prepared(draw_images, tmp_path):
    """The folder of latents that --mode=prepare has made."""
    images = data.Split(draw_images(COUNT, *SHAPE), np.arange(COUNT, dtype=np.int32) % 3)
    encoder = Encoder("linear", {"codec": "linear", "fingerprint": "abc"}, (2, 3, 3), halve)
    return prepare_latents(data.Dataset("folder:x", images, None, 3), encoder, tmp_path), images


def test_prepared_latents_are_a_data_set_where_they_lie(prepared, tmp_path):
    folder, images = prepared
    moved = folder.rename(tmp_path / "moved")
    found = load(moved, tmp_path / "unused")
    assert found.moments.array.shape == (COUNT, 2, 2, 2, 3, 3) and found.num_classes == 3
    assert found.moments.codec == {"codec": "linear", "fingerprint": "abc"}
    np.testing.assert_array_equal(found.train.labels, images.labels)
    assert not (tmp_path / "unused").exists()
    with pytest.raises(ValueError, match="says what its latents are; leave data.posterior=std out"):
        load(moved, tmp_path, posterior="std")
    (moved / "train_images.npy").write_bytes((moved / "train_images.npy").read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"train_images.npy is empty, cut short or"):
        load(moved, tmp_path)
    (moved / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match=r"manifest.json is damaged"):
        load(moved, tmp_path)


@pytest.fixture
def copied(prepared, tmp_path):
    """A copy of prepared latents, whose files have other times."""
    copy = tmp_path / "copy"
    shutil.copytree(prepared[0], copy, copy_function=shutil.copyfile)
    for file in copy.glob("*.npy"):
        os.utime(file, (1, 1))
    return copy


@pytest.fixture
def hashed(monkeypatch):
    """What is hashed, by the descriptions of the progress bars."""
    found, own = [], shards.images_sha256

    def images_sha256(images, description):
        found.append(description)
        time.sleep(0.2)  # until all threads have come
        return own(images, description)

    monkeypatch.setattr(shards, "images_sha256", images_sha256)
    return found


def test_copied_latents_are_hashed_once(copied, hashed, tmp_path):
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda _: load(copied, tmp_path / "unused"), range(3)))
    assert hashed == ["hashing latents:copy train"]
    again = load(copied, tmp_path / "unused")
    assert len(hashed) == 1 and again.identity == found[0].identity
    shutil.move(copied, tmp_path / "moved")
    load(tmp_path / "moved", tmp_path / "unused")
    assert len(hashed) == 1


def test_copies_that_cannot_be_written_to_are_hashed_at_every_start(
    copied, hashed, tmp_path, monkeypatch, capsys
):
    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    before = (copied / "manifest.json").read_bytes()
    monkeypatch.setattr(prepared_files, "write_manifest", refuse)
    load(copied, tmp_path)
    load(copied, tmp_path)
    assert len(hashed) == 2 and (copied / "manifest.json").read_bytes() == before
    said = f"{copied} cannot be written to (Read-only file system), so its arrays are hashed at"
    assert said in capsys.readouterr().err


def test_what_only_reads_writes_no_stamps(copied, hashed, tmp_path):
    before = {file.name: file.stat().st_mtime_ns for file in copied.iterdir()}
    selection = data.Selection(f"latents:{copied}", data_dir=str(tmp_path))
    data.load_selection(selection, writable=False)
    assert len(hashed) == 1
    assert {file.name: file.stat().st_mtime_ns for file in copied.iterdir()} == before


def test_damaged_copies_keep_their_manifest(copied, tmp_path):
    images = np.load(copied / "train_images.npy")
    np.save(copied / "train_images.npy", images + 1)
    before = json.loads((copied / "manifest.json").read_bytes())
    with pytest.raises(ValueError, match=r"train_images.npy holds other images than were decoded"):
        load(copied, tmp_path)
    assert json.loads((copied / "manifest.json").read_bytes()) == before
