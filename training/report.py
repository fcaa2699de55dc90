"""Reports a run while it trains: rows of the log, a progress bar, and errors if it diverges.

The host reads metrics one step late, so devices never wait for it. Outside terminals and notebooks
a line for each row replaces the bar.
"""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from fewstep.messages import MINUTE, format_seconds
from fewstep.objectives.base import Metrics, Objective
from fewstep.objectives.stages import ONE_STAGE, Stage, stage_index, stage_title
from fewstep.progress import note, progress_bar, shows_bars
from fewstep.training.cluster.processes import first_process_says
from fewstep.training.loggers import DEFAULT
from fewstep.training.metrics import LOG, MetricLog, MetricMeans, iterate_rows
from fewstep.training.optimizer import Optimizer
from fewstep.training.pace import SPEED, FirstSteps, Pace
from fewstep.training.packed import PackedMetrics, unpack_metrics
from fewstep.training.schedule import Schedule
from fewstep.training.step import column_name

EVALUATION = "evaluate/"  # prefix of an evaluation's columns in the log


class DivergedError(RuntimeError):
    """The run has diverged and cannot go on."""


class SpikesError(DivergedError):
    """The optimizer skipped too many updates whose loss or gradient jumped."""


class NonFiniteError(DivergedError):
    """A loss, gradient or sample is not finite; the run's state is that before the step.

    step: the training step, None for samples. values: loss and gradient norm of every player.
    """

    def __init__(
        self, message: str, step: int | None = None, values: Mapping[str, float] | None = None
    ) -> None:
        super().__init__(message)
        self.step, self.values = step, dict(values or {})


class Report:
    """Reads metrics one step late, checks that they are finite, logs and shows them.

    headlines: columns of the log that the bar shows, where a row has them. unfinished:
    `unfinished_row` in the checkpoint that the run goes on from. least_seconds: shortest time of a
    step (training.pace.Pace). stages: if there are several, the log and the bar name the current.
    log_to: names of loggers (training/loggers.py).
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
        log_to: Sequence[str] = DEFAULT,
    ) -> None:
        silent = jax.process_index() > 0
        self.log = None if silent else MetricLog(workdir, start, log_to)
        self.bar = progress_bar(total=schedule.steps, initial=start, unit="step", silent=silent)
        self.lines = not (silent or shows_bars())
        self.pending: tuple[int, int, PackedMetrics] | None = None
        self.workdir, self.schedule, self.optimizers = workdir, schedule, optimizers
        self.headlines, self.stages = headlines, stages
        # The log may have this row already, if the run was killed in the evaluation after it. All
        # processes must agree, since they exchange their times when a row ends.
        begun = {} if first_process_says(has_row(workdir, start)) else unfinished or {}
        self.average = MetricMeans(begun.get("sums"))
        self.pace = Pace(batch_size, least_seconds, begun)
        self.first_steps, self.silent = FirstSteps(schedule.dispatch), silent

    def after_steps(self, last: int, count: int, metrics: PackedMetrics) -> None:
        """Keep the metrics of steps that may still be running; handle those kept before.

        last: number of the last of these `count` steps.
        """
        self.catch_up()
        self.pending = (last, count, metrics)

    def catch_up(self) -> None:
        """Wait for the metrics kept last, and handle them."""
        if self.pending is None:
            return
        (last, count, metrics), self.pending = self.pending, None
        since = time.perf_counter()
        metrics = jax.device_get(metrics)
        took = self.pace.step_times(count, waited=time.perf_counter() - since)
        for step, of_step in enumerate(unpack_metrics(metrics), start=last - count + 1):
            self.handle(step, of_step, took)

    def handle(self, step: int, metrics: Metrics, took: tuple[float, float]) -> None:
        """Check the metrics of one step; add them and the step's time to the row of the log."""
        check_finite(step, metrics)
        check_spikes(step, metrics, self.optimizers)
        self.average.add({k: v for k, v in metrics.items() if not k.endswith("finite")})
        self.pace.add(took)
        self.bar.update()
        self.estimate_end(step, took[0])
        if self.schedule.logs(step):
            self.flush(step)

    def estimate_end(self, step: int, seconds: float) -> None:
        """Say once, after the first steps, how long the others take if that is a minute or more."""
        usual, left = self.first_steps.add(seconds), self.schedule.steps - step
        if usual is not None and usual * left >= MINUTE and not self.silent:
            time_left = format_seconds(usual * left)
            note(f"about {time_left} for {left:,} more steps, without evaluations")

    def flush(self, step: int) -> None:
        """Handle pending metrics, then write the row of the log: means since the row before."""
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
        """The row so far, as plain values, from which a resumed run goes on."""
        self.catch_up()
        return {"sums": self.average.pending(), **self.pace.unfinished_row()}

    def restart_clock(self) -> None:
        """Measure step times from here, so that none includes the evaluation or save before."""
        self.pace.resume()

    def has_evaluation(self, step: int) -> bool:
        """Whether the log has an evaluation of that step."""
        return step in logged_evaluations(self.workdir)

    def log_evaluation(self, step: int, results: Mapping[str, float]) -> None:
        """Log the results of an evaluation."""
        self.write(step, {EVALUATION + name: value for name, value in results.items()})

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Log numbers of a step, in process 0."""
        if self.log and row:
            self.log.write(step, row)

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, *_: object) -> None:
        """Close the log and leave the bar as it is."""
        self.bar.close()
        if self.log:
            self.log.close()


def headlines(objective: Objective) -> tuple[str, ...]:
    """The columns of the log that the bar shows, one for each player."""
    players = objective.players
    return tuple(column_name(player.headline, name, players) for name, player in players.items())


def format_numbers(shown: Mapping[str, float]) -> list[str]:
    """Each number after its name."""
    return [f"{name} {value:.4f}" for name, value in shown.items()]


def format_row(
    step: int, steps: int, shown: Mapping[str, float], row: Mapping[str, float], batch_size: int
) -> str:
    """A line for a row of training steps: step, stage, headlines, speed, remaining time.

    shown: the row's headlines, by name.
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
    """Whether the log has a row of training steps that ends at `step`."""
    return any(row["step"] == step and SPEED in row for row in iterate_rows(workdir / LOG))


