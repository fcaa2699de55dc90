"""Splits of several files: one array to read, decoded, repaired and copied shard by shard."""

import errno
import json
import os
import shutil

import numpy as np
import pytest

from fewstep.data.arrays import array_cache, local_copy, missing_shards
from fewstep.data.arrays import shards as arrays
from fewstep.data.arrays.array_cache import decode, repair, verify
from fewstep.data.arrays.local_copy import copy_arrays
from fewstep.data.arrays.manifest import seal_hash
from fewstep.data.arrays.rows import Rows
from fewstep.data.arrays.undecoded import array_folder
from tests.data.arrays.test_array_cache import refuse, undecoded

SHAPE, COUNT, IN_SHARD = (4, 4, 1), 11, 4
NAMES = [f"train_{kind}-{i:05}-of-00003.npy" for kind in ("images", "labels") for i in range(3)]


@pytest.fixture
def images(draw_images, monkeypatch):
    """Images of three shards."""
    monkeypatch.setattr(arrays, "SHARD_BYTES", IN_SHARD * int(np.prod(SHAPE)) + 3)
    return draw_images(COUNT, *SHAPE)


def arrays_in(folder):
    return sorted(file.name for file in folder.glob("*.npy"))


def reading(images, seen):
    """A data set that notes which images are decoded."""
    return undecoded(images, read=lambda i: seen.append(i) or (images[i], i % 3))


def test_rows_of_several_arrays_read_as_those_of_one():
    whole = np.random.default_rng(0).integers(0, 256, (COUNT, *SHAPE), np.uint8)
    rows = Rows([whole[:4], whole[4:5], whole[5:]])
    for index in (
        *(0, -1, slice(None), slice(2, 9, 3), slice(9, 2, -2), slice(0, 0), [3, 1]),
        *(np.array([5, 5, 0, 10, -1, 4]), np.arange(COUNT) % 3 == 0, np.array([[1, 2], [9, 0]])),
    ):
        np.testing.assert_array_equal(rows[index], whole[index])
        assert rows[index].flags.writeable  # as pipelines mirror rows in place
    np.testing.assert_array_equal(np.asarray(rows), whole)
    assert (rows.shape, rows.dtype, rows.nbytes, len(rows)) == (
        *(whole.shape, whole.dtype, whole.nbytes, COUNT),
    )
    for index in (COUNT, -COUNT - 1, [0, COUNT], (0, 1), None, ..., np.zeros(3, bool)):
        with pytest.raises(IndexError):
            rows[index]


def test_a_large_split_is_shards_of_the_same_identity(images, tmp_path, monkeypatch):
    data = undecoded(images)
    found = decode(data, tmp_path)
    assert arrays_in(array_folder(data, tmp_path)) == NAMES
    np.testing.assert_array_equal(found.train.images[:], images)
    np.testing.assert_array_equal(found.train.labels, np.arange(COUNT) % 3)
    assert found.recorded == found._replace(recorded=None).identity
    monkeypatch.setattr(arrays, "SHARD_BYTES", 2**20)
    assert decode(data, tmp_path).train.images.shape == images.shape  # as they were written
    assert decode(data, tmp_path / "one").identity == found.identity


