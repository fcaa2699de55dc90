import errno
import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep import files
from fewstep.data.spaces.pixels import pixel_space
from fewstep.files import (
    check_writable,
    in_words,
    replace_file,
    replaced,
    whole_folder,
    write_json,
)
from fewstep.modes.draws import choose_pairs
from fewstep.modes.sample import write_folder
from tests.cli import SERVER
from tests.training.killed import signal_self, wait_for


def killed_while_writing(path):
    with replaced(path) as file:
        file.write(b"half")
        file.flush()
        signal_self()


def test_what_a_kill_leaves_is_gone_once_the_file_is_written_again(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")
    process = SERVER.Process(target=killed_while_writing, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == -9 and path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2
    replace_file(path, b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("picture.png", b"new")]


def write_slowly(path, begun, go_on):
    with replaced(path) as file:
        file.write(b"first")
        begun.touch()
        wait_for(go_on.exists, 30.0)
        file.write(b" whole")


def test_what_a_living_process_writes_is_left_to_it(tmp_path):
    path, begun, go_on = (tmp_path / name for name in ("file", "begun", "go_on"))
    process = SERVER.Process(target=write_slowly, args=(path, begun, go_on))
    process.start()
    wait_for(begun.exists, 60.0)
    seen = []

    def write_too():
        with replaced(path) as file:
            seen.append(path.read_bytes())  # the other's comes first, and whole
            file.write(b"second")

    thread = threading.Thread(target=write_too)
    thread.start()
    thread.join(0.3)
    assert thread.is_alive() and not path.exists()
    go_on.touch()
    process.join()
    thread.join(30.0)
    assert seen == [b"first whole"] and path.read_bytes() == b"second"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("alone", [False, True])
def test_leftovers_of_dead_writers_go_and_nothing_else(tmp_path, monkeypatch, alone):
    monkeypatch.setattr(files.socket, "gethostname", lambda: "there")
    there = files.host_code()
    monkeypatch.setattr(files.socket, "gethostname", lambda: "here")
    here, old, code = files.host_code(), 2 * files.SILENCE_SECONDS, 32 * "a"
    goes = {
        f".a.json@{here}.tmp": 0,
        f".b.json.{here}@{here}.tmp": 0,  # of a file system without locks
        f".c.json@{there}.tmp": old,
        f"b.npy.{code}@there.tmp": old,  # of an earlier version
    }
    if_alone = {f"a.npy.{code}@here.tmp": 0, f"a.npy.{code}.tmp": 0}
    stays = {f".d.json@{there}.tmp": 0, f"a.npy.{code}@there.tmp": 0, "mine.tmp": old}
    for name, age in (goes | if_alone | stays).items():
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    files.remove_leftovers(tmp_path, alone)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*stays, *([] if alone else if_alone)}


def test_the_first_write_of_a_process_clears_a_folder_of_what_killed_ones_left(tmp_path):
    for name in (f".other.json@{files.host_code()}.tmp", ".file.tmp"):
        (tmp_path / name).write_bytes(b"half")  # the second as earlier versions called it
    replace_file(tmp_path / "file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_another_writes_is_no_leftover(tmp_path):
    with replaced(tmp_path / "file") as file:
        file.write(b"first")
        files.remove_leftovers(tmp_path)
        replace_file(tmp_path / "other", b"second")
    assert (tmp_path / "file").read_bytes() == b"first"


def test_another_host_has_other_names_and_each_writer_without_locks(tmp_path, monkeypatch):
    def names():
        with replaced(tmp_path / "file"), replaced(tmp_path / "other"):
            return {path.name for path in tmp_path.glob("*.tmp")}

    first = names()
    assert len(first) == 2 and names() == first
    monkeypatch.setattr(files.socket, "gethostname", lambda: "another")
    assert not names() & first

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    with replaced(tmp_path / "file") as ours:
        ours.write(b"ours")
        replace_file(tmp_path / "file", b"theirs")
    assert (tmp_path / "file").read_bytes() == b"ours"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "other"]


def test_a_block_that_fails_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), replaced(path) as file:
        file.write(b"new")
        raise KeyError
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_file_that_cannot_be_written_is_named_and_what_was_there_stays(
    tmp_path, monkeypatch, number
):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match=f"^{path} could not be written") as error:
        replace_file(path, b"new")
    assert os.strerror(number) in str(error.value) and "nothing that was there" in str(error.value)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


