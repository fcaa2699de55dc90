import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from fewstep.data.arrays import files, missing_shards
from fewstep.data.arrays import shards as arrays
from fewstep.data.arrays.array_cache import data_root, decode, file_stamps, repair, verify
from fewstep.data.arrays.manifest import seal_hash
from fewstep.data.arrays.shards import each_image
from fewstep.data.arrays.undecoded import Undecoded, array_folder


def undecoded(images, read=None, **changes):
    source = each_image(len(images), read or (lambda i: (images[i], i % 3)))
    classes = ("ant", "bee", "cat")
    data = Undecoded("folder:/x", [1], images.shape[1:], 3, {"train": source}, classes)
    return data._replace(**changes)


def refuse(i):
    raise AssertionError("decoded twice")


def names_in(folder):
    """Names of all files but the lock."""
    return sorted(file.name for file in folder.iterdir() if file.name != ".lock")


WHOLE = ["manifest.json", "train_images.npy", "train_labels.npy"]


def test_decode_keeps_order_pixels_and_labels(tmp_path, draw_images, monkeypatch):
    monkeypatch.setattr(arrays, "CHUNK", 4)  # so that 11 images are several chunks
    images = draw_images(11, 4, 4, 3)
    split = decode(undecoded(images), tmp_path).train
    assert isinstance(split.images, np.memmap) and split.images.dtype == np.uint8
    np.testing.assert_array_equal(split.images, images)
    np.testing.assert_array_equal(split.labels, np.arange(11) % 3)
    assert split.labels.dtype == np.int32


def test_decode_reads_the_source_once(tmp_path, draw_images, capsys):
    images = draw_images(3, 4, 4, 1)
    decode(undecoded(images), tmp_path)
    capsys.readouterr()
    again = decode(undecoded(images, read=refuse), tmp_path)
    np.testing.assert_array_equal(again.train.images, images)
    repair(undecoded(images, read=refuse), tmp_path)
    assert capsys.readouterr().err == "folder:/x train: 3 images verified\n"


def test_the_identity_is_that_of_the_arrays(tmp_path, draw_images):
    images = draw_images(5, 4, 4, 1)
    test = each_image(2, lambda i: (images[3 + i], i))
    data = undecoded(images[:3])
    data = data._replace(splits={**data.splits, "test": test})
    for _ in range(2):  # as it is decoded, and as it is recorded
        found = decode(data, tmp_path)
        assert found.recorded == found._replace(recorded=None).identity
        assert found.classes == ("ant", "bee", "cat")
        assert {n: s["count"] for n, s in found.identity["splits"].items()} == {
            "train": 3,
            "test": 2,
        }


@pytest.mark.parametrize(
    "change", [{"origin": [2]}, {"name": "folder:./x"}, {"image_shape": (4, 4, 3)}]
)
def test_the_key_depends_on_everything(tmp_path, draw_images, change):
    data = undecoded(draw_images(3, 4, 4, 1))
    assert array_folder(data, tmp_path) == array_folder(data, tmp_path)
    assert array_folder(data, tmp_path) != array_folder(data._replace(**change), tmp_path)


def test_a_decoding_that_fails_leaves_nothing_that_looks_complete(tmp_path, draw_images):
    images = draw_images(5, 4, 4, 1)

    def fail_late(i):
        if i == 4:
            raise ValueError("image 4 is broken")
        return images[i], 0

    data = undecoded(images, read=fail_late)
    with pytest.raises(ValueError, match="image 4"):
        decode(data, tmp_path)
    assert names_in(array_folder(data, tmp_path)) == ["manifest.json"]
    np.testing.assert_array_equal(decode(undecoded(images), tmp_path).train.images, images)


