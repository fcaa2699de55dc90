from types import SimpleNamespace

from fewstep.configs.methods import METHODS
from fewstep.objectives import OBJECTIVES
from tests.conftest import choose
from tests.training.kinds import (
    ALWAYS,
    TURNS,
    each_with_one,
    first_of_each,
    methods_of_kinds,
    objective_and_kind,
    take_turns,
)


def test_some_kinds_are_always_run_and_each_kind_and_objective_in_its_turn():
    kind = lambda method: objective_and_kind(method)[1]
    kinds, always = ({kind(method) for method in methods} for methods in (METHODS, ALWAYS))
    turns = [methods_of_kinds(str(number)) for number in range(len(METHODS))]
    for methods in turns:
        assert always <= {kind(method) for method in methods}
        assert len(set(methods)) == len(methods) <= len(always) + TURNS + 1
    assert {kind(method) for methods in turns for method in methods} == kinds
    objectives = {objective_and_kind(method)[0] for methods in turns for method in methods}
    assert objectives == set(OBJECTIVES)
    assert methods_of_kinds("all") == list(METHODS)


def test_those_that_always_run_have_together_every_part_of_a_state():
    kinds = [objective_and_kind(method)[1] for method in ALWAYS]
    assert max(kind.players for kind in kinds) == 2
    for part in ("followers", "teacher", "shares", "staged"):
        assert any(getattr(kind, part) for kind in kinds), part


def test_neighbours_take_turns():
    assert take_turns("abc", 0, 2) == ["a", "b"] and take_turns("abc", 1, 2) == ["c", "a"]
    assert take_turns("ab", 5, 2) == ["a", "b"] and take_turns("", 5, 2) == []


def test_methods_of_one_kind_of_state():
    kind = lambda method: objective_and_kind(method)[1]
    assert kind("flow_matching") == kind("edm") != kind("shortcut")
    assert kind("sim") == kind("dmd") and kind("sim").players == 2
    assert kind("cd").teacher and not kind("ct").teacher
    assert first_of_each({"a": 1, "b": 2, "c": 1}) == ["a", "b"]


def test_every_pair_has_its_turn(monkeypatch):
    found = []
    for rotation in range(3):
        monkeypatch.setenv("PYTEST_ROTATION", str(rotation))
        pairs = each_with_one(["a", "b"], ["x", "y", "z"])
        assert [name for name, _ in pairs] == ["a", "b"]
        found += pairs
    monkeypatch.setenv("PYTEST_ROTATION", "all")
    assert sorted(found) == each_with_one(["a", "b"], ["x", "y", "z"])


def test_each_value_has_its_turn_in_each_of_two_tests():
    def item(function, value, mark=("name", 3)):
        marks = {"in_turn": SimpleNamespace(args=mark)} if mark else {}
        params = SimpleNamespace(params={"name": value})
        given = {"path": "here", "function": function, "callspec": params}
        return SimpleNamespace(get_closest_marker=marks.get, **given)

    items = [item(test, value) for test in "ab" for value in "vwxyz" for _ in range(2)]
    always = item("c", "v", mark=None)
    days = [choose([*items, always], str(rotation)) for rotation in range(30, 33)]
    assert all(day[-1] is always for day in days)
    assert [len(day) for day in days] == [9, 9, 5]
    assert sorted(map(id, items)) == sorted(id(one) for day in days for one in day[:-1])
    assert choose(items, "all") == items


def test_a_test_of_some_days_runs_on_one_in_so_many():
    def item(name):
        marks = {"some_days": SimpleNamespace(args=(3,))}
        return SimpleNamespace(get_closest_marker=marks.get, nodeid=name)

    items = [item(f"tests/test_main.py::test_{number}") for number in range(60)]
    days = [choose(items, str(rotation)) for rotation in range(3)]
    assert sorted(map(id, items)) == sorted(id(one) for day in days for one in day)
    assert all(len(day) > 10 for day in days)
    # A subset has the same days.
    assert choose(items[7:], "1") == [one for one in days[1] if one in items[7:]]
    assert choose(items, "all") == items
