"""What a run shows while it trains: the log's rows, a progress bar, and whether it is still sound.

The metrics read on the host are those of the step before, so the device never waits for the host.
Where standard error is no terminal there is a line for each row in the place of the bar.
"""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from fewstep.objectives.base import Metrics, Objective
from fewstep.objectives.stages import ONE_STAGE, Stage, stage_index, stage_title
from fewstep.progress import is_terminal, note, progress_bar
from fewstep.training.cluster.processes import first_process_says
from fewstep.training.metrics import LOG, MetricLog, MetricMeans, iterate_rows
from fewstep.training.optimizer import Optimizer
from fewstep.training.pace import SPEED, Pace
from fewstep.training.schedule import Schedule
from fewstep.training.step import column_name

EVALUATION = "evaluate/"  # begins the names of an evaluation's numbers in the log


class DivergedError(RuntimeError):
    """A run that cannot go on as it is."""


class SpikesError(DivergedError):
    """Too many updates were not made because the loss or the gradient jumped."""


class NonFiniteError(DivergedError):
    """A loss, gradient or sample was not finite; nothing after the last finite step was saved.

    step: the training step, None for samples. values: loss and gradient norm of every player there.
    """

    def __init__(
        self, message: str, step: int | None = None, values: Mapping[str, float] | None = None
    ) -> None:
        super().__init__(message)
        self.step, self.values = step, dict(values or {})