KILLED = """
import os, sys
from pathlib import Path
import numpy as np
from fewstep.data.arrays import array_cache, undecoded
from fewstep.data.arrays.shards import each_image
root, expected = Path(sys.argv[1]), sys.argv[2].split()
images = np.arange(5 * 16, dtype=np.uint8).reshape(5, 4, 4, 1)
steps = []

def die_at(function):
    def call(*arguments):
        steps.append(function)
        if len(steps) == moment:
            os._exit(9)
        return function(*arguments)
    return call

def read(i):
    return images[i], 0

os.replace, os.fsync = die_at(os.replace), die_at(os.fsync)
splits = {name: each_image(5, read) for name in ("train", "test")}
for number in range(1, 99):
    data = undecoded.Undecoded("x", [number], (4, 4, 1), 1, splits)
    steps, moment = [], number
    child = os.fork()
    if not child:
        array_cache.decode(data, root)
        os._exit(0)
    killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    before = sorted(p.name for p in undecoded.array_folder(data, root).iterdir())
    moment = 0
    found = array_cache.decode(data, root)
    assert all((split.images == images).all() for split in found.splits.values())
    assert found.recorded == found._replace(recorded=None).identity
    left = sorted(p.name for p in undecoded.array_folder(data, root).iterdir())
    assert left == expected, left
    print(killed, sum(name.endswith(".tmp") for name in before), flush=True)
    if not killed:
        break
"""


def test_a_killed_decoding_starts_again_and_leaves_no_temporary_file(tmp_path):
    left = ".lock manifest.json test_images.npy test_labels.npy train_images.npy train_labels.npy"
    program = [sys.executable, "-c", KILLED, str(tmp_path), left]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120)
    killed = [line.split() for line in done.stdout.splitlines()]
    # An fsync and a replace for each of four arrays and of four manifests, and one that ends.
    assert [code for code, _ in killed] == ["9"] * 16 + ["0"], done.stderr
    assert sum(int(count) for _, count in killed) >= 16


def test_one_of_two_decoding_processes_waits(tmp_path, draw_images, capsys):
    images, reading, read_on = draw_images(3, 4, 4, 1), threading.Event(), threading.Event()

    def read(i):
        reading.set()
        assert read_on.wait(30)
        return images[i], 0

    first = threading.Thread(target=decode, args=(undecoded(images, read=read), tmp_path))
    first.start()
    assert reading.wait(30)
    found = []
    second = threading.Thread(
        target=lambda: found.append(decode(undecoded(images, read=refuse), tmp_path))
    )
    second.start()
    deadline, said = time.monotonic() + 30, ""
    while "another process; waiting" not in said and time.monotonic() < deadline:
        said += capsys.readouterr().err
        time.sleep(0.01)
    read_on.set()
    first.join(30)
    second.join(30)
    assert "is being written by another process; waiting for it" in said
    np.testing.assert_array_equal(found[0].train.images, images)


def test_without_locks_nothing_is_removed_and_decoding_goes_on(tmp_path, draw_images, monkeypatch):
    def no_locks(file, operation):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    data = undecoded(draw_images(3, 4, 4, 1))
    folder = array_folder(data, tmp_path)
    folder.mkdir(parents=True)
    leftover = folder / f"train_images.npy.{32 * 'a'}.tmp"
    leftover.write_bytes(b"of a writer that may be at work")
    decode(data, tmp_path)
    assert names_in(folder) == sorted([*WHOLE, leftover.name])


def write_bytes(name, change):
    """A damage that changes the bytes of a file."""
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def save_array(name, change):
    """A damage that puts another array into a file."""
    return lambda folder: np.save(folder / name, change(np.load(folder / name)))


def set_in(array, index, value):
    array[index] = value
    return array


def copy_foreign(folder):
    """The manifest of other data of the same shape."""
    other = undecoded(np.zeros((6, 4, 4, 1), np.uint8), origin=["other"])
    decode(other, folder.parent.parent)
    shutil.copy(array_folder(other, folder.parent.parent) / "manifest.json", folder)


def edit_count(content):
    manifest = json.loads(content)
    manifest["splits"]["train"]["identity"]["count"] = 7
    return json.dumps(manifest).encode()


