"""Every field of a config reaches the function that it is meant for, with its value."""

import inspect
from functools import wraps
from typing import Any, NamedTuple

import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from fewstep import models
from fewstep.configs import base
from fewstep.configs.methods import METHODS, choose
from fewstep.diffusion.path import PATHS
from fewstep.diffusion.prediction import KINDS, Coefficients
from fewstep.models.model import Model
from fewstep.objectives import OBJECTIVES
from fewstep.objectives.base import Objective
from fewstep.objectives.followers import constant_ema, power_ema, warmed_ema
from fewstep.parts import Decoder, Entry, Part, RunLength, declared_marks
from fewstep.training.experiment import build, build_kind, build_model, build_objective
from fewstep.training.networks import with_network_fields
from tests.objectives.assembled import responsive_network
from tests.objectives.test_parts import OTHERS, part_fields

STEPS_OF_RUN = 777
MODEL = Model(responsive_network(), PATHS["ve"](), KINDS["F"])


class Built(NamedTuple):
    """What a function of a table was called with."""

    name: str
    inputs: tuple
    fields: dict[str, Any]


def tables(table):
    """The tables of all parts of a table's functions, each once."""
    found = {}
    for mark in (mark for function in table.values() for mark in declared_marks(function).values()):
        if isinstance(mark, Part):
            found |= {id(mark.table): mark.table} | tables(mark.table)
    return found


@pytest.fixture
def recorded(monkeypatch):
    """Functions of tables note their arguments; the list of those of objectives."""
    called = []

    def note(table, name, result):
        @wraps(table[name])
        def function(*inputs, **fields):
            return result(Built(name, inputs, fields))

        monkeypatch.setitem(table, name, function)

    for table in tables(OBJECTIVES).values():
        for name in table:
            note(table, name, lambda built: built)
    for name in OBJECTIVES:
        note(OBJECTIVES, name, lambda built: called.append(built) or Objective({}, {}, None))
    return called


def described(function, fields):
    """The arguments that a config's fields stand for, by the declarations of the function."""
    marks, found = declared_marks(function), {}
    for name, value in fields.items():
        mark = marks.get(name)
        if isinstance(mark, Part) and value["name"]:
            found[name] = part_of(mark, value)
        elif isinstance(mark, Entry):
            found[name] = mark.table[value]
        elif isinstance(mark, RunLength) and value is None:
            found[name] = STEPS_OF_RUN
        elif name != "name" and not isinstance(value, ConfigDict) and value is not None:
            found[name] = value
    return found


def part_of(mark, part):
    """A part as it is built."""
    inputs = (MODEL.path,) if mark.on_path else ()
    return Built(part["name"], inputs, described(mark.table[part["name"]], part))


def config_of(method):
    config = choose(base.config(), method)
    config.steps = STEPS_OF_RUN
    return config


def set_part(config, field, mark, name):
    """Replaces a part by another of its table, every field of it set."""
    part, function = config[field], mark.table[name]
    for own in part:
        if isinstance(part[own], ConfigDict):
            part[own].update({"name": "", "c": None, "power": None})
        else:
            part[own] = None
    part.name = name
    marks = declared_marks(function)
    for own in list(inspect.signature(function).parameters)[mark.on_path :]:
        if own in marks and isinstance(marks[own], Part):
            set_part(part, own, marks[own], "norm")
        elif not isinstance(marks.get(own), Decoder):  # which only a run of latents has
            part[own] = OTHERS[own]


def changed(value):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return (0.7, 0.3) if isinstance(value, tuple) else 5


def check(config, called):
    called.clear()
    build_objective(config, MODEL)
    (found,) = called
    assert found == Built(
        config.objective.name,
        (MODEL,),
        described(OBJECTIVES[config.objective.name], config.objective),
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_field_reaches_the_objective(method, recorded):
    config = config_of(method)
    check(config, recorded)
    marks = declared_marks(OBJECTIVES[config.objective.name])
    for field in config.objective:
        mark = marks.get(field)
        if isinstance(mark, Part):
            for name in mark.table:
                set_part(config.objective, field, mark, name)
                check(config, recorded)
        elif isinstance(mark, Entry):
            for name in mark.table:
                config.objective[field] = name
                check(config, recorded)
        elif field != "name":
            config.objective[field] = changed(config.objective[field])
            check(config, recorded)


def test_a_warmup_of_none_is_the_run_s(recorded):
    config = config_of("sct")
    with config.objective.ignore_type():
        config.objective.tangent_warmup = None
    check(config, recorded)


@pytest.mark.parametrize("name", PATHS)
def test_every_field_reaches_the_path(name, monkeypatch):
    built = []
    plain = PATHS[name]

    @wraps(plain)
    def path(**fields):
        built.append(fields)
        return plain(**fields)

    monkeypatch.setitem(PATHS, name, path)
    config = config_of("edm")
    config.data.update(image_size=8, channels=1, num_classes=3)
    config.path.update(name=name, **{field: OTHERS[field] for field in part_fields("path", name)})
    assert build_model(config).path.t_max == plain(**built[0]).t_max
    assert built == [{field: OTHERS[field] for field in part_fields("path", name)}]


def test_every_field_reaches_the_network(monkeypatch):
    built = []
    kind = models.NETWORKS["dit"]

    @wraps(kind.build)
    def network(shape, num_classes, **fields):
        built.append((shape, num_classes, fields))
        return responsive_network()

    monkeypatch.setitem(models.NETWORKS, "dit", kind._replace(build=network))
    config = config_of("edm")
    config.data.update(image_size=12, channels=3, num_classes=7)
    config = with_network_fields(config)
    for field in kind.fields:
        value = config.model[field]
        config.model[field] = f"other {value}" if isinstance(value, str) else changed(value)
    build_model(config)
    assert built == [((12, 12, 3), 7, {name: config.model[name] for name in kind.fields})]


def test_the_deviation_of_data_reaches_the_kind():
    c = Coefficients(*(jnp.float32(x) for x in (0.8, 0.6, -1.0, 1.0)))
    own = build_kind("F", 0.3).c_in(c)
    assert float(own) == pytest.approx((0.8**2 * 0.3**2 + 0.6**2) ** -0.5)
    assert build_kind("F", None) is KINDS["F"]


def test_every_average_follows_the_generator_at_its_own_rate():
    a, b = jnp.float32(1.0), jnp.float32(3.0)
    for method, generator in (("edm", "network"), ("sim", "generator")):
        for warmup, update in ((True, warmed_ema), (False, constant_ema)):
            config = config_of(method)
            config.data.update(image_size=8, channels=1, num_classes=3)
            config.model.size = "nano"
            config.ema.update(decays=(0.9, 0.99), power_stds=(0.05, 0.2), warmup=warmup)
            followers = build(config, responsive_network()).objective.followers
            expected = {f"ema_{decay:g}": update(decay) for decay in (0.9, 0.99)}
            expected |= {f"power_{std:g}": power_ema(std) for std in (0.05, 0.2)}
            assert set(followers) == set(expected)
            for name, follower in followers.items():
                assert follower.source == generator
                for step in (3, 5000):
                    found = follower.update(a, b, step)
                    assert float(found) == float(expected[name](a, b, step)), name
