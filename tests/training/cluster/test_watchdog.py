import math
import subprocess
import sys
import time
from pathlib import Path

from fewstep.training.cluster import exits, processes, watchdog
from fewstep.training.cluster.watchdog import Patience, Watchdog
from tests.training.killed import wait_for

ROOT = Path(__file__).parents[3]


def stacks(folder):
    return list((folder / "stacks").glob("*.txt"))


def test_a_hanging_step_writes_all_stacks_once(tmp_path, capfd):
    with Watchdog(tmp_path, Patience(seconds=0.1, exit_after=0.0)) as watching:
        watching.beat()
        wait_for(lambda: stacks(tmp_path), 30.0)
        time.sleep(0.3)
        (path,) = stacks(tmp_path)
        assert "test_watchdog.py" in path.read_text()  # where the main thread hangs
        watching.beat()
        assert not watching.reported
    assert f"no step was finished for 0 s: {path}" in capfd.readouterr().err


def test_it_does_not_watch_before_the_first_step_nor_when_paused(tmp_path):
    with Watchdog(tmp_path, Patience(seconds=0.05, exit_after=0.0)) as watching:
        time.sleep(0.3)
        watching.beat()
        with watching.paused():
            time.sleep(0.3)
        time.sleep(0.2)
    assert not stacks(tmp_path)


def test_slow_steps_are_given_ten_times_their_median(tmp_path):
    first = Watchdog(tmp_path)
    assert first.limit() == 60.0
    first.times.extend([1.0, 9.0, 50.0])
    assert first.limit() == 90.0
    for patience, limit in ((Patience(factor=20.0), 180.0), (Patience(seconds=100.0), 100.0)):
        other = Watchdog(tmp_path, patience)
        other.times.extend(first.times)
        assert other.limit() == limit


def test_a_save_may_take_what_its_size_allows():
    gigabyte = 10**9
    assert Patience(disk_speed=0.5).save_seconds(3 * gigabyte) == watchdog.SMALLEST_SAVE + 6.0
    assert Patience(disk_speed=0.0).save_seconds(3 * gigabyte) == math.inf


def test_a_save_is_watched_in_place_of_steps(tmp_path, monkeypatch, capfd):
    ended = []
    monkeypatch.setattr(processes, "abort", lambda code, text: ended.append((code, text)))
    monkeypatch.setattr(watchdog, "SMALLEST_SAVE", 0.3)
    with Watchdog(tmp_path, Patience(seconds=0.1, exit_after=0.2)) as watching:
        watching.beat()
        with watching.saving():
            time.sleep(0.25)
        time.sleep(0.2)
        assert not ended and not stacks(tmp_path)
        with watching.saving():
            wait_for(lambda: ended)
    assert ended[0][0] == exits.STALLED and "a checkpoint was not saved in 0 s" in ended[0][1]
    assert stacks(tmp_path)


def test_a_disk_that_does_not_answer_keeps_no_process_alive(tmp_path, monkeypatch, capfd):
    ended = []
    monkeypatch.setattr(processes, "abort", lambda code, text: ended.append(code))
    monkeypatch.setattr(watchdog, "WRITTEN", 0.1)
    monkeypatch.setattr(Watchdog, "write_stacks", lambda *_: time.sleep(5.0))
    with Watchdog(tmp_path, Patience(seconds=0.1, exit_after=0.2)) as watching:
        watching.beat()
        wait_for(lambda: ended)
    shown = capfd.readouterr().err
    assert "test_watchdog.py" in shown and f"{tmp_path / 'stacks'} does not answer" in shown


def test_past_its_limit_the_process_ends_with_its_own_code(tmp_path):
    program = (
        "import time; from pathlib import Path;"
        "from fewstep.training.cluster.watchdog import Patience, Watchdog;"
        f"w = Watchdog(Path({str(tmp_path)!r}), Patience(0.1, 1.0, 0.5)).__enter__();"
        "w.beat(); time.sleep(60)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=50
    )
    assert ended.returncode == exits.STALLED
    assert "same command goes on from the last checkpoint" in ended.stderr
    assert stacks(tmp_path)