def sealed_manifest(change):
    """A damage that changes a manifest and seals it again."""

    def damage(folder):
        content = json.loads((folder / MANIFEST).read_bytes())
        content.pop("seal")
        change(content)
        (folder / MANIFEST).write_text(json.dumps({**content, "seal": seal_hash(content)}))

    return damage


IMAGES, LABELS, MANIFEST = "train_images.npy", "train_labels.npy", "manifest.json"
DAMAGES = {
    "images cut short": (IMAGES, write_bytes(IMAGES, lambda b: b[:-9])),
    "images empty": (IMAGES, write_bytes(IMAGES, lambda b: b"")),
    "images too long": (IMAGES, write_bytes(IMAGES, lambda b: b + b"0")),
    "images no array": (IMAGES, write_bytes(IMAGES, lambda b: b"PK" + b[2:])),
    "images missing": (IMAGES, lambda folder: (folder / IMAGES).unlink()),
    "half of zeros": (IMAGES, write_bytes(IMAGES, lambda b: b[:176].ljust(len(b), b"\0"))),
    "a flipped pixel": (IMAGES, write_bytes(IMAGES, lambda b: b[:-1] + bytes([b[-1] ^ 1]))),
    "another image size": (IMAGES, save_array(IMAGES, lambda x: x[:, :2, :2])),
    "other counts": (IMAGES, save_array(IMAGES, lambda x: x[:-1])),
    "another type": (IMAGES, save_array(IMAGES, lambda x: x.astype(np.int8))),
    "another order": (IMAGES, save_array(IMAGES, np.asfortranarray)),
    "objects": (IMAGES, lambda f: np.save(f / IMAGES, np.array([{}] * 6), allow_pickle=True)),
    "a label too large": (LABELS, save_array(LABELS, lambda y: set_in(y, 2, 3))),
    "a label too small": (LABELS, save_array(LABELS, lambda y: set_in(y, 2, -2))),
    "another label": (LABELS, save_array(LABELS, lambda y: y[::-1].copy())),
    "labels of another type": (LABELS, save_array(LABELS, lambda y: y.astype(np.float32))),
    "labels missing": (LABELS, lambda folder: (folder / LABELS).unlink()),
    "labels empty": (LABELS, write_bytes(LABELS, lambda b: b"")),
    "labels cut short": (LABELS, write_bytes(LABELS, lambda b: b[:-4])),
    "manifest empty": (MANIFEST, write_bytes(MANIFEST, lambda b: b"")),
    "manifest cut short": (MANIFEST, write_bytes(MANIFEST, lambda b: b[:99])),
    "manifest null": (MANIFEST, write_bytes(MANIFEST, lambda b: b"null")),
    "manifest a list": (MANIFEST, write_bytes(MANIFEST, lambda b: b"[1]")),
    "manifest without fields": (MANIFEST, write_bytes(MANIFEST, lambda b: b"{}")),
    "manifest not UTF-8": (MANIFEST, write_bytes(MANIFEST, lambda b: b"\xff\xfe{}")),
    "manifest nested deeply": (MANIFEST, write_bytes(MANIFEST, lambda b: b"[" * 10**5)),
    "manifest edited": (MANIFEST, write_bytes(MANIFEST, edit_count)),
    "manifest of other data": (MANIFEST, copy_foreign),
    "manifest of no splits": (MANIFEST, sealed_manifest(lambda c: c.update(splits=None))),
    "manifest of numbers": (MANIFEST, sealed_manifest(lambda c: c["splits"].update(train=3))),
    "manifest of other splits": (
        MANIFEST,
        sealed_manifest(lambda c: c["splits"].update(more=c["splits"]["train"])),
    ),
    "a record of other fields": (
        MANIFEST,
        sealed_manifest(lambda c: c["splits"].update(train={"a": 1})),
    ),
    "a record without hashes": (
        MANIFEST,
        sealed_manifest(lambda c: c["splits"]["train"].update(identity={"count": 6})),
    ),
    "a record of another count": (
        MANIFEST,
        sealed_manifest(lambda c: c["splits"]["train"]["identity"].update(count=7)),
    ),
}


