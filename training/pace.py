"""The columns of the log that say how fast a run trains: step times, memory, use of the devices.

The time of a step lasts from the completion of the step before to its own. Dispatch is
asynchronous, so a step is complete when its metrics reach the host. The host waits for its devices
for a part of that time; the rest is the host's own work: data, dispatch, log. Steps of one dispatch
share its time equally.
"""

import statistics
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fewstep.training.cluster.processes import gather_numbers

SPEED = "images_per_second"  # a column of every row of training steps
MEMORY = {"memory_bytes": "bytes_in_use", "memory_peak_bytes": "peak_bytes_in_use"}
# Columns that depend on the machine: equal runs differ only in these.
MEASURED = (
    SPEED,
    "step_seconds",
    "step_seconds_max",
    "host_seconds",
    *MEMORY,
    "mfu",
    "slowest_process",
    "step_seconds_slowest",
    "host_seconds_slowest",
)
REMEMBERED = 1001  # last steps of a row, which its median is taken of
# Steps after compilation that tell the usual time of a step: so many, or fewer slow ones.
FIRST_STEPS, FIRST_SECONDS, LEAST_FIRST = 10, 10.0, 3


class Pace:
    """The times of the steps since the last row.

    least_seconds: time of a step without recomputation at the devices' peak
    (training/cost/step_cost.py), None if unknown. unfinished: `unfinished_row` of an earlier start
    that made the row's first steps.
    """

    def __init__(
        self,
        batch_size: int,
        least_seconds: float | None = None,
        unfinished: Mapping[str, Any] = {},
    ) -> None:
        self.batch_size, self.least_seconds = batch_size, least_seconds
        self.images, self.seconds = unfinished.get("images", 0), unfinished.get("seconds", 0.0)
        # Of each step: (seconds, seconds of the host's own work).
        self.steps = deque(map(tuple, unfinished.get("steps", ())), maxlen=REMEMBERED)
        self.resume()

    def resume(self) -> None:
        """Measure from here, so that no step includes the evaluation or save before it."""
        self.last = time.perf_counter()

    def step_times(self, count: int, waited: float) -> tuple[float, float]:
        """Time of each of `count` steps that are complete now: (seconds, the host's own seconds).

        waited: seconds that the host waited for its devices since the last completion.
        """
        now = time.perf_counter()
        elapsed, self.last = now - self.last, now
        return elapsed / count, max(elapsed - waited, 0.0) / count

    def add(self, step: tuple[float, float]) -> None:
        """Count a step into the row."""
        self.images += self.batch_size
        self.seconds += step[0]
        self.steps.append(step)

    def unfinished_row(self) -> dict[str, Any]:
        """The row so far, as plain values."""
        return {"images": self.images, "seconds": self.seconds, "steps": list(self.steps)}

    def pop(self) -> dict[str, float]:
        """Return the row and begin the next one. All processes call this after the same step."""
        row = {
            SPEED: self.images / self.seconds,
            **self.times(),
            **memory_in_use(jax.local_devices()),
        }
        self.images, self.seconds = 0, 0.0
        self.steps.clear()
        return row

    def times(self) -> dict[str, float]:
        """The row's columns of step times; {} if its steps come from a version without them."""
        if not self.steps:
            return {}
        steps, host = (list(times) for times in zip(*self.steps, strict=True))
        median, own = statistics.median(steps), statistics.median(host)
        row = {"step_seconds": median, "step_seconds_max": max(steps), "host_seconds": own}
        if self.least_seconds is not None:
            row["mfu"] = self.least_seconds / median
        if jax.process_count() > 1:
            row |= slowest_process(gather_numbers([median, own]))
        return row


class FirstSteps:
    """The usual time of a step, as soon as the first steps of a start tell it.

    compiled: steps of the first dispatch, whose time includes compilation.
    """

    def __init__(self, compiled: int) -> None:
        self.compiled, self.seconds = compiled, []

    def add(self, seconds: float) -> float | None:
        """Count a step; return the median of the first ones when they suffice, once, else None."""
        if self.compiled > 0:
            self.compiled -= 1
            return None
        if self.suffice():
            return None
        self.seconds.append(seconds)
        return statistics.median(self.seconds) if self.suffice() else None

    def suffice(self) -> bool:
        """Whether the steps so far tell the usual time."""
        slow = len(self.seconds) >= LEAST_FIRST and sum(self.seconds) >= FIRST_SECONDS
        return slow or len(self.seconds) >= FIRST_STEPS


def slowest_process(times: np.ndarray) -> dict[str, float]:
    """The process that the others wait for, and its times.

    times: [processes, (step, host)], in seconds. All processes end a step together, so step times
    do not tell them apart. The slowest is the one whose host needs most time for its own work.
    """
    index = int(np.argmax(times[:, 1]))
    step, host = map(float, times[index])
    return {
        "slowest_process": float(index),
        "step_seconds_slowest": step,
        "host_seconds_slowest": host,
    }


def memory_in_use(devices: Sequence[Any]) -> dict[str, float]:
    """Bytes in use on the fullest device, now and at most; {} if devices do not report them."""
    reports = [device.memory_stats() or {} for device in devices]
    return {
        name: float(max(stats[key] for stats in reports))
        for name, key in MEMORY.items()
        if reports and all(key in stats for stats in reports)
    }
