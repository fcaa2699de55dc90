"""How fast a run trains, as a row of its log says: times of steps, memory, use of the devices.

A step takes from the completion of the step before to its own. Dispatch is asynchronous, so a step
is complete when its metrics have reached the host; until then the host waits for its devices, and
the rest of the step is the host's own: its data, dispatch, log. Where steps are dispatched several
at once, each takes its share.
"""

import statistics
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fewstep.training.cluster.processes import gather_numbers

SPEED = "images_per_second"  # in every row of training steps
MEMORY = {"memory_bytes": "bytes_in_use", "memory_peak_bytes": "peak_bytes_in_use"}
# All that depends on the machine, and not on the run: two runs that are alike differ in these.
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
REMEMBERED = 1001  # steps of a row, whose median is taken


class Pace:
    """The times of the steps since the last row.

    least_seconds: of a step at the devices' peak (training/cost/step_cost.py), None if not known.
    unfinished: of the row of which an earlier start made the first steps (`unfinished_row`).
    """

    def __init__(
        self,
        batch_size: int,
        least_seconds: float | None = None,
        unfinished: Mapping[str, Any] = {},
    ) -> None:
        self.batch_size, self.least_seconds = batch_size, least_seconds
        self.images, self.seconds = unfinished.get("images", 0), unfinished.get("seconds", 0.0)
        # (seconds, those of them that are the host's own) of each step
        self.steps = deque(map(tuple, unfinished.get("steps", ())), maxlen=REMEMBERED)
        self.resume()

    def resume(self) -> None:
        """Measure from here, without the evaluation or the save before."""
        self.last = time.perf_counter()

    def step_times(self, count: int, waited: float) -> tuple[float, float]:
        """The time of each of `count` steps that are complete now: (seconds, the host's own).

        waited: seconds that the host has waited for its devices since the last completion.
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
        """What the row has so far, in plain values."""
        return {"images": self.images, "seconds": self.seconds, "steps": list(self.steps)}

    def pop(self) -> dict[str, float]:
        """The row, and begin the next one. Called in all processes after the same step."""
        row = {
            SPEED: self.images / self.seconds,
            **self.times(),
            **memory_in_use(jax.local_devices()),
        }
        self.images, self.seconds = 0, 0.0
        self.steps.clear()
        return row

    def times(self) -> dict[str, float]:
        """What a row says of its steps; {} if all are of a version that did not record them."""
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


def slowest_process(times: np.ndarray) -> dict[str, float]:
    """The process that the others wait for, and its times; [processes, (step, host)] seconds.

    All processes end a step together, so that the steps of all take as long as those of the slowest
    one. That is the one whose host needs the most time of its own.
    """
    index = int(np.argmax(times[:, 1]))
    step, host = map(float, times[index])
    return {
        "slowest_process": float(index),
        "step_seconds_slowest": step,
        "host_seconds_slowest": host,
    }


def memory_in_use(devices: Sequence[Any]) -> dict[str, float]:
    """Bytes in use on the fullest of these devices, now and at most; {} where they do not tell."""
    told = [device.memory_stats() or {} for device in devices]
    return {
        name: float(max(stats[key] for stats in told))
        for name, key in MEMORY.items()
        if told and all(key in stats for stats in told)
    }
