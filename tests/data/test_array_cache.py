import errno
import os

import numpy as np
import pytest

from data import array_cache
from data.array_cache import Source, Undecoded, array_folder, data_root, decode, file_stamps


def undecoded(images, read=None, **changes):
    source = Source(len(images), read or (lambda i: (images[i], i % 3)))
    data = Undecoded("folder:/x", [1], images.shape[1:], 3, {"train": source})
    return data._replace(**changes)


def refuse(i):
    raise AssertionError("decoded twice")


def test_decode_keeps_order_pixels_and_labels(tmp_path, draw_images, monkeypatch):
    monkeypatch.setattr(array_cache, "CHUNK", 4)  # so that 11 images are several chunks
    images = draw_images(11, 4, 4, 3)
    split = decode(undecoded(images), tmp_path).train
    assert isinstance(split.images, np.memmap) and split.images.dtype == np.uint8
    np.testing.assert_array_equal(split.images, images)
    np.testing.assert_array_equal(split.labels, np.arange(11) % 3)
    assert split.labels.dtype == np.int32


def test_decode_reads_the_source_once(tmp_path, draw_images):
    images = draw_images(3, 4, 4, 1)
    decode(undecoded(images), tmp_path)
    again = decode(undecoded(images, read=refuse), tmp_path)
    np.testing.assert_array_equal(again.train.images, images)


@pytest.mark.parametrize(
    "change", [{"identity": [2]}, {"name": "folder:./x"}, {"image_shape": (4, 4, 3)}]
)
def test_the_key_depends_on_everything(tmp_path, draw_images, change):
    data = undecoded(draw_images(3, 4, 4, 1))
    assert array_folder(data, tmp_path) == array_folder(data, tmp_path)
    assert array_folder(data, tmp_path) != array_folder(data._replace(**change), tmp_path)


def test_an_interrupted_decoding_leaves_nothing_that_looks_complete(tmp_path, draw_images):
    images = draw_images(5, 4, 4, 1)

    def fail_late(i):
        if i == 4:
            raise ValueError("image 4 is broken")
        return images[i], 0

    data = undecoded(images, read=fail_late)
    with pytest.raises(ValueError, match="image 4"):
        decode(data, tmp_path)
    assert list(array_folder(data, tmp_path).iterdir()) == []
    np.testing.assert_array_equal(decode(undecoded(images), tmp_path).train.images, images)


def test_a_full_disk_names_the_file_that_it_does_not_take(tmp_path, draw_images, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(array_cache.os, "fsync", full)
    data = undecoded(draw_images(3, 4, 4, 1))
    with pytest.raises(OSError, match="No space left") as error:
        decode(data, tmp_path)
    folder = array_folder(data, tmp_path)
    assert error.value.filename.startswith(str(folder)) and not list(folder.iterdir())


def test_labels_are_there_before_images(tmp_path, draw_images, monkeypatch):
    replaced = []

    def record(source, target):
        replaced.append(target.name)
        os.rename(source, target)

    monkeypatch.setattr(array_cache.os, "replace", record)
    decode(undecoded(draw_images(2, 4, 4, 1)), tmp_path)
    assert replaced == ["train_labels.npy", "train_images.npy"]


def test_file_stamps_see_size_and_time(tmp_path):
    file = tmp_path / "a" / "b.png"
    file.parent.mkdir()
    file.write_bytes(b"12345")
    os.utime(file, ns=(7, 8))
    assert file_stamps([file], tmp_path) == [("a/b.png", 5, 8)]


def test_data_root_prefers_the_argument_then_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path / "environment"))
    assert data_root(str(tmp_path / "argument")) == tmp_path / "argument"
    assert data_root() == tmp_path / "environment"
    monkeypatch.delenv("FEWSTEP_DATA")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_root() == tmp_path / ".cache" / "fewstep"