@pytest.mark.parametrize(("file", "damage"), DAMAGES.values(), ids=list(DAMAGES))
def test_what_is_damaged_is_named_and_prepare_repairs_it(tmp_path, draw_images, file, damage):
    images = draw_images(6, 4, 4, 1)
    data, unread = undecoded(images), undecoded(images, read=refuse)
    folder, before = array_folder(data, tmp_path), decode(data, tmp_path).identity
    damage(folder)
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"^\S*/{file} .*; run main.py --mode=prepare"):
            decode(unread, tmp_path)
    assert repair(data, tmp_path) == folder
    mended = decode(unread, tmp_path)
    np.testing.assert_array_equal(mended.train.images, images)
    np.testing.assert_array_equal(mended.train.labels, np.arange(6) % 3)
    assert mended.identity == before and names_in(folder) == WHOLE


@pytest.mark.parametrize("name", ["half of zeros", "a flipped pixel"])
def test_damage_without_a_trace_is_found_by_hashing(tmp_path, draw_images, name, capsys):
    images = draw_images(6, 4, 4, 1)
    data = undecoded(images)
    folder = array_folder(data, tmp_path)
    verify(decode(data, tmp_path))
    times = (folder / IMAGES).stat()
    DAMAGES[name][1](folder)
    os.utime(folder / IMAGES, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ValueError, match=rf"{IMAGES} holds other images.*--mode=prepare"):
        verify(decode(data, tmp_path))
    repair(data, tmp_path)
    assert f"{IMAGES} holds other images than were decoded; decoding again" in (
        capsys.readouterr().err
    )
    verify(decode(data, tmp_path))
    np.testing.assert_array_equal(decode(data, tmp_path).train.images, images)


def test_only_the_damaged_split_is_decoded_again(tmp_path, draw_images, capsys):
    images = draw_images(4, 4, 4, 1)
    data = undecoded(images)
    data = data._replace(splits={**data.splits, "test": data.splits["train"]})
    decode(data, tmp_path)
    (array_folder(data, tmp_path) / "test_labels.npy").unlink()
    capsys.readouterr()
    repair(data._replace(splits={**data.splits, "train": each_image(4, refuse)}), tmp_path)
    said = capsys.readouterr().err
    assert "test_labels.npy is missing; decoding again" in said
    assert "folder:/x train: 4 images verified" in said
    assert "folder:/x test: 4 images decoded" in said


def test_prepare_reports_data_that_decode_to_other_pixels(tmp_path, draw_images, capsys):
    images = draw_images(4, 4, 4, 1)
    decode(undecoded(images), tmp_path)
    (array_folder(undecoded(images), tmp_path) / IMAGES).unlink()
    repair(undecoded(255 - images), tmp_path)
    assert "folder:/x train: other data than before" in capsys.readouterr().err


def test_copied_arrays_are_hashed_once_and_trusted(tmp_path, draw_images, monkeypatch):
    data = undecoded(draw_images(4, 4, 4, 1), read=None)
    before = decode(data, tmp_path).identity
    hashed = []
    real = arrays.images_sha256
    monkeypatch.setattr(arrays, "images_sha256", lambda *a: hashed.append(1) or real(*a))
    os.utime(array_folder(data, tmp_path) / IMAGES)
    assert [decode(data, tmp_path).identity for _ in range(3)] == [before] * 3
    assert len(hashed) == 1


