"""A run's folder in a bucket: what the bucket has is whole, whenever the machine is lost."""

import itertools
import os
import signal
import socket
import sys
import time
from pathlib import Path

import fsspec
import pytest

from fewstep import buckets
from fewstep.modes.bucket import on_disk
from fewstep.training.cluster import processes
from fewstep.training.storage import bucket_listing as LISTINGS
from fewstep.training.storage import mirror as MIRROR
from fewstep.training.storage.mirror import LISTING, mirrored, pull, push, scan
from fewstep.training.storage.mirror_files import folder_of

NAMES = map("memory://bucket{}/run".format, itertools.count())
FILES = {"run.json": "a", "checkpoints/5/network/d/1": "b" * 9, "checkpoints/5/run/metadata": "c"}


@pytest.fixture
def address():
    """The address of a folder that nobody has used."""
    return next(NAMES)


def fill(folder, files=FILES):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def texts(folder):
    return {name: (folder / name).read_text() for name in scan(folder)}


def seen_by_another(address, root):
    """What another machine finds in the bucket."""
    place = buckets.open_place(address, "--workdir")
    folder = buckets.mirror_of(address, root)
    folder.parent.mkdir(parents=True, exist_ok=True)
    pull(place, folder)
    return texts(folder)


def test_another_machine_finds_the_run(address, tmp_path):
    with mirrored(Path(address), tmp_path, writes=True) as folder:
        fill(folder)
        unfinished = ("checkpoints/6.orbax-checkpoint-tmp/x", ".run.json@00.tmp", "lock")
        fill(folder, dict.fromkeys((*unfinished, "heartbeat/0"), "z"))
    assert seen_by_another(address, tmp_path / "other") == FILES


def test_what_is_removed_leaves_the_bucket_and_other_mirrors(address, tmp_path):
    with mirrored(Path(address), tmp_path, writes=True) as folder:
        fill(folder)
    assert seen_by_another(address, tmp_path / "other") == FILES
    with mirrored(Path(address), tmp_path, writes=True) as folder:
        for name in FILES:
            if name.startswith("checkpoints"):
                (folder / name).unlink()
        fill(folder, {"checkpoints/7/network/d/1": "new", "run.json": "other"})
    left = {"checkpoints/7/network/d/1": "new", "run.json": "other"}
    assert seen_by_another(address, tmp_path / "other") == left
    place = buckets.open_place(address, "")
    objects = {name.removeprefix(f"{place.path}/") for name in place.fs.find(place.path)}
    assert objects == {LISTING, *left}


@pytest.mark.parametrize("written", range(4))
def test_a_checkpoint_is_never_half_visible(address, tmp_path, monkeypatch, written):
    # The machine is lost after some of the objects of the second checkpoint.
    with mirrored(Path(address), tmp_path, writes=True) as folder:
        fill(folder)
    place, count = buckets.open_place(address, ""), itertools.count()
    fill(folder, {f"checkpoints/6/{name}": "new" for name in "abc"})
    put, pipe = place.fs.put_file, place.fs.pipe_file

    def stop_after(function):
        def call(*arguments):
            if next(count) == written:
                raise KeyboardInterrupt
            return function(*arguments)

        return call

    monkeypatch.setattr(place.fs, "put_file", stop_after(put))
    monkeypatch.setattr(place.fs, "pipe_file", stop_after(pipe))
    with pytest.raises(KeyboardInterrupt):
        push(place, folder)
    assert seen_by_another(address, tmp_path / "other") == FILES
    push(place, folder)
    assert "checkpoints/6/c" in seen_by_another(address, tmp_path / "other")


def test_a_checkpoint_that_goes_while_it_is_copied_is_not_listed(address, tmp_path, monkeypatch):
    place, folder = buckets.open_place(address, ""), tmp_path / "run"
    fill(folder)
    put = place.fs.put_file

    def put_then_remove(source, target):
        put(source, target)
        (folder / "checkpoints/5/run/metadata").unlink(missing_ok=True)

    monkeypatch.setattr(place.fs, "put_file", put_then_remove)
    push(place, folder)
    assert seen_by_another(address, tmp_path / "other") == {"run.json": "a"}