@pytest.mark.parametrize("stop", [2, 6, 10])
def test_an_interrupted_decoding_goes_on_after_the_last_shard(images, tmp_path, stop):
    def fail(i):
        if i == stop:
            raise KeyboardInterrupt
        return images[i], i % 3

    with pytest.raises(KeyboardInterrupt):
        repair(undecoded(images, read=fail), tmp_path)
    seen = []
    repair(reading(images, seen), tmp_path)
    assert sorted(seen) == list(range(stop // IN_SHARD * IN_SHARD, COUNT))
    found = decode(undecoded(images, read=None), tmp_path)
    assert found.recorded == found._replace(recorded=None).identity
    np.testing.assert_array_equal(found.train.images[:], images)


def test_a_shard_of_an_interrupted_decoding_is_trusted_only_if_it_is_sound(images, tmp_path):
    def fail(i):
        if i == 9:
            raise KeyboardInterrupt
        return images[i], i % 3

    with pytest.raises(KeyboardInterrupt):
        repair(undecoded(images, read=fail), tmp_path)
    flip(array_folder(undecoded(images), tmp_path) / NAMES[1])
    seen = []
    repair(reading(images, seen), tmp_path)
    assert sorted(seen) == list(range(4, COUNT))
    np.testing.assert_array_equal(decode(undecoded(images), tmp_path).train.images[:], images)


def flip(file, keep_times=True):
    """Flip a bit of the last pixel, so that only a hash shows it."""
    times, content = file.stat(), file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    if keep_times:
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("name", [NAMES[1], NAMES[5]])
def test_a_damaged_shard_is_named_and_alone_decoded_again(images, tmp_path, capsys, name):
    data = undecoded(images)
    before, file = decode(data, tmp_path).identity, array_folder(data, tmp_path) / name
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(ValueError, match=rf"{name} .*; run main.py --mode=prepare"):
        decode(data, tmp_path)
    seen = []
    repair(reading(images, seen), tmp_path)
    shard = int(name.split("-")[1])
    assert sorted(seen) == list(range(COUNT))[shard * IN_SHARD : (shard + 1) * IN_SHARD]
    assert decode(undecoded(images, read=None), tmp_path).identity == before
    said = capsys.readouterr().err
    assert f"{name} " in said and "train: 11 images in 3 shards decoded" in said
    flip(array_folder(data, tmp_path) / NAMES[2])
    with pytest.raises(ValueError, match=f"{NAMES[2]} holds other images than were decoded"):
        verify(decode(data, tmp_path))


def test_only_a_shard_that_was_written_to_is_hashed_again(images, tmp_path, monkeypatch):
    data, hashed = undecoded(images, read=None), []
    decode(undecoded(images), tmp_path)
    monkeypatch.setattr(arrays, "images_sha256", hash_noted(hashed))
    os.utime(array_folder(data, tmp_path) / NAMES[1])
    for _ in range(2):
        decode(data, tmp_path)
    assert hashed == [NAMES[1]]


def hash_noted(hashed):
    real = arrays.images_sha256
    return lambda images, *more: hashed.append(images.filename.name) or real(images, *more)


def test_one_large_file_of_an_earlier_version_is_read_and_replaced_when_damaged(
    images, tmp_path, monkeypatch
):
    data, folder = undecoded(images), array_folder(undecoded(images), tmp_path)
    with monkeypatch.context() as earlier:
        earlier.setattr(arrays, "SHARD_BYTES", 2**20)
        before = decode(data, tmp_path).identity
    assert "shards" not in json.loads((folder / "manifest.json").read_text())["splits"]["train"]
    found = decode(undecoded(images, read=None), tmp_path)
    assert isinstance(found.train.images, np.memmap) and found.identity == before
    (folder / "train_images.npy").write_bytes(b"")
    repair(data, tmp_path)
    assert arrays_in(folder) == NAMES
    assert decode(undecoded(images, read=None), tmp_path).identity == before


def test_a_manifest_whose_shards_do_not_make_their_split_is_refused(images, tmp_path):
    data = undecoded(images)
    decode(data, tmp_path)
    path = array_folder(data, tmp_path) / "manifest.json"
    content = json.loads(path.read_text())
    content.pop("seal")
    content["splits"]["train"]["shards"].pop()
    path.write_text(json.dumps({**content, "seal": seal_hash(content)}))
    with pytest.raises(ValueError, match="counts of the shards do not add up"):
        decode(data, tmp_path)


def test_a_local_copy_is_made_once_and_read(images, tmp_path, capsys, monkeypatch):
    data, shared, local = undecoded(images), tmp_path / "shared", tmp_path / "local"
    before = decode(data, shared)
    capsys.readouterr()
    data = undecoded(images, read=None)
    copied = copy_arrays(data, shared, local)
    folder = array_folder(data, local)
    assert capsys.readouterr().err == f"copying 0.00 GiB of folder:/x to {folder}\n"
    assert copied.identity == before.identity
    assert {array.filename.parent for array in copied.train.images.arrays} == {folder}
    np.testing.assert_array_equal(copied.train.images[:], images)
    monkeypatch.setattr(local_copy, "copy_shard", None)
    assert copy_arrays(data, shared, local).identity == before.identity
    assert capsys.readouterr().err == ""
    assert copy_arrays(data, shared, shared).identity == before.identity  # nothing to copy


def test_an_interrupted_copy_goes_on_and_a_changed_one_is_repaired(images, tmp_path, monkeypatch):
    data, shared, local = undecoded(images), tmp_path / "shared", tmp_path / "local"
    decode(data, shared)
    real, places = local_copy.copy_shard, []

    def copy(files, there, place, record, stop=None):
        if place == stop:
            raise KeyboardInterrupt
        places.append(place)
        return real(files, there, place, record)

    monkeypatch.setattr(local_copy, "COPIES", 1)
    monkeypatch.setattr(local_copy, "copy_shard", lambda *a: copy(*a, stop=2))
    with pytest.raises(KeyboardInterrupt):
        copy_arrays(data, shared, local)
    monkeypatch.setattr(local_copy, "copy_shard", copy)
    copy_arrays(data, shared, local)
    assert places == [0, 1, 2]
    flip(array_folder(data, local) / NAMES[1], keep_times=False)
    np.testing.assert_array_equal(copy_arrays(data, shared, local).train.images[:], images)
    assert places == [0, 1, 2, 1]


def test_a_copy_that_is_not_what_the_manifest_says_is_refused(images, tmp_path):
    data, shared = undecoded(images), tmp_path / "shared"
    decode(data, shared)
    flip(array_folder(data, shared) / NAMES[0])
    with pytest.raises(ValueError, match=f"{NAMES[0]} holds other images.*{shared}.*--mode=prepar"):
        copy_arrays(data, shared, tmp_path / "local")


def test_a_full_local_disk_is_reported_before_copying(images, tmp_path, monkeypatch):
    data, shared = undecoded(images), tmp_path / "shared"
    decode(data, shared)
    usage = shutil.disk_usage(tmp_path)._replace(free=COUNT * 16 - 1)
    monkeypatch.setattr(arrays.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(local_copy, "copy_shard", None)
    with pytest.raises(OSError, match="GiB free, and folder:/x there takes .*another data.local_d"):
        copy_arrays(data, shared, tmp_path / "local")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be made .*; choose another data.local_dir"):
        copy_arrays(data, shared, tmp_path / "file")


@pytest.mark.parametrize(
    ("number", "name", "message"),
    [
        (errno.ENOSPC, "manifest.json", "no room for manifest.json .*another data.local_dir"),
        (errno.EROFS, NAMES[1], "local/.* cannot be written to .*; choose another data.local_dir"),
    ],
)
def test_a_local_disk_that_cannot_be_written_names_its_field(
    images, tmp_path, monkeypatch, number, name, message
):
    data, shared = undecoded(images), tmp_path / "shared"
    decode(data, shared)
    replace = os.replace

    def refuse(source, path):
        if path.name == name:
            raise OSError(number, os.strerror(number), str(source))
        replace(source, path)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match=message):
        copy_arrays(data, shared, tmp_path / "local")


def test_a_copy_of_arrays_older_than_manifests(images, tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "SHARD_BYTES", 2**20)
    data, shared = undecoded(images), tmp_path / "shared"
    before = decode(data, shared).identity
    (array_folder(data, shared) / "manifest.json").unlink()
    monkeypatch.setattr(missing_shards, "write_manifest", read_only)
    assert copy_arrays(data, shared, tmp_path / "local").identity == before


def read_only(*_):
    raise OSError(30, "Read-only file system")


def test_the_address_of_a_bucket_is_refused():
    for make in (
        lambda: array_cache.data_root("gs://bucket/data"),
        lambda: array_cache.local_folder("s3://bucket", "data.local_dir"),
    ):
        with pytest.raises(ValueError, match="is an address, not a folder; mount the bucket"):
            make()


def test_the_home_of_an_unknown_user_is_refused(monkeypatch):
    monkeypatch.setenv("FEWSTEP_DATA", "~nobody-of-that-name/x")
    with pytest.raises(ValueError, match="FEWSTEP_DATA=~nobody-of-that-name/x: there is no such u"):
        array_cache.data_root()


def test_a_split_without_images_has_one_shard():
    assert arrays.shard_counts(0, arrays.Stored(SHAPE)) == (0,)


def test_images_of_another_type_are_stored_as_they_are(tmp_path):
    rows = np.random.default_rng(0).normal(size=(COUNT, 2, 3)).astype(np.float16)
    nbytes = IN_SHARD * rows[0].nbytes
    data = undecoded(rows, dtype=rows.dtype, shard_bytes=nbytes + 3)
    found = decode(data, tmp_path)
    assert arrays_in(array_folder(data, tmp_path)) == NAMES
    assert found.train.images.dtype == np.float16
    np.testing.assert_array_equal(found.train.images[:], rows)
    again = decode(undecoded(rows, read=refuse, dtype=rows.dtype, shard_bytes=nbytes + 3), tmp_path)
    np.testing.assert_array_equal(again.train.images[:], rows)
    assert array_folder(undecoded(rows), tmp_path) != array_folder(data, tmp_path)
