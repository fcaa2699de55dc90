"""Selects methods for tests that cost processes or compilations: one for each kind of state.

What a kill, a restore or a device does to a run depends on the kind of its state, which many
methods share. `methods_of_kinds()` returns the first methods of a few kinds and, in rotation, those
of TURNS other kinds and one more objective, so its length does not grow with the kinds. The
environment variable PYTEST_ROTATION chooses them: a number, or `all` for every method. The default
is the date (tests/conftest.py); pytest prints it, so that a failure can be repeated.
"""

import os
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from fewstep.configs.methods import METHODS
from fewstep.training.experiment import build
from tests.training.killed import STEPS, small_network
from tests.training.runs import small_config

ALL = "all"
# Methods whose kinds are always run: together they have two players, what these share, followers,
# a teacher, and stages.
ALWAYS = ("shortcut", "sim", "progressive")
TURNS = 1  # how many other kinds have their turn


class Kind(NamedTuple):
    """What the state of a run is made of, and what its step reads.

    players: number of players. followers: the source of each follower, in order. teacher: whether
    losses read one. shares: whether losses share arrays. reads: the sources of a batch. staged:
    whether training has several stages.
    """

    players: int
    followers: tuple[str, ...]
    teacher: bool
    shares: bool
    reads: tuple[str, ...]
    staged: bool


@cache
def objective_and_kind(method: str) -> tuple[str, Kind]:
    """The name of a method's objective, and its kind of state."""
    config = small_config(method, steps=STEPS)
    objective = build(config, small_network(config)).objective
    kind = Kind(
        players=len(objective.players),
        followers=tuple(follower.source for follower in objective.followers.values()),
        teacher=bool(objective.frozen),
        shares=objective.share is not None,
        reads=tuple(sorted(objective.reads)),
        staged=len(objective.stages) > 1,
    )
    return config.objective.name, kind


def methods_of_kinds(rotation: str | None = None) -> list[str]:
    """The first methods of ALWAYS's kinds, and in rotation of TURNS others and of an objective.

    rotation: a number whose remainders choose, or "all" for every method; PYTEST_ROTATION by
    default.
    """
    rotation = os.environ["PYTEST_ROTATION"] if rotation is None else rotation
    if rotation == ALL:
        return list(METHODS)
    found = {method: objective_and_kind(method) for method in METHODS}
    kinds = first_of_each({method: kind for method, (_, kind) in found.items()})
    always = {found[method][1] for method in ALWAYS}
    others = [method for method in kinds if found[method][1] not in always]
    turn = take_turns(others, int(rotation), TURNS)
    of_kind = [method for method in kinds if found[method][1] in always or method in turn]
    of_objective = first_of_each({method: name for method, (name, _) in found.items()})
    covered = {found[method][0] for method in kinds}
    rest = [method for method in of_objective if found[method][0] not in covered]
    return of_kind + take_turns(rest, int(rotation), 1)


def take_turns(names: Sequence[str], number: int, count: int) -> list[str]:
    """`count` neighbours of the names, or all if there are fewer; the next number has the next."""
    if len(names) <= count:
        return list(names)
    return [names[(number * count + i) % len(names)] for i in range(count)]


def turn_of(names: Sequence[str], count: int) -> list[str]:
    """`count` of the names in turn, chosen by PYTEST_ROTATION; "all" is every name."""
    rotation = os.environ["PYTEST_ROTATION"]
    return list(names) if rotation == ALL else take_turns(names, int(rotation), count)


def each_with_one(names: Sequence[str], others: Sequence[str]) -> list[tuple[str, str]]:
    """Every name paired with one of the others, chosen by PYTEST_ROTATION; "all" is every pair."""
    rotation = os.environ["PYTEST_ROTATION"]
    if rotation == ALL:
        return [(name, other) for name in names for other in others]
    start = int(rotation)
    return [(name, others[(start + i) % len(others)]) for i, name in enumerate(names)]


def first_of_each(groups: dict[str, object]) -> list[str]:
    """The first name of every group, in order."""
    first = {}
    for name, group in groups.items():
        first.setdefault(group, name)
    return list(first.values())