class Report:
    """Reads metrics one step late, checks that the run is sound, logs and shows them.

    headlines: the columns of the log that are shown, where a row has them. unfinished: of the
    checkpoint that the run goes on from (`Report.unfinished_row`). least_seconds: of a step
    (training.pace.Pace). stages: if they are several, the log and the bar say which it is.
    """

    def __init__(
        self,
        workdir: Path,
        start: int,
        schedule: Schedule,
        optimizers: Mapping[str, Optimizer],
        *,
        batch_size: int,
        headlines: Sequence[str] = ("loss",),
        unfinished: Mapping[str, Any] | None = None,
        least_seconds: float | None = None,
        stages: Sequence[Stage] = ONE_STAGE,
    ) -> None:
        silent = jax.process_index() > 0
        self.log = None if silent else MetricLog(workdir, start)
        self.bar = progress_bar(total=schedule.steps, initial=start, unit="step", silent=silent)
        self.lines = not (silent or is_terminal())
        self.pending: tuple[int, int, Metrics] | None = None
        self.workdir, self.schedule, self.optimizers = workdir, schedule, optimizers
        self.headlines, self.stages = headlines, stages
        # The row may have been finished since then, for an evaluation that was cut off. All
        # processes must say the same: those that end a row ask each other for their times.
        begun = {} if first_process_says(has_row(workdir, start)) else unfinished or {}
        self.average = MetricMeans(begun.get("sums"))
        self.pace = Pace(batch_size, least_seconds, begun)

    def after_steps(self, last: int, count: int, metrics: Metrics) -> None:
        """Take the metrics of steps that are still running; handle those of the ones before.

        last: the number of the last of `count` steps; if they are several, the metrics have a first
        axis of that size.
        """
        self.catch_up()
        self.pending = (last, count, metrics)

    def catch_up(self) -> None:
        """Handle the metrics that were taken last."""
        if self.pending is None:
            return
        (last, count, metrics), self.pending = self.pending, None
        since = time.perf_counter()
        metrics = jax.device_get(metrics)
        took = self.pace.step_times(count, waited=time.perf_counter() - since)
        if count == 1:
            self.handle(last, metrics, took)
            return
        for i in range(count):
            self.handle(last - count + 1 + i, jax.tree.map(lambda a, i=i: a[i], metrics), took)

    def handle(self, step: int, metrics: Metrics, took: tuple[float, float]) -> None:
        """Check the metrics of one step, and add them and its time to the row of the log."""
        check_finite(step, metrics)
        check_spikes(step, metrics, self.optimizers)
        self.average.add({k: v for k, v in metrics.items() if not k.endswith("finite")})
        self.pace.add(took)
        self.bar.update()
        if self.schedule.logs(step):
            self.flush(step)

    def flush(self, step: int) -> None:
        """Handle what is pending and end the row of the log with the averages since the last."""
        self.catch_up()
        row = self.average.pop()
        if row:
            row |= self.pace.pop()
            shown = {name: row[name] for name in self.headlines if name in row}
            if len(self.stages) > 1:
                row["stage"] = stage_index(self.stages, step - 1) + 1
                self.bar.set_description(stage_title(self.stages, step), refresh=False)
            self.bar.set_postfix_str(", ".join(format_numbers(shown)))
            if self.lines:
                note(format_row(step, self.schedule.steps, shown, row, self.pace.batch_size))
            self.write(step, row)

    def unfinished_row(self) -> dict[str, Any]:
        """What the next row has so far, in plain values, for a run that goes on from here."""
        self.catch_up()
        return {"sums": self.average.pending(), **self.pace.unfinished_row()}

    def restart_clock(self) -> None:
        """Take the time of steps from here, without the evaluation or the save before."""
        self.pace.resume()

    def has_evaluation(self, step: int) -> bool:
        """Whether the log has an evaluation of that step."""
        return step in logged_evaluations(self.workdir)

    def log_evaluation(self, step: int, results: Mapping[str, float]) -> None:
        """Log the results of an evaluation."""
        self.write(step, {EVALUATION + name: value for name, value in results.items()})

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Log numbers of a step."""
        if self.log and row:
            self.log.write(step, row)

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, *_: object) -> None:
        """Flush the log and leave the bar as it stands."""
        self.bar.close()
        if self.log:
            self.log.close()


def headlines(objective: Objective) -> tuple[str, ...]:
    """The columns of the log that the bar shows, one of each player."""
    players = objective.players
    return tuple(column_name(player.headline, name, players) for name, player in players.items())


def format_numbers(shown: Mapping[str, float]) -> list[str]:
    """Numbers after their names."""
    return [f"{name} {value:.4f}" for name, value in shown.items()]


def format_row(
    step: int, steps: int, shown: Mapping[str, float], row: Mapping[str, float], batch_size: int
) -> str:
    """A row of training steps in a line: step, stage, headlines, speed, time that is left.

    shown: the headlines of the row, by name.
    """
    seconds = row.get("step_seconds", batch_size / row[SPEED])
    left = tqdm.format_interval((steps - step) * seconds)
    stage = [f"stage {row['stage']:.0f}"] if "stage" in row else []
    parts = [
        f"step {step} of {steps}",
        *stage,
        *format_numbers(shown),
        f"{row[SPEED]:,.0f} images/s",
        f"{left} left",
    ]
    return ", ".join(parts)


def has_row(workdir: Path, step: int) -> bool:
    """Whether the log has a row of training steps that ends at this one."""
    return any(row["step"] == step and SPEED in row for row in iterate_rows(workdir / LOG))


def check_finite(step: int, metrics: Metrics) -> None:
    """Raises NonFiniteError that names the network and the step."""
    for name, finite in metrics.items():
        if name.endswith("finite") and finite.total < finite.count:
            prefix = name.rpartition("/")[0]
            player = prefix or "the network"
            values = {
                name: float(mean.total)
                for name, mean in metrics.items()
                if name.rpartition("/")[2] in ("loss", "gradient_norm")
            }
            own = [v for name, v in values.items() if name.rpartition("/")[0] == prefix]
            raise NonFiniteError(
                f"{describe_non_finite(player, own)} at step {step}; the update was not "
                "made, and the run cannot go on as it is. Start another --workdir with a lower "
                "optimizer.learning_rate or with optimizer.clip_norm",
                step,
                values,
            )


def describe_non_finite(player: str, values: Iterable[float]) -> str:
    """Loss and gradient, or else the state that their update makes; with the verb."""
    if all(map(math.isfinite, values)):
        return f"the parameters or optimizer state of {player} after its update are not finite"
    return f"loss or gradient of {player} is not finite"


def check_spikes(step: int, metrics: Metrics, optimizers: Mapping[str, Optimizer]) -> None:
    """Raises SpikesError that names the network, the step and the factor."""
    for name, optimizer in optimizers.items():
        skipped = metrics.get(column_name("skipped", name, optimizers))
        if skipped is not None and skipped.total > optimizer.spike_cap:
            raise SpikesError(
                f"{name} has skipped {int(skipped.total)} updates at step {step}, more than "
                f"optimizer.spike_cap={optimizer.spike_cap}: their loss or gradient lay "
                f"{optimizer.spike_factor:g} standard deviations (optimizer.spike_factor) above "
                "the last ones. Start another --workdir with a lower optimizer.learning_rate, or "
                "with a higher factor or cap"
            )


def logged_evaluations(workdir: Path) -> dict[int, dict[str, float]]:
    """The logged numbers of a run's evaluations, by step and by name."""
    found: dict[int, dict[str, float]] = {}
    for row in iterate_rows(workdir / LOG):
        numbers = {
            k.removeprefix(EVALUATION): v for k, v in row.items() if k.startswith(EVALUATION)
        }
        if numbers:
            found.setdefault(row["step"], {}).update(numbers)
    return found
