"""Data in buckets are copied to the disk, and again if they have changed."""

import io
import json
import threading
import time
from pathlib import Path

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


@pytest.fixture
def tried(monkeypatch):
    """The names of the objects that are fetched, and those of objects that cannot be."""
    names, failing, own = [], {"broken"}, buckets.fetch

    def fetch(place, name, file):
        names.append(name)
        if name in failing:
            raise ConnectionError("reset")
        own(place, name, file)

    monkeypatch.setattr(buckets, "fetch", fetch)
    return names, failing


def mark(*names):
    """Objects without content under these very names; pipe_file would strip their slashes."""
    fs = fsspec.filesystem("memory")
    for name in names:
        fs.pipe_file("empty", b"")
        fs.store[name] = fs.store.pop("/empty")


def test_objects_that_stand_for_folders_are_left_out(tmp_path, tried):
    marks = ("/marked/", "/marked/cat/", "/marked/none/", "/bare/")
    put("marked/cat/a.png", 10)
    mark(*marks)
    try:
        folder = fetched("memory://marked", tmp_path, "data.name")
        with pytest.raises(FileNotFoundError, match="memory://bare has no objects"):
            fetched("memory://bare", tmp_path, "data.name")
    finally:
        for name in marks:
            del fsspec.filesystem("memory").store[name]
    assert tried[0] == ["cat/a.png"] and (Path(folder) / "cat/a.png").is_file()


@pytest.mark.parametrize("inside", ["../out.png", "a/../../out.png", "/out.png"])
def test_a_name_that_leads_out_of_the_copies_is_refused(inside, tmp_path, monkeypatch):
    fs = fsspec.filesystem("memory")
    found = {f"/led/{inside}": {"size": 1}}
    monkeypatch.setattr(type(fs), "find", lambda *_, **__: found)
    monkeypatch.setattr(buckets, "fetch", lambda place, name, file: file.write_bytes(b"x"))
    with pytest.raises(ValueError, match=f"data.name: the object '{inside}' of memory://led .*it"):
        fetched("memory://led", tmp_path, "data.name")


def test_a_copy_that_is_broken_off_keeps_what_it_has(tried, tmp_path):
    fs, (names, failing) = fsspec.filesystem("memory"), tried
    for name in ("a", "b", "broken", "gone"):
        fs.pipe_file(f"halves/{name}", b"x")
    with pytest.raises(OSError, match=r"memory://halves cannot be read or written \(reset\)"):
        fetched("memory://halves", tmp_path, "data.name")
    assert {"a", "b", "broken"} <= {*names}
    fs.rm_file("halves/gone")
    failing.clear()
    names.clear()
    folder = fetched("memory://halves", tmp_path, "data.name")
    assert names == ["broken"]
    assert sorted(path.name for path in Path(folder).iterdir()) == ["a", "b", "broken"]


def test_a_copy_that_is_killed_has_kept_a_part(tmp_path, monkeypatch):
    fs, own, seen = fsspec.filesystem("memory"), buckets.fetch, []
    for name in ("a", "b"):
        fs.pipe_file(f"killed/{name}", b"x")
    record = tmp_path / "buckets/memory/killed.objects.json"

    def fetch(place, name, file):
        deadline = time.monotonic() + 10.0
        while name == "b" and not record.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        seen.extend(json.loads(record.read_text()) if name == "b" else [])
        own(place, name, file)

    monkeypatch.setattr(buckets, "fetch", fetch)
    monkeypatch.setattr(buckets, "RECORD_SECONDS", 0.0)
    fetched("memory://killed", tmp_path, "data.name")
    assert seen == ["a"]
    assert [*json.loads(record.read_text())] == ["a", "b"]


def test_several_objects_are_fetched_at_once(tmp_path, monkeypatch):
    fs, own = fsspec.filesystem("memory"), buckets.fetch
    for number in range(buckets.COPIES):
        fs.pipe_file(f"many/{number}", b"%d" % number)
    together = threading.Barrier(buckets.COPIES, timeout=10.0)

    def fetch(place, name, file):
        together.wait()
        own(place, name, file)

    monkeypatch.setattr(buckets, "fetch", fetch)
    folder = fetched("memory://many", tmp_path, "data.name")
    assert {path.name: path.read_text() for path in Path(folder).iterdir()} == {
        str(number): str(number) for number in range(buckets.COPIES)
    }
