"""Several processes decode one data set; here they are threads that share a folder."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fewstep.data.arrays import missing_shards
from fewstep.data.arrays import shards as arrays
from fewstep.data.arrays.array_cache import decode, repair
from fewstep.data.arrays.group import ProcessGroup
from fewstep.data.arrays.undecoded import array_folder
from tests.data.arrays.test_array_cache import refuse, undecoded

SHAPE, COUNT, IN_SHARD = (4, 4, 1), 22, 4  # six shards, the last of two images


@pytest.fixture
def images(draw_images, monkeypatch):
    monkeypatch.setattr(arrays, "SHARD_BYTES", IN_SHARD * int(np.prod(SHAPE)))
    return draw_images(COUNT, *SHAPE)


def together(count, root, *data):
    """`repair` in so many threads; data: of each, or of all. Raises the first error."""
    barrier = threading.Barrier(count)

    def work(index):
        try:
            own = data[index % len(data)]
            return repair(own, root, ProcessGroup(index, count, barrier.wait))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(count) as threads:
        done = [threads.submit(work, index) for index in range(count)]
    errors = [one.exception() for one in done if one.exception()]
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    return done[0].result()


def contents(folder):
    """The bytes of all arrays, by name."""
    return {file.name: file.read_bytes() for file in folder.glob("*.npy")}


@pytest.mark.parametrize("count", [2, 4, 7])
def test_several_processes_write_the_files_of_one(images, tmp_path, count, capsys):
    read = [[] for _ in range(count)]
    sources = [
        undecoded(images, read=lambda i, seen=seen: seen.append(i) or (images[i], i % 3))
        for seen in read
    ]
    folder = together(count, tmp_path / "many", *sources)
    alone = repair(undecoded(images), tmp_path / "one")
    assert contents(folder) == contents(alone) != {}
    assert sorted(i for seen in read for i in seen) == list(range(COUNT))
    assert {i // IN_SHARD % count for i in read[1]} == {1}
    said = capsys.readouterr().err
    assert said.count("folder:/x train: 22 images in 6 shards decoded") == 2
    ours, theirs = (
        decode(undecoded(images, read=refuse), tmp_path / name) for name in ("many", "one")
    )
    assert ours.identity == theirs.identity
    assert [file.name for file in folder.glob("manifest*")] == ["manifest.json"]


@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 3), (3, 2)])
def test_what_an_interruption_has_left_is_kept_by_any_number(images, tmp_path, before, after):
    def fail(i):
        if i == 17:
            raise KeyboardInterrupt
        return images[i], i % 3

    with pytest.raises(KeyboardInterrupt):
        together(before, tmp_path, undecoded(images, read=fail))
    there = {int(file.name.split("-")[1]) for file in tmp_path.rglob("train_labels-*")}
    assert len(there) >= 3 and 4 not in there
    seen = []
    again = undecoded(images, read=lambda i: seen.append(i) or (images[i], i % 3))
    together(after, tmp_path, again)
    assert {i // IN_SHARD for i in seen} == {*range(6)} - there
    found = decode(undecoded(images, read=refuse), tmp_path)
    np.testing.assert_array_equal(found.train.images[:], images)
    assert found.identity == found._replace(recorded=None).identity


def test_a_damaged_shard_is_decoded_again_by_its_process_alone(images, tmp_path):
    folder = together(2, tmp_path, undecoded(images))
    file = folder / "train_images-00003-of-00006.npy"
    file.write_bytes(file.read_bytes()[:-1])
    seen = []
    again = undecoded(images, read=lambda i: seen.append(i) or (images[i], i % 3))
    together(2, tmp_path, undecoded(images, read=refuse), again)
    assert sorted(seen) == [12, 13, 14, 15]
    np.testing.assert_array_equal(
        decode(undecoded(images, read=refuse), tmp_path).train.images[:], images
    )


def test_a_disk_that_does_not_show_the_others_is_named(images, tmp_path, monkeypatch):
    monkeypatch.setattr(missing_shards, "VISIBLE_SECONDS", 0.2)
    barrier, folder = threading.Barrier(2), array_folder(undecoded(images), tmp_path)

    def blind():
        for _ in range(2):  # meets the other, and writes nothing where it looks
            barrier.wait()

    with ThreadPoolExecutor(1) as threads:
        threads.submit(blind)
        with pytest.raises(OSError, match=f"{folder} does not show what the other processes"):
            repair(undecoded(images), tmp_path, ProcessGroup(0, 2, barrier.wait))
