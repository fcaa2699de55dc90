"""Curves of a training log: which metrics are drawn, and their pictures."""

import io
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

# Rows of metrics.jsonl: "step", and what was logged.
Rows = Sequence[Mapping[str, float]]

# A log axis begins at this ratio of values; beyond the other one its labels are decades alone.
LOG_FROM, LARGEST_LABELLED = 5.0, 1000.0

# metric of the training log, after "PLAYER/" if there are several -> heading
CURVES = {
    "loss": "Training loss",
    "gap": "Mean squared difference of fake score and teacher, denoised",
    "fake_excess": "Error of the fake score above its minimum",
    "fake_lag": "Share of its way from the teacher that the fake score lacks",
    "sample_std": "Standard deviation of generated pixels",
    "frechet_1": "Fréchet distance in one step",
}

# Small for its labels' 10 points, so that they stay legible where a phone shrinks the curve.
CURVE_INCHES, CURVE_DPI = (4.8, 3.0), 200


def curve_lines(curves: Mapping[str, Rows], metric: str) -> dict[str, list[tuple[float, float]]]:
    """Points (step, value) by name of the line; a run of several players has a line for each."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for name, rows in curves.items():
        owners = {player: None for row in rows for player in owners_of(row, metric)}
        for row in rows:
            for player in owners_of(row, metric):
                label = name if len(owners) == 1 else f"{name}, {player.removesuffix('/')}"
                lines.setdefault(label, []).append((row["step"], row[player + metric]))
    return lines


def owners_of(row: Mapping[str, float], metric: str) -> list[str]:
    """What stands before the metric in a row: "" or "PLAYER/"."""
    return [m.removesuffix(metric) for m in row if m == metric or m.endswith(f"/{metric}")]


def curve_png(lines: Mapping[str, Sequence[tuple[float, float]]], metric: str, ink: str) -> bytes:
    """A transparent PNG of the lines with text in `ink`; a log axis if values are far apart."""
    drawing = Figure(figsize=CURVE_INCHES, dpi=CURVE_DPI, layout="constrained")
    axes = drawing.add_subplot()
    for label, points in lines.items():
        axes.plot(*zip(*points, strict=True), label=label)
    values = [value for points in lines.values() for _, value in points]
    if min(values) > 0.0 and max(values) > LOG_FROM * min(values):
        axes.set_yscale("log")
        decades = max(values) > LARGEST_LABELLED * min(values)
        axes.yaxis.set_major_locator(LogLocator(subs=(1,) if decades else (1, 3)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("step", color=ink)
    axes.set_ylabel(metric, color=ink)
    axes.tick_params(which="both", colors=ink)
    axes.spines[:].set_color(ink)
    axes.spines[["top", "right"]].set_visible(False)
    for text in axes.legend(frameon=False, labelcolor=ink).get_texts():
        text.set_parse_math(False)
    drawing.savefig(png := io.BytesIO(), format="png", transparent=True)
    return png.getvalue()
