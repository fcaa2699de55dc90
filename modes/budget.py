"""Time and cost of a run for `--mode=plan`: from FLOPs, a share of the peak, a price per hour."""

import math

from jax.sharding import Mesh
from ml_collections import ConfigDict

from fewstep.messages import HOUR, format_seconds
from fewstep.modes.request import Request
from fewstep.training.cost.accelerators import GIB, Target, parse_target
from fewstep.training.cost.step_cost import MEASURED_MFU

DISK_SPEED = 1.0  # GB/s, a guess for a shared disk


def requested_target(request: Request) -> Target | None:
    """Return the devices that --accelerator names; None without it.

    Raises ValueError for an unknown name and for numbers out of range.
    """
    shares = request.mfu or MEASURED_MFU
    if len(shares) > 2 or not all(0.0 < share <= 1.0 for share in shares):
        given = ",".join(f"{share:g}" for share in shares)
        raise ValueError(f"--mfu={given} must be one or two numbers above 0, at most 1")
    for flag, value in (("price", request.price), ("disk_speed", request.disk_speed)):
        if value is not None and not 0.0 < value < math.inf:
            raise ValueError(f"--{flag}={value:g} must be a number above 0")
    if request.accelerator:
        return parse_target(request.accelerator)
    if request.mfu or request.price is not None:
        raise ValueError(
            "--mfu and --price need --accelerator; name the devices, as in --accelerator=8xh100"
        )
    return None


def fixed_seconds(state: int, sent: float, aim: Target | None) -> float:
    """Return the least seconds of a step to exchange gradients and to update the state.

    They do not shrink with the batch. state: bytes on each device, which an update reads and
    writes. sent: bytes that a device sends.
    """
    if aim is None:
        return 0.0
    accelerator = aim.accelerator
    return (sent / accelerator.link_speed + 2 * state / accelerator.memory_speed) / 1e9


def time_lines(
    config: ConfigDict,
    mesh: Mesh,
    flops: float,
    fixed: float,
    aim: Target | None,
    request: Request,
) -> list[str]:
    """Return lines on the time and the cost of a run at each end of the range of the MFU.

    flops: FLOPs of a step on all devices. fixed: seconds from `fixed_seconds`.
    """
    if aim is None:
        return ["time         unknown; add --accelerator=NAME, such as 8xh100 or v4-32"]
    dtype = config.model.get("dtype", "float32")
    peak = aim.accelerator.peak_flops(dtype)
    mfu = sorted(request.mfu or MEASURED_MFU, reverse=True)
    steps = [flops / (mesh.size * peak * share) for share in mfu]
    runs = [config.steps * seconds for seconds in steps]
    device_hours = [mesh.size * seconds / HOUR for seconds in runs]
    lines = [
        f"mfu          {format_range(mfu, '{:.0%}')} of {peak / 1e12:g} TFLOP/s per device, "
        f"{dtype}",
        f"step         {format_range([1e3 * s for s in steps], '{:,.1f}')} ms, "
        f"{format_range([config.batch_size / s for s in steps], '{:,.0f}')} images/s",
        f"run          {format_range(list(map(format_seconds, runs)))}, "
        f"{format_range(device_hours, '{:,.2f}')} device-hours",
    ]
    if request.price is not None:
        costs = format_range([request.price * hours for hours in device_hours], "{:,.2f}")
        lines.append(f"cost         {costs} at {request.price:g} per device-hour")
    if fixed > steps[0]:
        lines.append(
            f"warning      {config.batch_size // mesh.size} image(s) per device are too few: "
            f"exchanging gradients and updating the state adds {1e3 * fixed:.1f} ms, more than the "
            "computation takes; use a larger batch_size or fewer devices"
        )
    return lines


def checkpoint_line(config: ConfigDict, size: int, speed: float | None) -> str:
    """Return a line on the size of a checkpoint and the time to write it. speed: GB/s."""
    speed, kept = speed or DISK_SPEED, config.checkpoint.keep
    seconds = format_seconds(size / (speed * 1e9))
    text = f"checkpoint   {size / GIB:.2f} GiB, written in {seconds} at {speed:g} GB/s"
    if config.checkpoint.every:
        text += f", every {config.checkpoint.every:,} steps"
    return text + (f"; {kept} are kept" if kept else "; all are kept")


def format_range(values: list, form: str = "{}") -> str:
    """Format the first and the last value, or one value if they look the same."""
    ends = [form.format(value) for value in (values[0], values[-1])]
    return " to ".join(dict.fromkeys(ends))
