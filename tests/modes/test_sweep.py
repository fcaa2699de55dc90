"""Sweeps of --mode=compare: their cells, configs and folders, their shares, and a small one."""

import csv
from functools import partial
from importlib import import_module

import pytest

from fewstep.modes.compare import ComparedRun, check_shared_teachers, compare_methods
from fewstep.modes.job import Draft
from fewstep.modes.request import Request
from fewstep.modes.sweep import (
    ALL,
    Cell,
    Share,
    asked_cells,
    check_sweep,
    choose_share,
    configure_runs,
    own_cells,
    parse_sweep,
)
from tests import cli
from tests.modes.test_compare import SMALL, finished_runs
from tests.networks import NO_BLOCKS
from tests.training.runs import small_config

run = partial(cli.run, nano=NO_BLOCKS)
RATES = "optimizer.learning_rate=1e-4,3e-4"


def requested(sweep, **fields):
    """The request of a comparison of cd, taught by edm, with a sweep."""
    given = {"methods": ("cd",), "teachers": {"cd": "edm"}, "sweep": parse_sweep("sweep", sweep)}
    return Request(config=small_config("cd", seed=9), config_of_method=small_config)._replace(
        **given | fields
    )


def configured(root, sweep, share=ALL, **fields):
    """The configs of a sweep by folder below the root, and the folders of a share."""
    configs, own = configure_runs(root, requested(sweep, **fields), share)
    names = {folder: str(folder.relative_to(root)) for folder in configs}
    return {names[f]: config for f, config in configs.items()}, [
        names[f] for f in configs if f in own
    ]


def test_every_cell_has_its_folder_its_values_and_the_teacher_of_its_seed(tmp_path):
    configs, own = configured(tmp_path, f"{RATES};batch_size=32;seed=0,1")
    assert [*configs] == [
        "edm/seed_0",
        "edm/seed_1",
        "cd/batch_size_32+learning_rate_0.0001/seed_0",
        "cd/batch_size_32+learning_rate_0.0001/seed_1",
        "cd/batch_size_32+learning_rate_0.0003/seed_0",
        "cd/batch_size_32+learning_rate_0.0003/seed_1",
    ]
    assert own == [*configs]
    for name, config in configs.items():
        assert name.endswith(f"seed_{config.seed}")
        swept = (config.optimizer.learning_rate, config.batch_size)
        if name.startswith("edm"):
            assert (config.teacher, swept) == ("", (1e-3, 64))
        else:
            assert config.teacher == str(tmp_path / f"edm/seed_{config.seed}")
            assert swept == (3e-4 if "0.0003" in name else 1e-4, 32)


def test_a_teacher_has_the_fields_that_its_students_inherit(tmp_path):
    configs, _ = configured(tmp_path, f"model.size=nano,micro;model.dropout=0.1;{RATES}")
    teachers = {name: c.model.size for name, c in configs.items() if name.startswith("edm")}
    assert teachers == {"edm/size_nano/seed_9": "nano", "edm/size_micro/seed_9": "micro"}
    assert {configs[name].model.dropout for name in teachers} == {0.0}
    students = [config for name, config in configs.items() if name.startswith("cd")]
    assert len(students) == 4
    for config in students:
        assert config.teacher == str(tmp_path / f"edm/size_{config.model.size}/seed_9")
        assert config.model.dropout == 0.1


def test_a_value_is_read_as_that_of_an_override(tmp_path):
    norm = {"name": "norm", "power": 1.0, "c": 0.5}
    fields = {f"objective.distance.{name}": value for name, value in norm.items()}
    sweep = "ema.decays=(0.9,0.99),(0.5,);objective.distance.name=squared_l2"
    configs, _ = configured(
        tmp_path,
        sweep,
        methods=("ct",),
        given=("objective.distance.c",),
        config_of_method=lambda method: small_config(method, **fields),
    )
    names = ("decays_0.9_0.99", "decays_0.5")
    assert [*configs] == [f"ct/{name}+objective.distance.name_squared_l2/seed_9" for name in names]
    assert [config.ema.decays for config in configs.values()] == [(0.9, 0.99), (0.5,)]
    # The distance that was replaced leaves only what the command line sets.
    for config in configs.values():
        distance = config.objective.distance
        assert (distance.name, distance.power, distance.c) == ("squared_l2", None, 0.5)


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("optimizer.learning_rat=1", "did you mean --sweep=optimizer.learning_rate"),
        ("optimizer=1", "--sweep=optimizer is a group of fields"),
        ("steps=many", "--sweep=steps=many must be a whole number"),
        ("seed=a", "--sweep=seed=a must be a whole number"),
        ("seed=-1", "seed=-1 must be a whole number from 0"),
        ("optimizer.learning_rate=-1", "optimizer.learning_rate=-1.0 must be a number, 0 or more"),
        ("optimizer.learning_rate=1e-4,0.0001", "two values of the same meaning: .*rate_0.0001"),
        ("evaluate.num_samples=5", "evaluate.num_samples decides what is compared"),
        ("data.name=digits", "data.name decides what is compared"),
        ("method=cd", "method decides what is compared"),
        ("log.every=5", "log.every does not change what a run learns"),
        ("steps_per_dispatch=5", "steps_per_dispatch does not change"),
    ],
)
def test_a_sweep_that_cannot_be_compared_is_refused(tmp_path, sweep, message):
    request = requested(sweep, workdir=tmp_path / "c")
    with pytest.raises(ValueError, match=message):
        compare_methods(request)
    assert not (tmp_path / "c").exists()


