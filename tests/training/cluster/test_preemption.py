"""SIGTERM at any moment leaves a whole checkpoint, and the resumed run is the undisturbed one."""

import gc
import random
import signal
import time

import pytest
from jax.experimental import multihost_utils

from fewstep.training.cluster import exits
from fewstep.training.cluster.preemption import Preempted, Preemption
from fewstep.training.metrics import LOG, read_rows
from fewstep.training.storage import restore
from tests.cli import SERVER
from tests.training import interruption, killed
from tests.training.test_resume import rows

SLOW_LOG = 5  # steps per row, so that some rows end at neither a save nor an evaluation


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    killed.run_process(folder, "edm", {}, log=SLOW_LOG)
    return folder


@pytest.fixture(scope="module")
def whole(undisturbed):
    """The final state of that run."""
    return killed.final_state(undisturbed)


SIGTERM = {"number": signal.SIGTERM, "expect": exits.PREEMPTED}
CTRL_C = {"number": signal.SIGINT, "expect": exits.INTERRUPTED}


@pytest.mark.parametrize(
    ("place", "at", "saved", "stop"),
    [
        ("step", 3, 3, SIGTERM),
        ("saving", 8, 9, SIGTERM),
        ("evaluating", 6, 6, SIGTERM),
        ("evaluating", 12, 12, SIGTERM),
        ("step", 5, 5, CTRL_C),
        ("evaluating", 6, 6, CTRL_C),
    ],
)
def test_a_stop_saves_the_step_and_says_so(undisturbed, whole, tmp_path, place, at, saved, stop):
    killed.run_process(tmp_path, "edm", {}, place, at, log=SLOW_LOG, **stop)
    assert killed.saved_steps(tmp_path)[-1] == saved
    killed.run_process(tmp_path, "edm", {}, log=SLOW_LOG)
    assert killed.have_same_bits(whole, killed.final_state(tmp_path))
    assert rows(undisturbed) == rows(tmp_path)


@pytest.mark.some_days(2)
def test_rows_that_stops_and_kills_cut_are_those_of_an_undisturbed_run(undisturbed, tmp_path):
    for place, at, number, expect in (
        ("step", 3, signal.SIGTERM, exits.PREEMPTED),
        ("step", 7, signal.SIGTERM, exits.PREEMPTED),
        ("step", 8, signal.SIGKILL, -signal.SIGKILL),  # in the row that the stop has cut
        ("evaluating", 12, signal.SIGKILL, -signal.SIGKILL),
    ):
        killed.run_process(tmp_path, "edm", {}, place, at, number, log=SLOW_LOG, expect=expect)
    killed.run_process(tmp_path, "edm", {}, log=SLOW_LOG)
    assert rows(undisturbed) == rows(tmp_path)
    logs = [read_rows(folder / LOG) for folder in (undisturbed, tmp_path)]
    assert [[row["step"] for row in log] for log in logs] == [[4, 5, 6, 6, 8, 10, 12, 12]] * 2


@pytest.mark.some_days(2)
def test_sigterm_at_random_moments(whole, tmp_path, stops=3, seed=0):
    rng = random.Random(seed)
    for _ in range(stops):
        one = interruption.interrupt(tmp_path, "edm", signal.SIGTERM, rng)
        if interruption.ended_before_signal(one):
            break
        assert all(interruption.kept_promises(one).values()), one
    killed.run_process(tmp_path, "edm", {}, **interruption.OPTIONS)
    assert killed.have_same_bits(whole, killed.final_state(tmp_path))


def test_a_signal_is_noted_in_a_step_and_raised_where_nothing_is_lost():
    handler = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption:
        assert not preemption.requested()
        with pytest.raises(Preempted), preemption.at_once():
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert preemption.requested()
        with pytest.raises(Preempted), preemption.at_once():
            raise AssertionError("the block is not begun")
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_signal_before_the_first_line_of_a_block_is_raised():
    class Late(set):
        def __iter__(self):  # a signal that comes after what was noted has been looked at
            yield from set(self)
            signal.raise_signal(signal.SIGTERM)

    with Preemption() as preemption:
        preemption.noted = Late()
        with pytest.raises(Preempted), preemption.at_once():
            raise AssertionError("the block is not begun")
        preemption.noted = set()


def test_ctrl_c_is_noted_in_a_step_and_raised_where_nothing_is_lost():
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Preemption() as preemption, preemption.at_once():
        signal.raise_signal(signal.SIGINT)
    with Preemption() as preemption:
        signal.raise_signal(signal.SIGINT)  # a step goes on to its end
        assert preemption.requested()
        assert str(preemption.stop_exception("step 1 is saved")).startswith("interrupted: step 1")
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_second_ctrl_c_ends_a_process_at_once():
    process = SERVER.Process(target=interrupted_twice)
    process.start()
    process.join(killed.TIMEOUT)
    assert process.exitcode == exits.INTERRUPTED


def interrupted_twice():
    with Preemption():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("goes on")


class Dying:
    """Gets a signal in its destructor, where Python cannot raise."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        signal.raise_signal(self.number)


def in_garbage_collection(number):
    def callback(phase, info):
        gc.callbacks.remove(callback)
        signal.raise_signal(number)

    gc.callbacks.append(callback)
    gc.collect()


@pytest.mark.parametrize("place", [in_garbage_collection, Dying])
@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Preempted)]
)
def test_a_signal_that_comes_where_python_cannot_raise_is_heard(place, number, error):
    with pytest.raises(error), Preemption() as preemption, preemption.at_once():
        place(number)
        time.sleep(10.0)
        raise AssertionError("goes on")
    with Preemption() as preemption:  # and by a loop, which asks
        place(number)
        assert preemption.requested()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_a_library_makes_an_error_of_is_no_damage(tmp_path, number):
    def read():
        try:
            signal.raise_signal(number)
        except BaseException as error:
            raise RuntimeError("reading failed") from error

    error = KeyboardInterrupt if number == signal.SIGINT else Preempted
    with pytest.raises(error), Preemption(False) as preemption, preemption.at_once():
        restore.explain_errors(read, tmp_path)
    with Preemption(False):
        signal.raise_signal(number)  # a training loop hears of it after the step
        with pytest.raises(ValueError, match="cannot be read"):
            restore.explain_errors(lambda: tmp_path / 1, tmp_path)


def test_what_one_has_noted_and_not_raised_the_one_around_it_hears():
    with pytest.raises(Preempted), Preemption() as outer, outer.at_once():
        with Preemption():
            signal.raise_signal(signal.SIGTERM)  # after the last step
        raise AssertionError("another run begins")


def test_a_stop_passes_what_catches_every_exception():
    with pytest.raises(Preempted), Preemption() as preemption, preemption.at_once():
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception as error:
            raise AssertionError("believed to be a damaged file") from error


def test_a_ctrl_c_that_is_switched_off_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Preemption():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_processes_are_asked_with_numbers_without_gaps(monkeypatch):
    """JAX stops them at the number after the largest one; a dispatch has several training steps."""
    asked = []
    monkeypatch.setattr(
        multihost_utils, "reached_preemption_sync_point", lambda number: asked.append(number)
    )
    for _ in range(2):  # a comparison has several runs
        with Preemption(carried=True) as preemption:
            for _ in range(3):
                preemption.requested()
    assert asked == [*range(asked[0], asked[0] + 6)]
