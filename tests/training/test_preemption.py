"""SIGTERM at any moment leaves a whole checkpoint, and the run goes on as if not stopped."""

import random
import signal

import pytest

from tests.training import interruption, killed
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


def test_sigterm_at_random_moments(whole, tmp_path, stops=3, seed=0):
    rng = random.Random(seed)
    for _ in range(stops):
        one = interruption.interrupt(tmp_path, "edm", signal.SIGTERM, rng)
        if interruption.missed(one):
            break
        assert all(interruption.promises(one).values()), one
    killed.run(tmp_path, "edm", {}, **interruption.OPTIONS)
    assert killed.identical(whole, killed.final(tmp_path))


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
