"""Runs that need far more memory than there is are refused with values that fit."""

import re
from importlib import import_module

import jax
import pytest

from fewstep.models.dit import SIZES, DiTSize
from fewstep.modes.job import check_step
from fewstep.training.cost.accelerators import GIB
from fewstep.training.cost.hardware import (
    Hardware,
    group_limits,
    host_memory,
    present_hardware,
)
from fewstep.training.cost.memory import (
    CPU_MARGIN,
    SPARE,
    StepMemory,
    check_memory,
    fitting_values,
    memory_errors_in_words,
    planned_memory,
    with_values,
)
from fewstep.training.experiment import build_on
from fewstep.training.networks import with_network_fields
from tests.training.runs import small_config
from tests.training.test_sharding import mesh_of

JOB = import_module("fewstep.modes.job")
MEMORY = import_module("fewstep.training.cost.memory")


def cpu(room, data=1):
    return Hardware(mesh_of(data, 1), "cpu", False, room)


@pytest.fixture(scope="module", autouse=True)
def one_block():
    """Networks of one block, which are traced in a moment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "nano", DiTSize(32, 1, 2))
        patch.setitem(SIZES, "micro", DiTSize(64, 1, 2))
        yield


@pytest.fixture
def one_remedy(monkeypatch):
    """Remedies that are not looked for."""
    monkeypatch.setattr(MEMORY, "fitting_values", lambda *_: {"micro_batches": 2})


@pytest.fixture(scope="module")
def config(one_block):
    return with_network_fields(small_config("flow_matching", **{"model.size": "micro"}))


@pytest.fixture(scope="module")
def need(config):
    return planned_memory(config, cpu(None))


def test_a_step_that_needs_far_too_much_is_refused_with_values_that_fit(config, need):
    room = need.total / 1.5
    with pytest.raises(
        ValueError, match="a training step needs about .* this machine has"
    ) as error:
        check_memory(need, config, cpu(room))
    values = dict(re.findall(r"--config\.([\w.]+)=(\w+)", str(error.value)))
    assert set(values) == {"micro_batches", "batch_size", "model.size"}
    found = fitting_values(need, config, cpu(room))
    assert {name: str(value) for name, value in found.items()} == values
    for field, value in found.items():
        assert planned_memory(with_values(config, {field: value}), cpu(None)).total <= SPARE * room
    assert found["micro_batches"] > 1 and found["batch_size"] < 64 and found["model.size"] == "nano"


def test_a_step_that_may_fit_runs_with_a_warning(config, need, one_remedy, capsys):
    check_memory(need, config, cpu(need.total))
    check_memory(need, config, cpu(None))
    assert not capsys.readouterr().err
    check_memory(need, config, cpu(need.total / CPU_MARGIN + 1))
    assert capsys.readouterr().err.startswith("warning: a training step needs about ")


def test_a_step_whose_state_is_too_large_alone_names_no_value(config):
    need = StepMemory(given=4 * GIB, temporary=0)
    small = with_values(config, {"model.size": "nano", "batch_size": 1})
    with pytest.raises(ValueError, match="no smaller batch_size .* set several of them"):
        check_memory(need, small, cpu(GIB))


def test_training_is_refused_before_it_compiles(config, need, one_remedy, monkeypatch):
    monkeypatch.setattr(JOB, "present_hardware", lambda mesh: cpu(need.total / 2))
    mesh = mesh_of(1, 1)
    with pytest.raises(ValueError, match="this would fit: --config.micro_batches=2"):
        check_step(build_on(config, mesh), config, mesh, {})


def test_images_that_stay_on_the_device_count(config, need):
    assert planned_memory(config, cpu(None), 1000).total == need.total + 1000


def test_only_errors_of_memory_are_explained():
    text = "RESOURCE_EXHAUSTED: Out of memory allocating 53131003392 bytes.\nstack"
    words = r"\(RESOURCE_EXHAUSTED: Out of memory allocating 53131003392 bytes.\); set more"
    with pytest.raises(ValueError, match=words), memory_errors_in_words():
        raise jax.errors.JaxRuntimeError(text)
    with pytest.raises(jax.errors.JaxRuntimeError, match="no kernel"), memory_errors_in_words():
        raise jax.errors.JaxRuntimeError("INTERNAL: no kernel")


@pytest.mark.parametrize(
    ("membership", "files", "limits"),
    [
        (
            "0::/a/b",
            {"a/b/memory.max": "700", "a/memory.max": "500", "memory.max": "max"},
            [700, 500],
        ),
        (
            "4:memory:/job\n3:cpuset:/\n0::/",
            {"memory/job/memory.limit_in_bytes": "300", "memory/memory.limit_in_bytes": "900"},
            [300, 900],
        ),
        ("0::/gone", {}, []),
    ],
)
def test_the_limits_of_a_container_are_those_of_all_its_groups(tmp_path, membership, files, limits):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    (tmp_path / "self").write_text(membership)
    assert [*group_limits(tmp_path / "self", tmp_path)] == limits
    assert [*group_limits(tmp_path / "none", tmp_path)] == []
    assert host_memory() > 0


def test_devices_of_one_host_share_its_memory():
    found = present_hardware(mesh_of(2, 4))
    assert found.room == host_memory() / 8 and not found.accelerated
