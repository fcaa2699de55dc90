import json
import subprocess

import pytest

from bench import gpu, measure
from bench.cases import forward_flops_by_hand
from fewstep.models.dit import SIZES, DiTSize

SMOKE = gpu.smoke_items(with_torch=True)


class Device:
    """Replaces the processes that measure, and records what they are asked."""

    def __init__(self, memory=1e9, name="card", jax="1.0"):
        self.memory, self.name, self.jax, self.asked = memory, name, jax, []

    def __call__(self, module, fields, seconds):
        if fields["kind"] == "ceilings":
            own = {"device": self.name, "jax": self.jax}
            return {"matmul_flops": 100.0, "copy_bytes": 1.0, **own}
        self.asked.append((module, dict(fields)))
        if seconds <= 5.0:
            raise subprocess.TimeoutExpired(module, seconds)
        if fields["batch_size"] * (1 if fields.get("remat") else 2) > self.memory:
            raise gpu.MeasurementError("RESOURCE_EXHAUSTED: out of memory")
        return {"images_per_second": 10.0, "flops_per_second": 50.0}


@pytest.fixture
def clock(monkeypatch):
    """Time that stands still."""
    monkeypatch.setattr(gpu.time, "monotonic", lambda: 100.0)


def record(folder):
    return json.loads((folder / gpu.RESULTS).read_text())


def test_the_second_call_measures_what_the_first_left(tmp_path, clock, capsys):
    device = Device()
    gpu.measure_all(SMOKE[:1], tmp_path, 200.0, device)
    gpu.measure_all(SMOKE, tmp_path, 200.0, device)
    assert len(device.asked) == len(SMOKE)
    rows = record(tmp_path)["rows"]
    assert list(rows) == [item.name for item in SMOKE]
    assert all(row["mfu"] == 0.5 for row in rows.values())
    assert (tmp_path / gpu.PLOT).stat().st_size > 1000
    assert "not measured" not in capsys.readouterr().out
    # Rows of one card or JAX are not those of another.
    for other in (Device(name="other"), Device(name="other", jax="2.0")):
        gpu.measure_all(SMOKE[:1], tmp_path, 200.0, other)
        assert len(other.asked) == 1
        assert list(record(tmp_path)["rows"]) == [SMOKE[0].name]


def test_rows_of_another_batch_size_are_measured_again(tmp_path, clock, capsys):
    small = Device(memory=4.0)
    gpu.measure_all(SMOKE[1:2], tmp_path, 200.0, small)
    tried = len(small.asked)
    gpu.measure_all(SMOKE[1:2], tmp_path, 200.0, small)
    assert len(small.asked) == tried  # a smaller batch fitted, and was recorded
    item = SMOKE[1]._replace(fields={**SMOKE[1].fields, "batch_size": 1})
    gpu.measure_all([item], tmp_path, 103.0, small)
    assert "start again for these: sample nano" in capsys.readouterr().out
    gpu.measure_all([SMOKE[0], item], tmp_path, 200.0, small)
    assert [*record(tmp_path)["rows"]] == [SMOKE[0].name, item.name]
    gpu.measure_all([item], tmp_path, 200.0, small)
    assert record(tmp_path)["rows"][item.name]["batch_size"] == 1
    assert SMOKE[0].name in record(tmp_path)["rows"]  # of no item of this call


def test_it_ends_in_time_and_says_what_is_missing(tmp_path, clock, capsys):
    device = Device()
    gpu.measure_all(SMOKE, tmp_path, 104.0, device)
    assert len(device.asked) == 1
    assert (
        "start again for these: train flow_matching nano, scan; sample" in capsys.readouterr().out
    )


def test_what_does_not_fit_is_rematerialised_then_halved(tmp_path, clock):
    gpu.measure_all(SMOKE, tmp_path, 200.0, Device(memory=4.0))
    rows = record(tmp_path)["rows"].values()
    assert [(row["batch_size"], row.get("remat")) for row in rows] == [
        (4, True),
        (2, None),
        (2, None),
        (2, None),
    ]
    gpu.measure_all(SMOKE[:1], tmp_path / "..", 200.0, Device(memory=0.0))
    (row,) = record(tmp_path / "..")["rows"].values()
    assert row == {"error": "does not fit the device's memory", gpu.ASKED: 8}


def test_a_process_that_fails_says_why():
    with pytest.raises(gpu.MeasurementError, match="No such file or directory"):
        gpu.measure_in_subprocess("json.tool", {"kind": "sample"}, 60.0)
    lines = "Traceback:\nXlaRuntimeError: RESOURCE_EXHAUSTED: 9 GiB\nsomething else\n"
    assert gpu.last_words(lines) == "XlaRuntimeError: RESOURCE_EXHAUSTED: 9 GiB"


@pytest.mark.some_days(2)
def test_a_step_and_a_sampler_are_measured(monkeypatch):
    monkeypatch.setitem(SIZES, "toy", DiTSize(32, 1, 2))
    fields = {"size": "toy", "batch_size": 8, "seconds": 0.01}
    for row, passes in (
        (measure.measure_training("flow_matching", scan=True, **fields), 3),
        (measure.measure_sampling(steps=2, **fields), 2),
    ):
        assert row["images_per_second"] > 0.0
        flops = passes * forward_flops_by_hand("toy")
        assert row["flops_per_second"] / row["images_per_second"] == pytest.approx(flops)
    assert measure.ceilings(0.01, matrix=64, copied=2**12)["matmul_flops"] > 0.0
