"""Curves of runs: the points to draw, and their drawings for light and for dark pages."""

import io
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean
from typing import TYPE_CHECKING, NamedTuple

from fewstep.eval.metrics import MAIN
from fewstep.eval.report.runs import EvaluatedRun, Groups, all_results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# metric of the training log, after "PLAYER/" if there are several -> heading
CURVES = {
    "loss": "Training loss",
    "loss_flow": "Loss of the flow rows",
    "loss_bootstrap": "Loss of the bootstrap rows",
    "regression": "Distance to pairs of the teacher",
    "tangent": "Root mean square of the tangent",
    "gap": "Mean squared difference of fake score and teacher, denoised",
    "fake_excess": "Error of the fake score above its minimum",
    "fake_lag": "Share of its way from the teacher that the fake score lacks",
    "sample_std": "Standard deviation of generated pixels",
}
# Numbers of sampling steps whose distance is drawn over training.
DISTANCE_STEPS = (1, 4, 128)
NOISE_LEVELS = 8  # objectives.base.noise_level_means: eighths of the angle arctan(sigma / alpha)

# Okabe & Ito 2008: colour-blind readers can tell these apart. Black and yellow are left out, since
# every colour must show on white and on dark pages.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c")
# Beyond the palette, colours repeat with another dash. Plain dashes mark real images.
DASHES = ("-", (0, (5, 1.5, 1, 1.5)), (0, (1, 1.2)), (0, (7, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

# A log axis begins at this ratio of values.
LOG_FROM = 5.0
# ratio of values -> multiples of powers of ten that are labelled up to it
LOG_TICKS = ((3.0, range(1, 10)), (15.0, (1, 2, 5)), (1000.0, (1, 3)), (math.inf, (1,)))
# Small for text of 10 points, which stays legible where a phone shrinks the curve.
INCHES, DPI = (4.2, 2.8), 200
# The legend below the axes: inches of a row, letters of a row and of half a row, at 9 points.
LEGEND_ROW, LEGEND_LETTERS, TWO_COLUMNS = 0.19, 48, 20


class Look(NamedTuple):
    """Colour, dash and marker of a method, in all drawings of a page."""

    colour: str
    dash: str | tuple
    marker: str


class Line(NamedTuple):
    """Points (x, y), sorted by x. Lines with the same label share an entry of the legend.

    band: (lowest, highest) y at each point, or empty.
    """

    label: str
    look: Look
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float]] = ()


class Plot(NamedTuple):
    """Lines on axes.

    by_steps: whether x is a number of sampling steps; both axes are then logarithmic.
    level: a value to mark by a dashed line, and its label; or None.
    fraction: whether x is a fraction, and not a count.
    """

    lines: Sequence[Line]
    x_label: str
    y_label: str
    by_steps: bool = False
    level: tuple[float, str] | None = None
    fraction: bool = False


def looks(names: Iterable[str]) -> dict[str, Look]:
    """A look for each method, by its place on the page."""
    return {name: look(place) for place, name in enumerate(names)}


def look(place: int, player: int = 0) -> Look:
    """The look of the method at a place. Further players have its colour and another dash."""
    colour, turn = place % len(PALETTE), place // len(PALETTE)
    return Look(PALETTE[colour], DASHES[(turn + player) % len(DASHES)], MARKERS[colour])


def steps_plot(groups: Groups, metric: str) -> Plot | None:
    """The main metric by number of sampling steps: mean and range over seeds."""
    lines = []
    for place, (name, runs) in enumerate(groups.items()):
        values = {
            steps: [run.results[steps]["metrics"][MAIN] for run in runs]
            for steps in sorted(runs[0].results)
            if all(MAIN in run.results[steps]["metrics"] for run in runs)
        }
        # A log axis has a place only for positive values.
        values = {steps: those for steps, those in values.items() if min(those) > 0.0}
        points = [(steps, mean(those)) for steps, those in values.items()]
        band = [(min(those), max(those)) for those in values.values()] if len(runs) > 1 else ()
        if points:
            lines.append(Line(name, look(place), points, band))
    if not lines:
        return None
    floors = (result.get("real", {}).get(MAIN) for result in all_results(groups))
    floor = next((value for value in floors if value), None)
    level = None if floor is None else (floor, "real images")
    return Plot(lines, "sampling steps", metric, by_steps=True, level=level)


def training_plot(groups: Groups, metric: str, by_cost: bool = False) -> Plot | None:
    """A metric of the training log over training, one line for each run and player.

    by_cost: whether x is the number of network evaluations so far instead of the step. This leaves
    out runs whose evaluations are not known.
    """
    lines = []
    for place, (name, runs) in enumerate(groups.items()):
        players = player_prefixes([row for run in runs for row in run.rows], metric)
        for index, player in enumerate(players):
            label = name if len(players) == 1 else f"{name}, {player.removesuffix('/')}"
            for run in runs:
                cost = evaluations_per_step(run) if by_cost else 1
                key = player + metric
                points = [(cost * r["step"], r[key]) for r in run.rows if cost and key in r]
                if len(points) > 1:
                    lines.append(Line(label, look(place, index), points))
    x_label = "network evaluations in training" if by_cost else "training step"
    return Plot(lines, x_label, metric) if lines else None


def evaluations_per_step(run: EvaluatedRun) -> float | None:
    """The cost of a training step in network evaluations; None if it is not known."""
    total, step = run.budget["network_evaluations"], run.sampling["step"]
    return total / step if total and step else None


def noise_plot(groups: Groups) -> Plot | None:
    """The last logged loss by noise level: mean over seeds, one line for each player."""
    lines = []
    for place, (name, runs) in enumerate(groups.items()):
        players = player_prefixes([row for run in runs for row in run.rows], "loss", "_noise_")
        for index, player in enumerate(players):
            label = name if len(players) == 1 else f"{name}, {player.removesuffix('/')}"
            points = []
            for level in range(NOISE_LEVELS):
                metric = f"{player}loss_noise_{level}"
                last = [[row[metric] for row in run.rows if metric in row][-1:] for run in runs]
                if all(last):
                    points.append((level + 1, mean(value for (value,) in last)))
            if len(points) > 1:
                lines.append(Line(label, look(place, index), points))
    return Plot(lines, "noise level (1 data, 8 noise)", "loss") if lines else None


def player_prefixes(rows: Iterable[Mapping[str, float]], metric: str, more: str = "") -> list[str]:
    """The prefixes of a metric's names in the rows, "" or "PLAYER/", in order of first use.

    more: text between the metric and a number at the end of these names.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    if more:
        names = dict.fromkeys(name.rpartition(more)[0] for name in names if more in name)
    return [n.removesuffix(metric) for n in names if n == metric or n.endswith(f"/{metric}")]


def plot_png(plot: Plot, ink: str) -> bytes:
    """The plot as a transparent PNG with text in `ink`."""
    import matplotlib
    from matplotlib.figure import Figure

    labels = list(dict.fromkeys(line.label for line in plot.lines))
    labels += [plot.level[1]] if plot.level else []
    columns, rows = legend_size(labels)
    width, height = INCHES
    # Names of runs are text, even if they look like formulas.
    with matplotlib.rc_context({"text.parse_math": False, "font.size": 10}):
        drawing = Figure((width, height + LEGEND_ROW * rows), dpi=DPI, layout="constrained")
        axes = drawing.add_subplot()
        for line in plot.lines:
            draw_line(axes, line, marked=len(line.points) <= 2 * NOISE_LEVELS)
        if plot.level:
            axes.axhline(plot.level[0], color=ink, linestyle="--", linewidth=1, label=plot.level[1])
        scale_axes(axes, plot)
        finish_axes(axes, plot, ink)
        entries = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        drawing.legend(
            entries.values(),
            [textwrap.fill(label, LEGEND_LETTERS) for label in entries],
            loc="outside lower center",
            ncols=columns,
            fontsize=9,
            frameon=False,
            labelcolor=ink,
            handlelength=3.2,
            labelspacing=0.25,
            borderpad=0.0,
        )
        drawing.savefig(png := io.BytesIO(), format="png", transparent=True)
    return png.getvalue()


def legend_size(labels: Sequence[str]) -> tuple[int, int]:
    """Columns and rows of text that the legend needs."""
    if all(len(label) <= TWO_COLUMNS for label in labels):
        return 2, -(-len(labels) // 2)
    return 1, sum(len(textwrap.wrap(label, LEGEND_LETTERS)) for label in labels)


def draw_line(axes: "Axes", line: Line, marked: bool) -> None:
    """Draws a line and its band, with markers if `marked`."""
    x, y = zip(*line.points, strict=True)
    colour, dash, marker = line.look
    axes.plot(
        x,
        y,
        color=colour,
        linestyle=dash,
        linewidth=1.5,
        marker=marker if marked else None,
        markersize=4.5,
        label=line.label,
    )
    if line.band:
        low, high = zip(*line.band, strict=True)
        axes.fill_between(x, low, high, color=colour, alpha=0.25, linewidth=0)


def scale_axes(axes: "Axes", plot: Plot) -> None:
    """Makes axes logarithmic where values are far apart, and labels ticks by plain numbers."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, NullLocator

    values = [y for line in plot.lines for _, y in line.points]
    values += [y for line in plot.lines for ends in line.band for y in ends]
    values += [plot.level[0]] if plot.level else []
    if min(values) > 0.0 and (plot.by_steps or max(values) > LOG_FROM * min(values)):
        axes.set_yscale("log")
        ratio = max(values) / min(values)
        subs = next(subs for largest, subs in LOG_TICKS if ratio <= largest)
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    if plot.by_steps:
        axes.set_xscale("log", base=2)
        steps = sorted({x for line in plot.lines for x, _ in line.points})
        axes.set_xticks(steps, [f"{x:g}" for x in steps])
        axes.xaxis.set_minor_locator(NullLocator())
    elif plot.fraction:
        axes.locator_params(axis="x", nbins=5)
    else:
        axes.locator_params(axis="x", nbins=5, integer=True)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def finish_axes(axes: "Axes", plot: Plot, ink: str) -> None:
    """Draws labels, ticks and the two spines in ink."""
    axes.set_xlabel(plot.x_label, color=ink)
    axes.set_ylabel(plot.y_label, color=ink)
    axes.tick_params(which="both", colors=ink)
    axes.spines[:].set_color(ink)
    axes.spines[["top", "right"]].set_visible(False)
