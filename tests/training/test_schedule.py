"""What is due after which step, and how many steps a dispatch has until then."""

import pytest

from fewstep.training.profile import Window
from fewstep.training.schedule import Schedule, is_due


@pytest.mark.parametrize(
    ("step", "last", "period", "expected"),
    [(4, 10, 4, True), (5, 10, 4, False), (10, 10, 4, True), (10, 10, 0, True), (5, 10, 0, False)],
)
def test_what_is_due(step, last, period, expected):
    assert is_due(step, last, period) == expected


@pytest.mark.parametrize("own", ["log", "save", "evaluate"])
def test_each_thing_has_its_own_period(own):
    schedule = Schedule(steps=9, **{own: 4})
    asked = {"log": schedule.logs, "save": schedule.saves, "evaluate": schedule.evaluates}
    steps = {
        name: [step for step in range(1, 10) if is_due(step)] for name, is_due in asked.items()
    }
    assert steps == {name: [4, 8, 9] if name == own else [9] for name in asked}


def test_steps_that_are_kept_are_saved():
    schedule = Schedule(steps=9, save=4, kept=(3,), dispatch=9)
    assert [step for step in range(1, 10) if schedule.saves(step)] == [3, 4, 8, 9]
    assert schedule.next_dispatch(0) == 1


def test_what_is_due_is_not_stepped_over():
    schedule = Schedule(steps=20, save=5, evaluate=8, dispatch=3)
    done, sizes = 0, []
    while done < schedule.steps:
        sizes.append(schedule.next_dispatch(done))
        done += sizes[-1]
    assert sizes == [3, 1, 1, 3, 1, 1, 3, 1, 1, 1, 3, 1]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    assert {5, 8, 10, 15, 16, 20} <= set(ends)


def test_the_loop_stops_dispatching_at_both_ends():
    schedule = Schedule(steps=20, dispatch=5, window=Window(7, 10))
    done, sizes = 0, []
    while done < schedule.steps:
        sizes.append(schedule.next_dispatch(done))
        done += sizes[-1]
    ends = {sum(sizes[:i]) for i in range(len(sizes) + 1)}
    assert sizes == [5, 1, 1, 1, 1, 1, 5, 5] and {7, 10} <= ends
