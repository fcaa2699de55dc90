"""Results of an evaluation: a JSON file, and a page that shows them beside pictures and curves.

A result is a dict of plain values: `name`, `by_steps` (number of steps -> metric -> value) and
whatever else says how the numbers were made (see FACTS). A metric that METRICS does not list is
shown under its own name, so a new one needs no change here.
"""

import base64
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

Result = Mapping[str, Any]
# Rows of metrics.jsonl: "step", and what was logged.
Rows = Sequence[Mapping[str, float]]

# metric -> (heading, format)
METRICS = {
    "frechet": ("Fréchet distance ↓", "{:.3f}"),
    "kernel": ("kernel distance ↓", "{:.4f}"),
    "kernel_error": ("its standard error", "{:.4f}"),
    "agreement": ("label agreement ↑", "{:.3f}"),
    "precision": ("precision ↑", "{:.3f}"),
    "recall": ("recall ↑", "{:.3f}"),
    "density": ("density ↑", "{:.3f}"),
    "coverage": ("coverage ↑", "{:.3f}"),
    "closer": ("nearer to training images", "{:.3f}"),
}
OTHER_FORMAT = "{:.4g}"

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

# field of a result -> how it reads in the line above its numbers
FACTS = {
    "data": "{}",
    "step": "step {:,}",
    "images_seen": "{:,} images seen",
    "network": "{}",
    "samples": "{:,} samples",
    "feature": "measured on {}",
    "guidance_scale": "guidance scale {:g}",
    "seed": "seed {}",
    "skipped": "skipped {}",
}

NOTES = (
    "The Fréchet distance is taken on the features named above the values. On pixels it is not "
    "FID and cannot be compared with it. It is biased upwards, more for fewer samples: compare "
    "only values with the same number of samples.",
    "Label agreement is the share of samples that a classifier of real images gives the label "
    "they were made for. Precision, recall, density and coverage are by nearest neighbours, on the "
    "same features. Nearer to training images: the share of samples nearer to one than 1 % of "
    "held-out real images are; far above 0.01 is copying.",
)

STYLE = """
:root { color-scheme: light dark; --ink: #222; --soft: #5c5c5c; --paper: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e4e4; --soft: #a4a4a4; --paper: #161616; }
}
body { margin: 0 auto; max-width: 46rem; padding: 1rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; }
h1, figcaption, [scope=rowgroup] { overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .5rem; text-align: right; font-weight: normal; vertical-align: bottom; }
thead th { font-size: .85rem; line-height: 1.25; color: var(--soft); }
tbody { border-top: 1px solid var(--soft); }
th:first-child { text-align: left; }
[scope=rowgroup] { padding-top: .8rem; }
small, .notes { color: var(--soft); font-size: .85rem; display: block; }
@media (max-width: 30rem) { th, td { padding: .3rem .25rem; } table { font-size: .875rem; } }
.scroll, figure { overflow-x: auto; }
figure { margin: 1.5rem 0; } figcaption { margin-bottom: .5rem; }
img { display: block; max-width: 100%; height: auto; } picture img { width: 34rem; }
"""

# A picture shrinks to this share of its width, but never needs more than these pixels.
SHRINK, SHRUNK_WIDTH = 0.75, 544
PNG_WIDTH = slice(16, 20)  # bytes of the header: PNG specification, section 11.2.1 (IHDR)

# Small for its labels' 10 points, so that they stay legible where a phone shrinks the curve.
CURVE_INCHES, CURVE_DPI = (4.8, 3.0), 200
LIGHT_INK, DARK_INK = "#222222", "#e4e4e4"


def save_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write results as JSON, whole or not at all; an older file is replaced in one move.

    Keys become strings, NumPy numbers and arrays plain ones. Raises ValueError, and leaves the
    older file alone, if a number is not finite or a value has no form in JSON, naming the field.
    """
    text = json.dumps(plain(results), indent=2, ensure_ascii=False) + "\n"
    replace_file(path, text.encode())


def load_results(path: Path) -> dict[str, Any]:
    """The results of `save_results`.

    Raises FileNotFoundError if there is no such file, ValueError if it is not a JSON object.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; evaluate the run first")
    try:
        results = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); evaluate the run again") from error
    if not isinstance(results, dict):
        raise ValueError(f"{path} holds no JSON object; evaluate the run again")
    return results