def test_a_mirror_that_is_ahead_goes_on_and_one_behind_is_made_equal(address, tmp_path):
    place = buckets.open_place(address, "")
    with mirrored(Path(address), tmp_path, writes=True) as folder:
        fill(folder)
    fill(folder, {"checkpoints/9/a": "not copied, since the process was killed"})
    with mirrored(Path(address), tmp_path, writes=True) as folder:
        assert "checkpoints/9/a" in scan(folder)
    assert "checkpoints/9/a" in seen_by_another(address, tmp_path / "other")
    other = buckets.mirror_of(address, tmp_path / "other")
    fill(other, {"run.json": "newer"})
    push(place, other, ended=True)
    fill(folder, {"checkpoints/10/a": "of a machine that was overtaken"})
    with mirrored(Path(address), tmp_path, writes=True) as folder:
        assert texts(folder) == texts(other)


def test_a_run_of_another_machine_is_not_written_to(address, tmp_path, monkeypatch, capsys):
    place, folder = buckets.open_place(address, ""), tmp_path / "run"
    fill(folder)
    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "tpu-7")
        push(place, folder)
    with (
        pytest.raises(ValueError, match=f"--workdir={address} is being written by tpu-7"),
        mirrored(Path(address), tmp_path, writes=True),
    ):
        raise AssertionError
    with mirrored(Path(address), tmp_path, writes=False) as mirror:
        fill(mirror, {"samples/0.png": "mine"})
    assert "stays in" in capsys.readouterr().out
    assert "samples/0.png" not in seen_by_another(address, tmp_path / "other")
    later = time.time() + LISTINGS.SILENCE + 1.0
    monkeypatch.setattr(time, "time", lambda: later)  # tpu-7 was lost
    with mirrored(Path(address), tmp_path, writes=True) as mirror:
        assert texts(mirror) == {**FILES, "samples/0.png": "mine"}


def test_a_run_that_has_ended_is_free_for_another_machine(address, tmp_path, monkeypatch):
    place, folder = buckets.open_place(address, ""), tmp_path / "run"
    fill(folder)
    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "tpu-7")
        push(place, folder, ended=True)
    with mirrored(Path(address), tmp_path, writes=True) as mirror:
        assert texts(mirror) == FILES


def test_copies_are_made_while_a_run_goes_on(address, tmp_path, monkeypatch):
    monkeypatch.setattr(MIRROR, "EVERY", 0.01)
    place = buckets.open_place(address, "")
    with mirrored(Path(address), tmp_path, writes=True) as folder:
        fill(folder)
        end = time.monotonic() + 30.0
        while "run.json" not in MIRROR.read_listing(place).get("files", {}):
            assert time.monotonic() < end
            time.sleep(0.01)
        # A second command of this machine uses the same mirror, but does not train there.
        with mirrored(Path(address), tmp_path, writes=False) as same:
            assert same == folder
        with (
            pytest.raises(ValueError, match="is used by another command of this machine"),
            mirrored(Path(address), tmp_path, writes=True),
        ):
            raise AssertionError
        assert not MIRROR.read_listing(place)["ended"]
    assert MIRROR.read_listing(place)["ended"]


def test_a_long_copy_shows_that_its_writer_lives(address, tmp_path, monkeypatch):
    place, folder = buckets.open_place(address, ""), tmp_path / "run"
    fill(folder, {"run.json": "a"})
    push(place, folder)
    monkeypatch.setattr(LISTINGS, "EVERY", 0.01)
    first, seen, put = MIRROR.read_listing(place), [], place.fs.put_file

    def slow(*given):
        put(*given)
        end = time.monotonic() + 30.0
        while (now := MIRROR.read_listing(place))["at"] == first["at"]:
            assert time.monotonic() < end
            time.sleep(0.01)
        seen.append(now)

    monkeypatch.setattr(place.fs, "put_file", slow)
    fill(folder)
    push(place, folder)
    assert seen and [*seen[-1]["files"]] == ["run.json"]  # of the copy before
    assert seen[-1]["id"] == first["id"] != MIRROR.read_listing(place)["id"]
    assert not seen[-1]["ended"]


def test_the_mirror_of_a_run_that_the_bucket_has_lost_is_kept(address, tmp_path, capsys):
    with mirrored(Path(address), tmp_path, writes=True) as folder:
        fill(folder)
    place = buckets.open_place(address, "")
    place.fs.rm(place.path, recursive=True)
    with mirrored(Path(address), tmp_path, writes=True) as folder:
        assert not scan(folder)
        fill(folder, {"run.json": "new"})
    (kept,) = folder.parent.glob("*.kept")
    assert texts(kept) == FILES and str(kept) in capsys.readouterr().out
    assert seen_by_another(address, tmp_path / "other") == {"run.json": "new"}


