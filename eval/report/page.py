"""A page of results, in one HTML file: a table, distances by steps, samples, training curves."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fewstep.data.folders.class_names import described
from fewstep.eval.metrics.protocol import Protocol
from fewstep.eval.report.curves import looks
from fewstep.eval.report.figures import (
    beside,
    every,
    frechet_figure,
    same_noise,
    sameness,
    sample_figures,
    several,
    training_figures,
    way_figure,
)
from fewstep.eval.report.runs import Groups, Run, by_method, in_words, results_of
from fewstep.eval.report.table import table
from fewstep.files import replace_file

WEIGHTS_DIGITS = 12  # of a hash that names weights in a line

STYLE = """
:root { color-scheme: light dark; --ink: #222; --soft: #5c5c5c; --line: #d4d4d4; --paper: #fff;
  --warn: #8a4b00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e4e4; --soft: #a8a8a8; --line: #444; --paper: #161616; --warn: #f0b060; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 90rem; padding: 1rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: 1rem; margin: 0 0 .35rem; }
h1, h2, h3 { line-height: 1.25; }
h1, p, figcaption, dd { overflow-wrap: anywhere; }
p, dl, li { max-width: 48rem; }
.warning { color: var(--warn); }
.notes p, figcaption, details { color: var(--soft); font-size: .875rem; }
.notes p { margin: .5rem 0; }
summary { cursor: pointer; padding: .25rem 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .5rem 0; }
dd { margin: 0; min-width: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.sortable { margin: .5rem 0; }
th, td { padding: .3rem .45rem; text-align: right; font-weight: normal; vertical-align: top; }
thead th { font-size: .85rem; line-height: 1.25; color: var(--soft); vertical-align: bottom; }
tbody, tfoot { border-top: 1px solid var(--soft); }
.grouped .first:not(:first-child) { border-top: 1px solid var(--line); }
.grouped tr:not(.first) > [scope=row]:not(tfoot *) { color: var(--soft); }
.sortable th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper);
  min-width: 9.5rem; max-width: 16rem; overflow-wrap: anywhere; }
.sortable td, .sortable .metric { white-space: nowrap; }
.sortable .metric small { white-space: normal; }
.sortable td, .sortable th { padding-block: .2rem; line-height: 1.3; }
.sortable th:first-child { padding-left: 1.5rem; }
.sortable i { position: absolute; left: .4rem; top: .5em; width: .7em; height: .7em;
  border-radius: 50%; }
small { display: block; color: var(--soft); font-size: .8rem; }
button { all: unset; cursor: pointer; }
button:hover { text-decoration: underline; }
button:focus-visible { outline: 2px solid; outline-offset: 2px; }
[aria-sort] button { color: var(--ink); }
[aria-sort=ascending] button::before { content: "\\25B2\\A0"; }
[aria-sort=descending] button::before { content: "\\25BC\\A0"; }
details th, details td { text-align: left; padding: .15rem .8rem .15rem 0; white-space: nowrap; }
figure { margin: 0; min-width: 0; } figcaption { margin-top: .4rem; max-width: 48rem; }
.figures { display: grid; gap: 2rem 1.5rem; margin-top: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
.beside { display: grid; gap: 2rem; align-items: start; margin-top: 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); max-width: 70rem; }
img { display: block; max-width: 100%; height: auto; }
.plot img { width: 100%; max-width: 30rem; }
@media (max-width: 30rem) {
  th, td { padding: .3rem .4rem; } .sortable { font-size: .9rem; }
  .sortable th:first-child { max-width: 8rem; min-width: 7rem; }
  dl { grid-template-columns: 1fr; } dd { margin-bottom: .3rem; }
}
"""

NOTES = (
    "The Fréchet distance is between samples and real images, on the features named above. It is "
    "FID only where it is called so. It is biased upwards, more for fewer samples: compare only "
    "values of one protocol.",
    "Label agreement is the share of samples that a classifier of real images gives the label "
    "they were made for. Precision, recall, density and coverage are by nearest neighbours, on "
    "the same features; ± is the standard error of one kernel distance. Nearer to training images: "
    "the share of samples nearer to one than 1 % of held-out real images are; far above 0.01 is "
    "copying.",
    "Real images: as many of them as samples, at most half, against the others; and the "
    "classifier's accuracy on held-out ones.",
)
SEEDS_NOTE = (
    "With several seeds, values are means; the brackets hold the 95 % bootstrap interval of the "
    "mean, too narrow for few seeds, and then comes the least of them, which compares only between "
    "equal numbers of seeds."
)


def results_page(path: Path, *, title: str, runs: Sequence[Run]) -> None:
    """Write one HTML page that needs no other file and no network; whole or not at all.

    runs: measured alike (eval.report.runs.load_runs).
    """
    groups = by_method(runs)
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
{"".join(sections(groups))}</main>
</body>
</html>
"""
    replace_file(path, page.encode())


