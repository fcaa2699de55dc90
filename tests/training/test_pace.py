import jax
import numpy as np
import pytest

from fewstep.training import pace as module
from fewstep.training.pace import MEASURED, FirstSteps, Pace, memory_in_use, slowest_process


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until a test moves it."""
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


def train(pace, clock, *steps):
    """Complete steps of (count, seconds, seconds that the host waited)."""
    for count, seconds, waited in steps:
        clock[0] += seconds
        took = pace.step_times(count, waited)
        for _ in range(count):
            pace.add(took)


def test_a_row_has_the_times_of_its_own_steps(clock):
    pace = Pace(8)
    train(pace, clock, (1, 10.0, 9.0), (1, 1.0, 0.75), (1, 2.0, 0.5))
    row = pace.pop()
    assert row["images_per_second"] == pytest.approx(24.0 / 13.0)
    assert (row["step_seconds"], row["step_seconds_max"], row["host_seconds"]) == (2.0, 10.0, 1.0)
    assert set(row) <= set(MEASURED)
    clock[0] += 100.0  # an evaluation
    pace.resume()
    train(pace, clock, (1, 3.0, 3.0))
    assert pace.pop()["step_seconds_max"] == 3.0


def test_steps_that_are_dispatched_at_once_share_their_time_also_between_rows(clock):
    pace = Pace(8)
    clock[0] = 8.0
    took = pace.step_times(4, waited=6.0)
    assert took == (2.0, 0.5)
    rows = []
    for _ in range(2):  # a row ends in the middle of the dispatch
        pace.add(took)
        pace.add(took)
        rows.append(pace.pop())
    assert rows[0] == rows[1]
    assert (rows[0]["images_per_second"], rows[0]["step_seconds"]) == (4.0, 2.0)


def test_a_row_that_a_stop_interrupted_goes_on_with_its_times(clock):
    first = Pace(8)
    train(first, clock, (1, 1.0, 0.0), (1, 1.0, 0.0))
    second = Pace(8, unfinished=first.unfinished_row())
    train(second, clock, (1, 30.0, 0.0))  # which is compiled
    row = second.pop()
    assert (row["step_seconds"], row["step_seconds_max"]) == (1.0, 30.0)
    assert row["images_per_second"] == 24.0 / 32.0
    # An earlier version recorded no steps, and the row may end before the next one.
    assert Pace(8, unfinished={"images": 16, "seconds": 4.0}).pop() == {"images_per_second": 4.0}


def test_a_long_row_remembers_its_last_steps(clock, monkeypatch):
    monkeypatch.setattr(module, "REMEMBERED", 3)
    pace = Pace(1)
    train(pace, clock, *((1, float(seconds), 0.0) for seconds in (9, 9, 9, 1, 2, 3)))
    assert len(pace.unfinished_row()["steps"]) == 3
    row = pace.pop()
    assert (row["step_seconds"], row["step_seconds_max"]) == (2.0, 3.0)
    assert row["images_per_second"] == 6.0 / 33.0


def test_the_utilisation_is_that_of_the_median_step(clock):
    pace = Pace(8, least_seconds=0.5)
    train(pace, clock, (1, 9.0, 0.0), (1, 2.0, 0.0), (1, 2.0, 0.0))
    assert pace.pop()["mfu"] == 0.25
    assert (
        "mfu" not in Pace(8, unfinished={"images": 8, "seconds": 1.0, "steps": [[1.0, 0.0]]}).pop()
    )


def test_the_slowest_process_is_the_one_that_does_not_wait():
    times = np.array([[1.0, 0.1], [1.01, 0.9], [1.02, 0.2]])
    assert slowest_process(times) == {
        "slowest_process": 1.0,
        "step_seconds_slowest": 1.01,
        "host_seconds_slowest": 0.9,
    }


def test_several_processes_are_asked_once_in_a_row(clock, monkeypatch):
    asked = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        module, "gather_numbers", lambda own: asked.append(own) or np.array([own, [2.0, 1.5]])
    )
    pace = Pace(8)
    train(pace, clock, (1, 2.0, 1.0), (1, 2.0, 1.0))
    assert pace.pop()["slowest_process"] == 1.0 and asked == [[2.0, 1.0]]


class Device:
    def __init__(self, used=None, peak=0):
        self.stats = None if used is None else {"bytes_in_use": used, "peak_bytes_in_use": peak}

    def memory_stats(self):
        return self.stats


def test_memory_is_that_of_the_fullest_device_or_left_out():
    assert memory_in_use([Device(3, 9), Device(5, 7)]) == {
        "memory_bytes": 5.0,
        "memory_peak_bytes": 9.0,
    }
    assert memory_in_use([Device(3, 9), Device()]) == memory_in_use([]) == {}
    assert memory_in_use(jax.local_devices()) == {}  # CPUs do not report memory


@pytest.mark.parametrize(
    ("compiled", "steps", "told"),
    [
        (1, [30.0, *[0.1] * 9, 0.5, 9.0], {11: 0.1}),  # ten steps, without the one that compiles
        (2, [30.0, 30.0, 6.0, 5.0, 4.0, 1.0], {5: 5.0}),  # three slow ones
        (1, [30.0, 0.1, 0.1], {}),
    ],
)
def test_the_usual_time_of_a_step_is_told_once(compiled, steps, told):
    first = FirstSteps(compiled)
    found = {number: first.add(seconds) for number, seconds in enumerate(steps, start=1)}
    assert {number: seconds for number, seconds in found.items() if seconds is not None} == told
