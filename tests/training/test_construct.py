"""Fields of a config mean what the functions that take them declare."""

from collections.abc import Callable
from functools import wraps
from typing import Annotated

import pytest

from fewstep.parts import RUN_LENGTH, Entry, Part, declared_marks, group_names, open_lengths
from fewstep.training.construct import RunContext, construct_with_parts

NORMS = {"one": 1, "two": 2}


def linear(path, *, distance: float = 0.5, total_steps: Annotated[int, RUN_LENGTH]):
    """A part whose `distance` is a number; the `distance` of the method is a part."""
    return "linear", path, distance, total_steps


def euclidean(*, norm: Annotated[int, Entry(NORMS)] = 2, warmup: Annotated[int, RUN_LENGTH] = 7):
    return "euclidean", norm, warmup


DISTANCES, TARGETS = {"euclidean": euclidean}, {"linear": linear}


def method(
    *,
    distance: Annotated[Callable | None, Part(DISTANCES)] = None,
    target: Annotated[Callable | None, Part(TARGETS, on_path=True)] = None,
    total_steps: int = 3,
):
    """A method whose total_steps is a plain number, not the length of a run."""
    return distance, target, total_steps


RUN = RunContext("path", 100)
DISTANCE = {"name": "euclidean", "norm": "one", "warmup": None}
TARGET = {"name": "linear", "distance": None, "total_steps": None}


def build_method(**fields):
    return construct_with_parts({"method": method}, {"name": "method", **fields}, "objective", RUN)


def test_a_name_means_what_the_function_that_takes_it_declares():
    assert build_method(distance=DISTANCE, target={**TARGET, "distance": 0.25}) == (
        ("euclidean", 1, 100),
        ("linear", "path", 0.25, 100),
        3,
    )
    assert build_method(target=TARGET, total_steps=None) == (None, ("linear", "path", 0.5, 100), 3)
    assert build_method(distance={**DISTANCE, "norm": None, "warmup": 5}) == (
        ("euclidean", 2, 5),
        None,
        3,
    )


def test_a_part_without_a_name_is_the_default_of_the_argument():
    unset = {"name": "", "norm": None, "warmup": None}
    assert build_method(distance=unset, other=unset) == (None, None, 3)
    with pytest.raises(ValueError, match=r"objective.distance.norm is not used without"):
        build_method(distance={**unset, "norm": "one"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"distance": {**DISTANCE, "name": "euclid"}}, "objective.distance.name='euclid' .*mean"),
        ({"distance": {**DISTANCE, "norm": "tow"}}, "objective.distance.norm='tow' .*'two'"),
        ({"target": {**TARGET, "norm": "one"}}, "objective.target.norm is not used by linear"),
        ({"other": DISTANCE}, "objective.other is not used by method"),
    ],
)
def test_an_undeclared_field_is_refused_by_its_dotted_name(fields, message):
    with pytest.raises(ValueError, match=message):
        build_method(**fields)


def test_groups_and_open_lengths_are_found_in_parts_of_parts():
    def outer(inner: Annotated[Callable, Part({"method": method})]):
        return inner

    assert declared_marks(linear) == {"total_steps": RUN_LENGTH}
    assert set(group_names(outer, "o")) == {"o.inner", "o.inner.distance", "o.inner.target"}
    fields = {"o.inner.name": "method", "o.inner.target.name": "linear"}
    left_open = lambda given: list(open_lengths(outer, {**fields, **given}, "o"))
    assert left_open({}) == ["o.inner.target.total_steps"]  # it has no default
    assert left_open({"o.inner.target.total_steps": 5, "o.inner.total_steps": None}) == []
    warmed = {"o.inner.target.name": "", "o.inner.distance.name": "euclidean"}
    assert left_open(warmed) == []
    assert left_open({**warmed, "o.inner.distance.warmup": None}) == ["o.inner.distance.warmup"]


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("norm=3 is too large", "^objective.distance.norm=3 is too large$"),
        ("it needs norm", "^it needs norm$"),
        ("scale=7 is too large", "^scale=7 is too large$"),  # no field of its own
    ],
)
def test_a_value_that_a_function_refuses_is_named_by_its_whole_field(message, told, monkeypatch):
    def refuse(**fields):
        raise ValueError(message)

    monkeypatch.setitem(DISTANCES, "euclidean", wraps(euclidean)(refuse))
    with pytest.raises(ValueError, match=told):
        build_method(distance={**DISTANCE, "norm": "one"})