def sections(groups: Groups) -> list[str]:
    """The page below its title."""
    measurement = next((run.measurement for run in every(groups) if run.measurement), {})
    metric = Protocol(measurement, {}).metric
    line = protocol_line(measurement, metric)
    distances = frechet_figure(groups, metric, line)
    notes = notes_on(groups) if measurement else ""
    shown = f"<p>{escape(sameness(same_noise(groups)))}</p>\n"
    training = training_figures(groups)
    return [
        f"<p>{escape(line)}.</p>\n{warnings(groups)}{protocol_details(groups, measurement)}",
        table(groups, looks(groups), metric),
        f'<div class="beside">\n{distances}{notes}</div>\n' if measurement else "",
        f"<h2>Samples</h2>\n{shown}{beside([*sample_figures(groups), way_figure(groups)])}",
        f"<h2>Training</h2>\n{beside(training)}" if training else "",
    ]


def protocol_line(measurement: Mapping[str, Any], metric: str) -> str:
    """How the numbers were measured, in plain words."""
    if not measurement:
        return "Nothing was measured; there are samples to look at"
    samples, labels = f"{measurement['samples']:,} samples", measurement["labels"]
    labelled = "without labels" if labels == "none" else f"labelled {labels}"
    weights = str(measurement["weights"])[:WEIGHTS_DIGITS]
    features = measurement["features"] + (f" (weights {weights})" if weights else "")
    real = f"{measurement['reference']} ({measurement['reference_sha256'][:WEIGHTS_DIGITS]})"
    return f"{metric}: {samples}, {labelled}, against {real}, on features of {features}"


def warnings(groups: Groups) -> str:
    """What a reader must know, each wording once, and what was not measured and why."""
    texts: dict[str, None] = {}
    for result in results_of(groups):
        texts |= dict.fromkeys(warning.rstrip(".") for warning in result.get("warnings", ()))
    for run in every(groups):
        reasons = {result["skipped"] for result in run.results.values() if "skipped" in result}
        texts |= {f"{run.name} has no {reason}": None for reason in sorted(reasons)}
    return "".join(f'<p class="warning">Warning: {escape(text)}.</p>\n' for text in texts)


def notes_on(groups: Groups) -> str:
    """How to read the numbers."""
    notes = (*NOTES, SEEDS_NOTE) if several(groups) else NOTES
    text = "".join(f"<p>{escape(note)}</p>\n" for note in notes)
    return f'<div class="notes">\n<h3>How to read the numbers</h3>\n{text}</div>\n'


def protocol_details(groups: Groups, measurement: Mapping[str, Any]) -> str:
    """Every field of the protocols, folded up."""
    fields = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(in_words(value))}</dd>\n"
        for name, value in measurement.items()
    )
    for classes in dict.fromkeys(run.classes for run in every(groups) if run.classes):
        words = ", ".join(described(range(len(classes)), classes))
        fields += f"<dt>classes</dt><dd>{escape(words)}</dd>\n"
    names = list(dict.fromkeys(name for run in every(groups) for name in run.sampling))
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in ["run", *names])
    rows = "".join(sampling_row(run, names) for run in every(groups))
    return (
        f"<details>\n<summary>Protocol: all fields</summary>\n<dl>\n{fields}</dl>\n"
        f'<div class="scroll"><table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}</tbody>\n'
        "</table></div>\n</details>\n"
    )


def sampling_row(run: Run, names: Sequence[str]) -> str:
    """How a run was sampled, field by field."""
    sampling = {**run.sampling, "steps": ", ".join(map(str, run.results))}
    cells = "".join(f"<td>{escape(in_words(sampling.get(name)))}</td>" for name in names)
    return f'<tr><th scope="row">{escape(run.name)}</th>{cells}</tr>\n'