def test_an_object_that_did_not_arrive_is_not_listed(address, tmp_path, monkeypatch):
    place, folder = buckets.open_place(address, ""), tmp_path / "run"
    push(place, folder)

    def missing(*_):
        raise FileNotFoundError("no such bucket")

    fill(folder)
    with monkeypatch.context() as patch, pytest.raises(FileNotFoundError, match="no such bucket"):
        patch.setattr(place.fs, "put_file", missing)
        push(place, folder)
    assert seen_by_another(address, tmp_path / "other") == {}
    push(place, folder)
    assert seen_by_another(address, tmp_path / "other") == FILES


def test_a_writer_that_lived_during_a_long_fetch_is_alive(address, tmp_path, monkeypatch):
    place, folder, clock = buckets.open_place(address, ""), tmp_path / "run", [1000.0]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    fill(folder)

    def write(ended):
        with monkeypatch.context() as patch:
            patch.setattr(socket, "gethostname", lambda: "tpu-7")
            push(place, folder, ended)

    write(ended=False)
    fetch = MIRROR.fetch

    def slow(*given):
        fetch(*given)
        clock[0] += LISTINGS.SILENCE
        write(ended=False)

    with monkeypatch.context() as patch, pytest.raises(ValueError, match="written by tpu-7"):
        patch.setattr(MIRROR, "fetch", slow)
        with mirrored(Path(address), tmp_path / "late", writes=True):
            raise AssertionError

    def last(*given):
        fetch(*given)
        if "checkpoints/9/a" not in scan(folder):
            fill(folder, {"checkpoints/9/a": "its last"})
            write(ended=True)

    monkeypatch.setattr(MIRROR, "fetch", last)
    with mirrored(Path(address), tmp_path / "later", writes=True) as mirror:
        assert texts(mirror) == {**FILES, "checkpoints/9/a": "its last"}


def as_machine(monkeypatch, name, folder, place, **how):
    """What another machine pushes that has the newest listing."""
    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: name)
        MIRROR.write_record(folder, MIRROR.read_listing(place))
        assert not push(place, folder, **how)


@pytest.mark.parametrize("ended", [True, False])
def test_a_reader_leaves_the_run_free_and_replaces_nothing(
    address, tmp_path, monkeypatch, capsys, ended
):
    place, folder = buckets.open_place(address, ""), tmp_path / "run"
    fill(folder)
    push(place, folder, ended=True)
    newer, mine = {"checkpoints/9/a": "newer"}, {"samples/0.png": "mine"}
    with mirrored(Path(address), tmp_path, writes=False) as mirror:
        assert MIRROR.read_listing(place)["ended"]
        fill(mirror, mine)
        fill(folder, newer)
        as_machine(monkeypatch, "tpu-7", folder, place, ended=ended)
    found = seen_by_another(address, tmp_path / "other")
    assert found == FILES | newer | (mine if ended else {})
    assert ("tpu-7 writes to" in capsys.readouterr().err) != ended
    assert place.fs.exists(f"{place.path}/samples/0.png") == ended
    assert texts(mirror) == FILES | newer | mine


def test_a_command_that_makes_nothing_writes_nothing(address, tmp_path, monkeypatch, capsys):
    place, folder = buckets.open_place(address, ""), tmp_path / "run"
    fill(folder)
    push(place, folder, ended=True)
    before = MIRROR.read_listing(place)
    memory = fsspec.get_filesystem_class("memory")
    monkeypatch.setattr(memory, "pipe_file", lambda *_: 1 / 0)  # as with credentials to read
    with mirrored(Path(address), tmp_path, writes=False) as mirror:
        assert texts(mirror) == FILES
    assert MIRROR.read_listing(place) == before and not capsys.readouterr().err


def test_what_a_command_made_before_it_failed_is_copied(address, tmp_path):
    place, folder = buckets.open_place(address, ""), tmp_path / "run"
    fill(folder)
    push(place, folder, ended=True)
    with pytest.raises(KeyError), mirrored(Path(address), tmp_path, writes=False) as mirror:
        fill(mirror, {"eval/1.json": "{}"})
        raise KeyError
    assert "eval/1.json" in seen_by_another(address, tmp_path / "other")


