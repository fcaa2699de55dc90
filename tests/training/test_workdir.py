import json

import pytest

from tests.training.runs import small_config
from training import workdir


def test_a_config_survives_its_folder(tmp_path):
    config = small_config(**{"evaluate.steps": (1, 4), "path.sigma_data": None})
    workdir.start_run(tmp_path / "run", config)
    loaded = workdir.load_config(tmp_path / "run")
    assert loaded.to_dict() == workdir.as_dict(config)
    assert list(loaded.evaluate.steps) == [1, 4]
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["devices"]


def test_only_what_leaves_the_run_the_same_may_change(tmp_path):
    workdir.start_run(tmp_path, small_config())
    workdir.start_run(tmp_path, small_config(**{"steps": 20, "log.every": 7, "mesh.fsdp": 2}))
    changed = small_config(**{"optimizer.learning_rate": 0.5, "objective.max_steps": 64})
    with pytest.raises(ValueError) as error:
        workdir.start_run(tmp_path, changed)
    assert "optimizer.learning_rate (0.001 there, 0.5 now)" in str(error.value)
    assert "objective.max_steps (128 there, 64 now)" in str(error.value)
    assert "log.every" not in str(error.value)
    scheduled = small_config(**{"optimizer.schedule": "cosine"})
    workdir.start_run(tmp_path / "cosine", scheduled)
    scheduled.steps = 20
    with pytest.raises(ValueError, match=r"steps \(10 there, 20 now\)"):
        workdir.start_run(tmp_path / "cosine", scheduled)
    # The record is still the run's own.
    assert workdir.load_config(tmp_path).optimizer.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("method", "fields", "changeable"),
    [
        ("ct", {}, False),
        ("ct", {"objective.curriculum.total_steps": 100}, True),
        ("ict", {}, False),
        ("ect", {}, False),
        ("ect", {"objective.total_steps": 100}, True),
        ("cd", {}, True),
        ("cd", {"optimizer.schedule": "linear"}, False),
        ("sct", {}, True),
        ("edm", {}, True),
    ],
)
def test_a_run_whose_grid_depends_on_its_length_keeps_it(tmp_path, method, fields, changeable):
    workdir.start_run(tmp_path, small_config(method, **fields))
    longer = small_config(method, **fields, steps=20)
    if changeable:
        workdir.start_run(tmp_path, longer)
        assert workdir.load_config(tmp_path).steps == 20
    else:
        with pytest.raises(ValueError, match=r"steps \(10 there, 20 now\)"):
            workdir.start_run(tmp_path, longer)


@pytest.mark.parametrize("field", [{"teacher": "runs/b@3"}, {"start_from_teacher": False}])
def test_a_run_keeps_its_teacher(tmp_path, field):
    workdir.start_run(tmp_path, small_config("cd", teacher="runs/a@3"))
    with pytest.raises(ValueError, match=next(iter(field))):
        workdir.start_run(tmp_path, small_config("cd", **{"teacher": "runs/a@3"} | field))


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(ValueError, match=r"config.json does not exist"):
        workdir.load_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        workdir.load_config(tmp_path)