def check_finite(step: int, metrics: Metrics) -> None:
    """Raises NonFiniteError that names the player and the step, if any metric is not finite."""
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
                f"{describe_non_finite(player, own)} at step {step}; the run skipped this update "
                "and cannot go on. Start another --workdir with a lower optimizer.learning_rate or "
                "with optimizer.clip_norm",
                step,
                values,
            )


def describe_non_finite(player: str, values: Iterable[float]) -> str:
    """What is not finite, in words: loss or gradient, else the state after the update."""
    if all(map(math.isfinite, values)):
        return f"the parameters or optimizer state of {player} after its update are not finite"
    return f"loss or gradient of {player} is not finite"


def check_spikes(step: int, metrics: Metrics, optimizers: Mapping[str, Optimizer]) -> None:
    """Raises SpikesError that names the player, the step and the factor, after too many spikes."""
    for name, optimizer in optimizers.items():
        skipped = metrics.get(column_name("skipped", name, optimizers))
        if skipped is not None and skipped.total > optimizer.spike_cap:
            raise SpikesError(
                f"{name} has skipped {int(skipped.total)} updates at step {step}, more than "
                f"optimizer.spike_cap={optimizer.spike_cap}: their loss or gradient norm was more "
                f"than {optimizer.spike_factor:g} standard deviations (optimizer.spike_factor) "
                "above the mean of the last ones. Start another --workdir with a lower "
                "optimizer.learning_rate, or with a higher factor or cap"
            )


def logged_evaluations(workdir: Path) -> dict[int, dict[str, float]]:
    """Numbers of a run's logged evaluations, by step and name."""
    found: dict[int, dict[str, float]] = {}
    for row in iterate_rows(workdir / LOG):
        numbers = {
            k.removeprefix(EVALUATION): v for k, v in row.items() if k.startswith(EVALUATION)
        }
        if numbers:
            found.setdefault(row["step"], {}).update(numbers)
    return found
