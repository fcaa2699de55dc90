"""SIGTERM at any moment leaves a whole checkpoint, and the run goes on as if not stopped."""

import random
import signal
import time

import pytest

from tests.training import killed
from training import exits
from training.preemption import Preempted, Preemption


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The state of a run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    killed.run(folder, "edm", {})
    return killed.final(folder)


@pytest.mark.parametrize(
    ("place", "at", "saved"),
    [("step", 3, 3), ("saving", 8, 9), ("evaluating", 6, 6), ("evaluating", 12, 12)],
)
def test_sigterm_saves_the_step_and_says_so(whole, tmp_path, place, at, saved):
    stop = {"number": signal.SIGTERM, "expect": exits.PREEMPTED}
    killed.run(tmp_path, "edm", {}, place, at, **stop)
    assert killed.saved_steps(tmp_path)[-1] == saved
    killed.run(tmp_path, "edm", {})
    assert killed.identical(whole, killed.final(tmp_path))


def stopped_at_random(folder, rng):
    """Start a run and send SIGTERM after a random time; its exit code."""
    process = killed.start(folder, "edm", {}, pause=0.05)
    killed.wait_for_a_step(folder, process)
    time.sleep(rng.uniform(0.0, 0.4))
    process.terminate()
    process.join(killed.TIMEOUT)
    return process.exitcode


def test_sigterm_at_random_moments(whole, tmp_path, stops=3, seed=0):
    rng = random.Random(seed)
    codes = []
    for _ in range(stops):
        before = killed.saved_steps(tmp_path)[-1:]
        codes.append(stopped_at_random(tmp_path, rng))
        # Nothing that was saved is lost, and a stop that was heard is on disk.
        assert killed.saved_steps(tmp_path)[-1:] >= before
        assert codes[-1] in (exits.PREEMPTED, 0, -signal.SIGTERM)
        if codes[-1] == 0:
            break
    killed.run(tmp_path, "edm", {})
    assert killed.identical(whole, killed.final(tmp_path))
    return codes


def test_a_signal_is_noted_in_a_step_and_raised_where_nothing_is_lost():
    handler = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption:
        assert not preemption.requested(1)
        with pytest.raises(Preempted), preemption.at_once():
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert preemption.requested(2)
        with pytest.raises(Preempted), preemption.at_once():
            raise AssertionError("the block is not begun")
    assert signal.getsignal(signal.SIGTERM) is handler