def test_a_fetch_that_is_broken_off_starts_again(address, tmp_path, monkeypatch):
    place, folder = buckets.open_place(address, ""), tmp_path / "run"
    fill(folder)
    push(place, folder, ended=True)
    fetch, count = MIRROR.fetch, itertools.count()

    def once(*given):
        if next(count) == 1:
            raise OSError("no network")
        fetch(*given)

    monkeypatch.setattr(MIRROR, "fetch", once)
    with pytest.raises(OSError, match="no network"):
        seen_by_another(address, tmp_path / "other")
    (folder / "checkpoints/5/network/d/1").unlink()
    (folder / "checkpoints/5/run/metadata").unlink()
    fill(folder, {"checkpoints/6/a": "b"})
    push(place, folder, ended=True)
    assert seen_by_another(address, tmp_path / "other") == {"run.json": "a", "checkpoints/6/a": "b"}
    assert not [*(tmp_path / "other").rglob("*.kept")]


def test_a_file_that_goes_during_a_fetch_is_looked_for_again(address, tmp_path, monkeypatch):
    place, folder = buckets.open_place(address, ""), tmp_path / "run"
    fill(folder)
    push(place, folder)
    fetch = MIRROR.fetch

    def late(*given):
        monkeypatch.setattr(MIRROR, "fetch", fetch)
        (folder / "run.json").write_text("newer")
        push(place, folder)
        raise FileNotFoundError("gone")

    monkeypatch.setattr(MIRROR, "fetch", late)
    assert seen_by_another(address, tmp_path / "other") == {**FILES, "run.json": "newer"}


def test_a_machine_that_ended_between_two_writes_is_not_overtaken(address, tmp_path, monkeypatch):
    place = buckets.open_place(address, "")
    with mirrored(Path(address), tmp_path, writes=True) as mirror:
        fill(mirror)

    def killed(place, listing):
        LISTINGS.write_listing(place, listing)
        raise KeyboardInterrupt

    fill(mirror, {"checkpoints/6/a": "copied"})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MIRROR, "write_listing", killed)
        push(place, mirror)
    fill(mirror, {"checkpoints/7/a": "not copied"})
    with mirrored(Path(address), tmp_path, writes=True) as mirror:
        assert {"checkpoints/6/a", "checkpoints/7/a"} <= {*scan(mirror)}


def test_another_run_at_the_address_replaces_no_copy_of_the_first(address, tmp_path, capsys):
    place = buckets.open_place(address, "")
    with mirrored(Path(address), tmp_path, writes=True) as mirror:
        fill(mirror)
    place.fs.rm(place.path, recursive=True)
    fill(tmp_path / "second", {"run.json": "another"})
    push(place, tmp_path / "second", ended=True)
    with mirrored(Path(address), tmp_path, writes=True) as mirror:
        assert texts(mirror) == {"run.json": "another"}
    (kept,) = mirror.parent.glob("*.kept")
    assert texts(kept) == FILES


def test_checkpoints_of_a_comparison_are_checkpoints(tmp_path):
    names = [f"cd/seed_0/{name}" for name in FILES]
    fill(tmp_path, dict.fromkeys(names, "a"))
    unfinished = ("checkpoints/6.orbax-checkpoint-tmp/x", "lock", "heartbeat/0")
    fill(tmp_path, dict.fromkeys([f"cd/seed_0/{name}" for name in unfinished], "z"))
    assert {*scan(tmp_path)} == {*names}
    assert folder_of("cd/seed_0/checkpoints/5/network/d/1") == "cd/seed_0/checkpoints/5"
    assert folder_of("cd/seed_0/run.json") == "cd/seed_0/run.json"


def test_a_folder_that_another_machine_took_just_now_is_refused(address, tmp_path, monkeypatch):
    place, folder, pull_own = buckets.open_place(address, ""), tmp_path / "run", MIRROR.pull
    fill(folder)

    def overtaken(*given):
        other = pull_own(*given)
        with monkeypatch.context() as patch:
            patch.setattr(socket, "gethostname", lambda: "tpu-7")
            push(place, folder)
        return other

    monkeypatch.setattr(MIRROR, "pull", overtaken)
    with (
        pytest.raises(ValueError, match="is being written by tpu-7"),
        mirrored(Path(address), tmp_path, writes=True),
    ):
        raise AssertionError


