from fewstep.configs.methods import METHODS
from fewstep.objectives import OBJECTIVES
from tests.training.kinds import first_of_each, methods_of_kinds, objective_and_kind


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