def plain(value: Any, field: str = "") -> Any:
    """`value` in the types of JSON; `field` is its dotted name in an error."""
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{field}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist(), field)
    if isinstance(value, list | tuple):
        return [plain(item, f"{field}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{field} is {value}; results hold finite numbers only")
    if value is not None and not isinstance(value, bool | int | float | str):
        raise ValueError(f"{field} is a {type(value).__name__}, which JSON cannot hold")
    return value


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part.

    Folders on the way are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with fresh.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def results_page(
    path: Path,
    *,
    title: str,
    results: Sequence[Result],
    pictures: Mapping[str, Path],
    curves: Mapping[str, Rows],
) -> None:
    """Write one HTML page that needs no other file and no network; whole or not at all.

    results: one dict per method or run. pictures: caption -> PNG file. curves: name of a run ->
    its rows of metrics.jsonl, of which the metrics of CURVES are drawn. Raises
    ValueError if a result lacks `name` or `by_steps`, FileNotFoundError if a picture is missing.
    """
    sections = [table(results), *(figure(*item) for item in pictures.items())]
    sections += [curve_figure(curves, metric, title) for metric, title in CURVES.items()]
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{"".join(sections)}</main>
</body>
</html>
"""
    replace_file(path, page.encode())


def table(results: Sequence[Result]) -> str:
    """Steps by metrics, one group of rows for each result, and the notes below."""
    for result in results:
        for field in ("name", "by_steps"):
            if field not in result:
                raise ValueError(f"a result lacks {field!r}; it holds {sorted(result)}")
    metrics = metric_names(results)
    headings = "".join(
        f'<th scope="col">{escape(METRICS.get(metric, (metric,))[0])}</th>' for metric in metrics
    )
    groups = "".join(table_group(result, metrics) for result in results)
    notes = "".join(f"<p>{escape(note)}</p>\n" for note in (*NOTES, *floor_notes(results)))
    return (
        '<div class="scroll">\n<table>\n'
        f'<thead><tr><th scope="col">steps</th>{headings}</tr></thead>\n{groups}</table>\n</div>\n'
        f'<div class="notes">\n{notes}</div>\n'
    )


def metric_names(results: Sequence[Result]) -> list[str]:
    """Every metric of the results: those of METRICS in its order, then others by first use."""
    found = {m: None for result in results for row in result["by_steps"].values() for m in row}
    return [m for m in METRICS if m in found] + [m for m in found if m not in METRICS]


def table_group(result: Result, metrics: Sequence[str]) -> str:
    """The rows of one result: how it was made, one row per number of steps, real images."""
    known = [field for field in FACTS if field in result]
    facts = ", ".join(FACTS[field].format(result[field]) for field in known)
    heading = (
        f'<tr><th scope="rowgroup" colspan="{len(metrics) + 1}"><strong>'
        f"{escape(str(result['name']))}</strong> <small>{escape(facts)}</small></th></tr>\n"
    )
    steps = sorted(result["by_steps"], key=int)
    rows = "".join(table_row(str(n), result["by_steps"][n], metrics) for n in steps)
    real = dict(result.get("floor", {}))
    if "classifier_accuracy" in result:
        real["agreement"] = result["classifier_accuracy"]
    if any(metric in real for metric in metrics):
        rows += table_row("real", real, metrics)
    return f"<tbody>\n{heading}{rows}</tbody>\n"


def table_row(heading: str, values: Mapping[str, float], metrics: Iterable[str]) -> str:
    """One row; a metric that was not measured is a dash."""
    cells = "".join(f"<td>{number(metric, values.get(metric))}</td>" for metric in metrics)
    return f'<tr><th scope="row">{escape(heading)}</th>{cells}</tr>\n'


def number(metric: str, value: float | None) -> str:
    """A value in the format of its metric."""
    return "–" if value is None else METRICS.get(metric, ("", OTHER_FORMAT))[1].format(value)


def floor_notes(results: Sequence[Result]) -> list[str]:
    """What the rows of real images are, each wording once."""
    whats = dict.fromkeys(result.get("floor", {}).get("what") for result in results)
    notes = [f"Fréchet distance of real images: {what}." for what in whats if what]
    if any("classifier_accuracy" in result for result in results):
        notes.append("Label agreement of real images: the classifier's accuracy on held-out ones.")
    return [" ".join(notes)] if notes else []


def figure(caption: str, path: Path) -> str:
    """One PNG under its caption, which scrolls sideways where it would shrink beyond legibility."""
    if not path.exists():
        raise FileNotFoundError(f"{path}, the picture {caption!r}, does not exist")
    caption, content = escape(caption), path.read_bytes()
    least = min(int(SHRINK * int.from_bytes(content[PNG_WIDTH], "big")), SHRUNK_WIDTH)
    image = f'<img alt="{caption}" style="min-width: {least}px" src="{data_uri(content)}">'
    return f"<figure>\n<figcaption>{caption}</figcaption>\n{image}\n</figure>\n"


def curve_figure(curves: Mapping[str, Rows], metric: str, title: str) -> str:
    """A metric against the step, drawn for light and for dark pages; nothing where it is not."""
    lines = {name: line for name, line in curve_lines(curves, metric).items() if len(line) > 1}
    if not lines:
        return ""
    light, dark = (data_uri(curve_png(lines, metric, ink)) for ink in (LIGHT_INK, DARK_INK))
    return (
        f"<figure>\n<figcaption>{escape(title)}</figcaption>\n<picture>"
        f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img alt="{escape(title)} against the step" src="{light}"></picture>\n</figure>\n'
    )


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


def data_uri(content: bytes) -> str:
    """A PNG as the address of itself."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