def test_a_writer_that_was_taken_for_dead_keeps_what_it_made(
    address, tmp_path, monkeypatch, capsys
):
    place, folder = buckets.open_place(address, ""), tmp_path / "run"
    put = place.fs.put_file

    def slow(*given):
        monkeypatch.setattr(place.fs, "put_file", put)
        put(*given)
        as_machine(monkeypatch, "tpu-7", folder, place)

    with (
        pytest.raises(OSError, match="has been written by tpu-7 meanwhile, and not by this"),
        mirrored(Path(address), tmp_path, writes=True) as mirror,
    ):
        fill(mirror)
        assert not push(place, mirror)
        fill(folder, {**FILES, "checkpoints/8/a": "of tpu-7"})
        fill(mirror, {"checkpoints/7/a": "mine", "log": "mine"})
        monkeypatch.setattr(place.fs, "put_file", slow)
    theirs = {**FILES, "checkpoints/8/a": "of tpu-7"}
    assert seen_by_another(address, tmp_path / "other") == theirs
    as_machine(monkeypatch, "tpu-7", folder, place, ended=True)
    with mirrored(Path(address), tmp_path, writes=True) as mirror:
        assert texts(mirror) == theirs
    (kept,) = mirror.parent.glob("*.kept")
    assert texts(kept)["checkpoints/7/a"] == "mine" and str(kept) in capsys.readouterr().out


def test_objects_of_something_else_are_not_overwritten(address, tmp_path):
    place = buckets.open_place(address, "")
    place.fs.pipe_file(f"{place.path}/run.json", b"copied by hand")
    for writes in (True, False):
        with (
            pytest.raises(ValueError, match="has objects and no fewstep.json, .*copy it to a disk"),
            mirrored(Path(address), tmp_path, writes=writes),
        ):
            raise AssertionError
    assert place.fs.cat_file(f"{place.path}/run.json") == b"copied by hand"


def test_a_second_signal_does_not_stop_the_last_copy(address, tmp_path, monkeypatch):
    place = buckets.open_place(address, "")
    put = place.fs.put_file

    def signalled(*given):
        os.kill(os.getpid(), signal.SIGTERM)
        put(*given)

    def preempted(*_):
        raise InterruptedError

    before = signal.signal(signal.SIGTERM, preempted)
    try:
        with (
            pytest.raises(InterruptedError),
            mirrored(Path(address), tmp_path, writes=True) as folder,
        ):
            fill(folder)
            monkeypatch.setattr(place.fs, "put_file", signalled)
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is preempted
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen_by_another(address, tmp_path / "other") == FILES


def test_a_bucket_that_cannot_be_written_says_where_the_run_is(address, tmp_path, monkeypatch):
    def fail(*_):
        raise PermissionError("no such credentials")

    memory = fsspec.get_filesystem_class("memory")
    message = rf"{address} cannot be .*no such credentials.*nothing is lost, all is in {tmp_path}"
    with (
        monkeypatch.context() as patch,
        pytest.raises(OSError, match=message),
        mirrored(Path(address), tmp_path, writes=True) as mirror,
    ):
        fill(mirror)
        patch.setattr(memory, "pipe_file", fail)
    with (
        monkeypatch.context() as patch,
        pytest.raises(KeyError),  # the error of the run comes first
        mirrored(Path(address), tmp_path, writes=True),
    ):
        patch.setattr(memory, "pipe_file", fail)
        raise KeyError
    monkeypatch.setattr(memory, "pipe_file", fail)
    with (
        pytest.raises(OSError, match="no such credentials.; check the name"),
        mirrored(Path(address), tmp_path, writes=True),
    ):
        raise AssertionError


def test_a_command_that_finds_nothing_leaves_no_trace(address, tmp_path):
    with pytest.raises(ValueError), mirrored(Path(address), tmp_path, writes=False):
        raise ValueError
    assert not buckets.open_place(address, "").fs.exists(address)


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ValueError, match=r"gs://b/x needs gcsfs; install it by: pip install gcs"):
        buckets.open_place("gs:/b/x", "--workdir")
    with pytest.raises(ValueError, match="--workdir=ftp://b/x: addresses begin with gs, gcs, s3"):
        buckets.open_place("ftp://b/x", "--workdir")
    monkeypatch.setattr(processes, "has_peers", lambda: True)
    with (
        pytest.raises(ValueError, match="gs://b/x is an address, which only one process can use"),
        on_disk(Path("gs://b/x"), trains=True),
    ):
        raise AssertionError
