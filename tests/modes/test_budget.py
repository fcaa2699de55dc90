import pytest

from fewstep.modes.budget import (
    checkpoint_line,
    fixed_seconds,
    requested_target,
    time_lines,
)
from fewstep.modes.request import Request
from fewstep.training.cost.accelerators import parse_target
from tests.training.runs import small_config
from tests.training.test_sharding import mesh_of

CONFIG = small_config(**{"steps": 1000, "batch_size": 64, "model.dtype": "bfloat16"})
MESH = mesh_of(4, 2)


def read_lines(fixed=0.0, **fields):
    """Return {first word: rest} of the lines for 8 x h100, where a step takes 10 to 20 ms."""
    flops = 8 * 989e12 * 0.5 * 0.01
    request = Request(**{"config": CONFIG, "workdir": None, "mfu": (0.25, 0.5), **fields})
    found = time_lines(CONFIG, MESH, flops, fixed, parse_target("8xh100"), request)
    return dict(line.split(maxsplit=1) for line in found)


def test_time_and_cost_follow_from_flops_and_the_peak():
    found = read_lines(price=3.0)
    assert found["mfu"] == "50% to 25% of 989 TFLOP/s per device, bfloat16"
    assert found["step"] == "10.0 to 20.0 ms, 6,400 to 3,200 images/s"
    assert found["run"] == "10.0 s to 20.0 s, 0.02 to 0.04 device-hours"
    assert found["cost"] == "0.07 to 0.13 at 3 per device-hour"
    assert read_lines(mfu=(0.5,))["step"] == "10.0 ms, 6,400 images/s"
    assert set(read_lines()) == {"mfu", "step", "run"}
    assert "--accelerator=NAME" in time_lines(CONFIG, MESH, 1.0, 0.0, None, None)[0]


def test_a_warning_says_if_the_exchange_takes_longer_than_the_computation():
    assert "warning" not in read_lines(fixed=0.0099)
    warning = read_lines(fixed=0.0101)["warning"]
    assert warning.startswith("8 image(s) per device are too few") and "10.1 ms" in warning
    # 450 GB sent at 450 GB/s, and 1,675 GB both read and written at 3,350 GB/s.
    assert fixed_seconds(1675 * 10**9, 450e9, parse_target("8xh100")) == pytest.approx(2.0)
    assert fixed_seconds(1, 1.0, None) == 0.0


def test_a_save_takes_the_size_over_the_speed_of_the_disk():
    text = checkpoint_line(CONFIG, 2**33, None)
    assert text.startswith("checkpoint   8.00 GiB, written in 8.6 s at 1 GB/s, every ")
    assert "written in 2.9 minutes at 0.05 GB/s" in checkpoint_line(CONFIG, 2**33, 0.05)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"price": 1.0}, "--mfu and --price need --accelerator; "),
        ({"mfu": (0.4,)}, "--mfu and --price need --accelerator; "),
        ({"mfu": (45.0,)}, "--mfu=45 must be one or two numbers above 0, at most 1"),
        ({"mfu": (0.2, 0.3, 0.4)}, "--mfu=0.2,0.3,0.4 must be"),
        ({"price": -1.0}, "--price=-1 must be a number above 0"),
        ({"disk_speed": float("nan")}, "--disk_speed=nan must be a number above 0"),
        ({"accelerator": "h10"}, "did you mean 'h100'"),
    ],
)
def test_numbers_out_of_range_are_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        requested_target(Request(**{"config": CONFIG, "workdir": None, **fields}))