@pytest.mark.parametrize("function", [decode, repair])
def test_arrays_older_than_manifests_go_on_with_one_warning(
    tmp_path, draw_images, capsys, function
):
    images = draw_images(4, 4, 4, 1)
    data, unread = undecoded(images), undecoded(images, read=refuse)
    before = decode(data, tmp_path).identity
    (array_folder(data, tmp_path) / MANIFEST).unlink()
    capsys.readouterr()
    function(unread, tmp_path)
    assert (
        capsys.readouterr().err.count("manifest.json, so its arrays are trusted as they are") == 1
    )
    assert decode(unread, tmp_path).identity == before
    assert capsys.readouterr().err == ""
    assert names_in(array_folder(data, tmp_path)) == WHOLE


# Damage that only a hash shows, and what an old decoding wrote first.
NOT_KNOWN = ("half of zeros", "a flipped pixel", "another label", "images missing")


@pytest.mark.parametrize(
    "name", [n for n, (file, _) in DAMAGES.items() if file != MANIFEST and n not in NOT_KNOWN]
)
def test_arrays_without_a_manifest_are_checked_as_far_as_possible(tmp_path, draw_images, name):
    images = draw_images(6, 4, 4, 1)
    data = undecoded(images)
    folder, (file, damage) = array_folder(data, tmp_path), DAMAGES[name]
    decode(data, tmp_path)
    damage(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(ValueError, match=rf"^\S*/{file} .*; run main.py --mode=prepare"):
        decode(data, tmp_path)
    repair(data, tmp_path)
    np.testing.assert_array_equal(decode(data, tmp_path).train.images, images)


def test_arrays_without_a_manifest_or_images_are_decoded(tmp_path, draw_images):
    images = draw_images(4, 4, 4, 1)
    data = undecoded(images)
    decode(data, tmp_path)
    for name in (MANIFEST, IMAGES):
        (array_folder(data, tmp_path) / name).unlink()
    np.testing.assert_array_equal(decode(data, tmp_path).train.images, images)


def test_a_folder_that_cannot_be_written_is_read(tmp_path, draw_images, monkeypatch, capsys):
    images = draw_images(4, 4, 4, 1)
    data = undecoded(images, read=None)
    before = decode(data, tmp_path).identity
    (array_folder(data, tmp_path) / MANIFEST).unlink()

    def read_only(*arguments):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(missing_shards, "write_manifest", read_only)
    assert decode(data, tmp_path).identity == before
    assert "cannot be written to (Read-only file system)" in capsys.readouterr().err


def test_other_class_names_are_other_data(tmp_path, draw_images):
    data = undecoded(draw_images(3, 4, 4, 1))
    decode(data, tmp_path)
    renamed = data._replace(classes=("ant", "bee", "dog"))
    with pytest.raises(ValueError, match="belongs to other data: classes differ.*--mode=prepare"):
        decode(renamed, tmp_path)
    repair(renamed, tmp_path)
    assert decode(renamed, tmp_path).identity["classes"] == ["ant", "bee", "dog"]


def test_a_source_with_a_label_out_of_range_is_refused(tmp_path, draw_images):
    images = draw_images(3, 4, 4, 1)
    data = undecoded(images, read=lambda i: (images[i], i + 1))
    with pytest.raises(ValueError, match="folder:/x train has label 3, which is none of its 3"):
        decode(data, tmp_path)


def test_a_full_disk_is_reported_before_decoding(tmp_path, draw_images, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=2 * 2**20)
    monkeypatch.setattr(arrays.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(arrays, "GIB", 2**20)
    data = undecoded(np.zeros((3, 1024, 1024, 1), np.uint8), read=refuse)
    with pytest.raises(OSError, match="2.00 GiB free, and folder:/x train takes 3.00 GiB; free"):
        decode(data, tmp_path)


def test_a_disk_that_fills_up_is_reported(tmp_path, draw_images, monkeypatch):
    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    data = undecoded(draw_images(3, 4, 4, 1))
    with pytest.raises(OSError, match="has no room for .*free disk space.*there already is whole"):
        decode(data, tmp_path)
    assert names_in(array_folder(data, tmp_path)) == []


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
