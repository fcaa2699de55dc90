"""What a run says of itself: metrics.jsonl, TensorBoard, a progress bar."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter

from objectives.base import Mean, Metrics

LOG = "metrics.jsonl"
# Ends the names of metrics that count since the start of the run.
RUNNING = "skipped"


class Average:
    """Metrics summed over steps, then divided; of running counts the last.

    What was never counted is left out.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Mean] = {}

    def add(self, metrics: Metrics) -> None:
        """Add the metrics of one step, already on the host."""
        for name, mean in metrics.items():
            old = self.sums.get(name, Mean(np.float64(0), np.float64(0)))
            if name.endswith(RUNNING):
                self.sums[name] = mean if mean.count > 0 else old
            else:
                self.sums[name] = Mean(old.total + mean.total, old.count + mean.count)

    def pop(self) -> dict[str, float]:
        """The means since the last call."""
        sums, self.sums = self.sums, {}
        return {name: float(m.total / m.count) for name, m in sums.items() if m.count > 0}


class MetricLog:
    """Rows of numbers by step, in WORKDIR/metrics.jsonl and as TensorBoard events.

    Opened at step k, it drops rows after k that a killed run left, so no step stands there twice.
    """

    def __init__(self, workdir: Path, step: int) -> None:
        self.path = workdir / LOG
        keep = [row for row in read_rows(self.path) if row["step"] <= step]
        fresh = self.path.with_suffix(".tmp")
        fresh.write_text("".join(json.dumps(row) + "\n" for row in keep))
        fresh.replace(self.path)
        self.file = self.path.open("a", buffering=1)
        self.tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Append one row; a value that is not finite is left out, since JSON has no name for it."""
        finite = {name: value for name, value in row.items() if math.isfinite(value)}
        self.file.write(json.dumps({"step": step, **finite}) + "\n")
        for name, value in finite.items():
            self.tensorboard.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush both files."""
        self.file.close()
        self.tensorboard.close()


def read_rows(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl, [] if there is none; a half-written last line is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
