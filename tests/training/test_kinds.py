from fewstep.configs.methods import METHODS
from fewstep.objectives import OBJECTIVES
from tests.training.kinds import each_with_one, first_of_each, methods_of_kinds, objective_and_kind


def test_every_kind_is_run_once_and_every_objective_in_its_turn():
    kinds = {objective_and_kind(method)[1] for method in METHODS}
    turns = [methods_of_kinds(str(number)) for number in range(len(OBJECTIVES))]
    for methods in turns:
        assert {objective_and_kind(method)[1] for method in methods} == kinds
        assert len(kinds) <= len(methods) <= len(kinds) + 1
    run = {objective_and_kind(method)[0] for methods in turns for method in methods}
    assert run == set(OBJECTIVES)
    assert methods_of_kinds("all") == list(METHODS)


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
