"""Data in buckets are copied to the disk, and again if they have changed."""

import io
import threading

import fsspec
import numpy as np
import pytest
from PIL import Image

from fewstep import buckets, data
from fewstep.buckets import address_of, fetched, is_address


def put(name, value):
    """An object that is a picture of one color."""
    Image.new("L", (8, 8), value).save(content := io.BytesIO(), format="PNG")
    fsspec.filesystem("memory").pipe_file(name, content.getvalue())


def test_addresses():
    assert all(map(is_address, ("gs://b/x", "gs:/b/x", "s3://b", "memory://b/x")))
    assert not any(map(is_address, ("runs/x", "/shared/a:b", ".", "C:/x", "folder:x", "")))
    assert address_of("gs:/b/x/") == address_of("gs://b/x") == "gs://b/x"


def test_a_folder_of_images_in_a_bucket_is_a_data_set(tmp_path):
    for name, value in (("cat/a.png", 10), ("dog/b.png", 200)):
        put(f"pets/{name}", value)
    asked = data.Selection("folder:memory://pets", str(tmp_path), 8, 1)
    found = data.load_selection(asked)
    assert [*found.train.labels] == [0, 1]
    np.testing.assert_array_equal(found.train.images[1], np.full((8, 8, 1), 200, np.uint8))
    fsspec.filesystem("memory").rm_file("pets/dog/b.png")
    put("pets/owl/c.png", 99)
    assert data.load_selection(asked).classes == ("cat", "owl")


def test_a_pattern_copies_the_folder_in_which_it_looks(tmp_path):
    fs = fsspec.filesystem("memory")
    for name in ("0.tar", "1.tar"):
        fs.pipe_file(f"shards/set/{name}", b"x")
    path = fetched("memory://shards/set/{0..1}.tar", tmp_path, "data.name")
    assert path == f"{tmp_path}/buckets/memory/shards/set/{{0..1}}.tar"
    assert sorted(file.name for file in (tmp_path / "buckets/memory/shards/set").iterdir()) == [
        "0.tar",
        "1.tar",
    ]
    assert fetched("/data/pets", tmp_path, "data.name") == "/data/pets"
    with pytest.raises(FileNotFoundError, match="data.name: memory://none/x has no objects"):
        fetched("memory://none/x", tmp_path, "data.name")


def test_one_process_copies_and_the_next_finds_all_there(tmp_path, monkeypatch):
    fs, copied = fsspec.filesystem("memory"), []
    fs.pipe_file("taken/a", b"x")
    start, ready = threading.Event(), threading.Event()
    own = buckets.fetch

    def slow(place, name, file):
        copied.append(name)
        ready.set()
        start.wait(10.0)
        own(place, name, file)

    monkeypatch.setattr(buckets, "fetch", slow)
    threads = [
        threading.Thread(target=fetched, args=("memory://taken", tmp_path, "x")) for _ in range(2)
    ]
    threads[0].start()
    assert ready.wait(10.0)
    threads[1].start()
    start.set()
    for thread in threads:
        thread.join()
    assert copied == ["a"]
