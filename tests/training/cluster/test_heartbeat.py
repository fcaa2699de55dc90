import os
import shutil
import time

import jax

from fewstep.training.cluster import heartbeat as module
from fewstep.training.cluster.heartbeat import FOLDER, Heartbeat
from fewstep.training.cluster.watchdog import Patience, Watchdog


def age(file, seconds):
    os.utime(file, (time.time() - seconds,) * 2)


def is_fresh(file):
    return time.time() - file.stat().st_mtime < 60.0


def test_a_beat_touches_the_file_at_most_once_a_second(tmp_path, monkeypatch):
    clock, touched = [0.0], []
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    heart = Heartbeat(tmp_path)
    monkeypatch.setattr(module.os, "utime", touched.append)
    assert heart.file == tmp_path / FOLDER / "0" and heart.file.exists()
    for clock[0] in (0.0, 0.4, 0.9, 1.1, 1.2, 2.5):
        heart.beat()
    assert len(touched) == 3


def test_a_lost_file_comes_back_but_not_a_lost_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PERIOD", 0.0)
    (tmp_path / "run").mkdir()
    heart = Heartbeat(tmp_path / "run")
    heart.file.unlink()
    heart.beat()
    assert heart.file.exists()
    shutil.rmtree(tmp_path / "run")
    heart.beat()
    assert not (tmp_path / "run").exists()


def test_files_of_processes_that_are_no_more_go(tmp_path):
    (tmp_path / FOLDER).mkdir()
    for name in ("0", "1", "12", "notes"):
        (tmp_path / FOLDER / name).touch()
    Heartbeat(tmp_path)
    assert sorted(file.name for file in (tmp_path / FOLDER).iterdir()) == ["0", "notes"]
    assert jax.process_count() == 1


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "PERIOD", 0.0)
    (tmp_path / FOLDER).write_text("a file in its place")
    heart = Heartbeat(tmp_path)
    heart.beat()
    heart.beat()
    assert capsys.readouterr().err.count("watchers will miss it") == 1


def test_a_watched_step_does_not_beat_and_what_has_no_steps_does(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PERIOD", 0.0)
    file = tmp_path / FOLDER / "0"
    with Watchdog(tmp_path, Patience(seconds=0.4, factor=0.0, exit_after=0.0)) as watchdog:
        age(file, 900)  # the first step is being compiled
        deadline = time.monotonic() + 30.0
        while not is_fresh(file) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert is_fresh(file)
        age(file, 900)
        watchdog.beat()
        assert is_fresh(file)
        time.sleep(0.2)  # a beat of the thread that was under way
        age(file, 900)
        time.sleep(0.5)  # a step that hangs
        assert not is_fresh(file)