def test_text_of_a_command_line_that_is_no_utf_8_is_written(tmp_path):
    content = {"command": [os.fsdecode(b"runs/\xff"), "Zürich"]}
    write_json(tmp_path / "file.json", content)
    assert json.loads((tmp_path / "file.json").read_bytes()) == content


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.EISDIR, "Move away"), (errno.EACCES, "permissions"), (errno.EIO, "same command")],
)
def test_an_error_of_the_system_names_its_file_and_a_remedy(number, remedy):
    said = in_words(OSError(number, os.strerror(number), "/there/run.json"))
    assert said.startswith(f"/there/run.json: {os.strerror(number)}. ") and remedy in said


def test_what_is_appended_is_appended_whole_or_not_at_all(tmp_path):
    class Full:
        """A disk with room for so many bytes."""

        def __init__(self, file, room):
            self.file, self.room = file, room

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, content):
            if not self.room:
                raise OSError(errno.ENOSPC, "full")
            written = self.file.write(content[: self.room])
            self.room -= written
            return written

    path = tmp_path / "log"
    with path.open("ab", buffering=0) as file:
        files.append(Full(file, 8), b"one\n")
        with pytest.raises(OSError, match="full"):
            files.append(Full(file, 3), b"two and more\n")
        files.append(file, b"three\n")
    assert path.read_bytes() == b"one\nthree\n"


def test_a_leftover_of_another_user_does_not_stop_a_writer(tmp_path, monkeypatch):
    opened = os.open

    def refuse(path, *given):
        if Path(path).name.endswith(".tmp") and given[0] & os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *given)

    monkeypatch.setattr(files.os, "open", refuse)
    replace_file(tmp_path / "new", b"whole")
    assert (tmp_path / "new").read_bytes() == b"whole"
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def killed_in_the_second_picture(folder):
    Image.init()
    encode, made = Image.SAVE["PNG"], []

    def encode_or_die(image, file, name):
        made.append(image)
        if len(made) == 2:
            signal_self()
        encode(image, file, name)

    Image.SAVE["PNG"] = encode_or_die
    images = iter([np.zeros((3, 8, 8, 1), np.uint8)])
    draw = choose_pairs(range(3), (), 0)
    write_folder(folder, pixel_space((8, 8, 1)), images, draw, {})


def test_pictures_of_samples_are_whole_or_not_there(tmp_path):
    process = SERVER.Process(target=killed_in_the_second_picture, args=(tmp_path / "out",))
    process.start()
    process.join()
    assert process.exitcode == -9
    (first,) = (tmp_path / "out").iterdir()
    assert first.name == "000000.png" and Image.open(first).size == (8, 8)


def test_a_folder_that_files_cannot_be_written_to_is_named_with_the_remedy(tmp_path):
    check_writable(tmp_path / "not" / "there yet", "choose another")
    assert not (tmp_path / "not").exists() and not [*tmp_path.iterdir()]
    (tmp_path / "file").write_text("no folder")
    for folder in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(OSError, match=f"^{folder} cannot be written to .*; choose another$"):
            check_writable(folder, "choose another")


@pytest.mark.parametrize("fails", [False, True])
def test_a_second_writer_of_a_folder_waits_and_is_told_that_it_is_there(tmp_path, fails):
    inside, leave, told = threading.Event(), threading.Event(), []

    def write(last):
        try:
            with whole_folder(tmp_path / "out") as folder:
                (folder / "x").write_text("x")
                if not last:
                    inside.set()
                    leave.wait(10.0)
                    if fails:
                        raise ValueError("no")
        except (OSError, ValueError) as error:
            told.append(str(error))

    first, second = (threading.Thread(target=write, args=(last,)) for last in (False, True))
    first.start()
    assert inside.wait(10.0)
    second.start()
    time.sleep(0.2)
    leave.set()
    first.join()
    second.join()
    assert (tmp_path / "out" / "x").read_text() == "x"
    (message,) = told
    assert message == "no" if fails else "is there already; choose another place" in message
