"""A page of results beside pictures and curves, in one HTML file.

A metric that METRICS does not list is shown under its own name, so a new one needs no change here.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from eval.curves import CURVES, Rows, curve_lines, curve_png
from eval.results import Result
from training.files import replace_file

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
LIGHT_INK, DARK_INK = "#222222", "#e4e4e4"


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


def data_uri(content: bytes) -> str:
    """A PNG as the address of itself."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
