import subprocess
import sys
import time
from pathlib import Path

from tests.training.killed import wait_for
from training import exits
from training.watchdog import Patience, Watchdog

ROOT = Path(__file__).parents[2]


def stacks(folder):
    return list((folder / "stacks").glob("*.txt"))


def test_a_hanging_step_writes_all_stacks_once(tmp_path, capfd):
    with Watchdog(tmp_path, Patience(seconds=0.1, exit_after=0.0)) as watchdog:
        watchdog.beat()
        wait_for(lambda: stacks(tmp_path), 30.0)
        time.sleep(0.3)
        (path,) = stacks(tmp_path)
        assert "test_watchdog.py" in path.read_text()  # where the main thread hangs
        watchdog.beat()
        assert not watchdog.reported
    assert f"no step was finished for 0 s: {path}" in capfd.readouterr().err


def test_it_does_not_watch_before_the_first_step_nor_when_paused(tmp_path):
    with Watchdog(tmp_path, Patience(seconds=0.05, exit_after=0.0)) as watchdog:
        time.sleep(0.3)
        watchdog.beat()
        with watchdog.paused():
            time.sleep(0.3)
        time.sleep(0.2)
    assert not stacks(tmp_path)


def test_slow_steps_are_given_ten_times_their_median(tmp_path):
    watchdog = Watchdog(tmp_path)
    assert watchdog.limit() == 60.0
    watchdog.times.extend([1.0, 9.0, 50.0])
    assert watchdog.limit() == 90.0
    for patience, limit in ((Patience(factor=20.0), 180.0), (Patience(seconds=100.0), 100.0)):
        other = Watchdog(tmp_path, patience)
        other.times.extend(watchdog.times)
        assert other.limit() == limit


def test_past_its_limit_the_process_ends_with_its_own_code(tmp_path):
    program = (
        "import time; from pathlib import Path; from training.watchdog import Patience, Watchdog;"
        f"w = Watchdog(Path({str(tmp_path)!r}), Patience(0.1, 1.0, 0.5)).__enter__();"
        "w.beat(); time.sleep(60)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=50
    )
    assert ended.returncode == exits.STALLED
    assert "same command goes on from the last checkpoint" in ended.stderr
    assert stacks(tmp_path)