def test_seeds_are_given_once():
    with pytest.raises(ValueError, match="seed is in --seeds too"):
        check_sweep(requested("seed=0,1", seeds=(2,)))
    cells = asked_cells(requested("steps=5", seeds=(2, 4)))
    assert cells == [Cell("cd", seed, (("steps", "5"),)) for seed in (2, 4)]


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_shares_have_every_cell_once_and_the_teachers_that_only_they_need(count):
    shared = asked_cells(requested(f"{RATES},1e-3;seed=0,1"))
    own = [own_cells(shared, {"cd": "edm"}, Share(i + 1, count)) for i in range(count)]
    students = [cell for cells in own for cell in cells if cell.method == "cd"]
    assert sorted(students) == sorted(shared)
    # With two shares, each has the cells of a seed. With three, all need both teachers.
    teachers = [len([c for c in cells if c.method == "edm"]) for cells in own]
    assert teachers == {1: [2], 2: [1, 1], 3: [0, 0, 0], 8: [0] * 8}[count]


def test_a_teacher_of_several_shares_is_trained_before_them(tmp_path, monkeypatch):
    configs, own = configure_runs(tmp_path, requested(RATES), Share(2, 2))
    runs = [
        ComparedRun(folder, Draft(config, None, None, None), mine=folder in own)
        for folder, config in configs.items()
    ]
    assert [one.mine for one in runs] == [False, False, True]
    with pytest.raises(ValueError, match="share 2/2 needs the teacher .*edm/seed_9, as others do"):
        check_shared_teachers(runs[2:], runs, Share(2, 2))
    module = import_module("fewstep.modes.compare")
    monkeypatch.setattr(module, "is_trained", lambda one: one is runs[0])
    check_shared_teachers(runs[2:], runs, Share(2, 2))


@pytest.mark.parametrize(
    ("given", "array", "share"),
    [
        ({}, {}, (1, 1)),
        ({}, {"ID": 5, "COUNT": 8, "MIN": 0, "MAX": 7}, (6, 8)),
        ({}, {"ID": 5, "COUNT": 8, "MIN": 1, "MAX": 8}, (5, 8)),
        ({"cell": (3, 4)}, {"ID": 5, "COUNT": 8, "MIN": 1, "MAX": 8}, (3, 4)),
        ({"sweep": {}}, {"ID": 5, "COUNT": 8, "MIN": 1, "MAX": 8}, (1, 1)),
        ({}, {"ID": 5, "COUNT": 2, "MIN": 1, "MAX": 5}, None),
    ],
)
def test_a_task_of_an_array_has_the_share_of_its_number(given, array, share):
    request = requested(RATES)._replace(**given)
    environment = {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in array.items()}
    if share is None:
        with pytest.raises(ValueError, match="2 tasks from 1 to 5, so its numbers leave gaps"):
            choose_share(request, environment)
    else:
        assert choose_share(request, environment) == share


@pytest.mark.some_days(2)
def test_a_share_is_tabulated_and_the_rest_is_done_by_the_same_command(tmp_path):
    command = ("--mode=compare", f"--workdir={tmp_path}", "--methods=flow_matching", *SMALL)
    command += (f"--sweep={RATES}",)
    printed = run(*command, "--cell=2/2").stdout
    assert "share 2/2: 1 of 2 runs finished" in printed
    assert read_rates(tmp_path) == ["0.0003"] * 2

    assert finished_runs(run(*command).stdout) == ["2"]
    assert read_rates(tmp_path) == ["0.0001"] * 2 + ["0.0003"] * 2
    assert "optimizer.learning_rate" in printed
    assert (tmp_path / "flow_matching/learning_rate_0.0001/seed_0/config.json").is_file()


def read_rates(root):
    """The swept learning rates of the means in the table of a sweep."""
    with (root / "table.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["seed"] == "mean"]
    return [row["optimizer.learning_rate"] for row in rows]
