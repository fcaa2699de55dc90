"""A results page in one HTML file: table, distances by steps, samples, training curves."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fewstep.data.folders.class_names import label_texts
from fewstep.eval.metrics import MAIN, METRICS
from fewstep.eval.metrics.bootstrap import INTERVAL, RANGE, spread_name
from fewstep.eval.metrics.protocol import Protocol
from fewstep.eval.report.curves import looks
from fewstep.eval.report.figures import (
    all_runs,
    figure_row,
    has_several_seeds,
    plot_figure,
    representative_runs,
    sample_figures,
    shared_noise_text,
    steps_figure,
    training_figures,
    trajectory_figure,
)
from fewstep.eval.report.guidance import guidance_plot, guidance_text
from fewstep.eval.report.maps import map_plots
from fewstep.eval.report.runs import EvaluatedRun, Groups, all_results, group_by_method, value_text
from fewstep.eval.report.table import results_table, seeds_table
from fewstep.files import replace_file

WEIGHTS_DIGITS = 12  # digits of a hash in the line about the protocol

NOTES = (
    METRICS[MAIN].note,
    " ".join(metric.note for name, metric in METRICS.items() if name != MAIN and metric.note),
    "Real images: the distance is between as many real images as samples, at most half, and the "
    "other real images; label agreement is the classifier's accuracy on held-out images.",
)
SEEDS_NOTE = "With several seeds, a value is their mean."
# what the seeds of a method have -> how to read it
SPREAD_NOTES = {
    RANGE: "Below is the range of two seeds, which is no interval: a third seed may lie outside.",
    INTERVAL: (
        "Below are the 95 % bootstrap interval of the mean, which is too narrow for few seeds, and "
        "the least value. Compare least values only between equal numbers of seeds."
    ),
}
EVALUATIONS_NOTE = (
    "Evaluations of a sample are passes of one example through the network. A step of Heun takes "
    "two, but the last only one. Guidance by two conditions doubles them. Compare methods at equal "
    "evaluations."
)
GUIDED_TITLE = "Fidelity against diversity"
MAPS_NOTE = (
    "Along the trajectories of a teacher, by noise level (--mode=evaluate --maps); one seed of "
    "each method."
)
TEACHER_NOTE = (
    "A student's cost is that of its own training. Below it is the cost with the training of its "
    "teacher, which several students may share."
)


def results_page(path: Path, *, title: str, runs: Sequence[EvaluatedRun]) -> None:
    """Writes one HTML page, whole or not at all. It needs no other file and no network.

    The style is page.css beside this file. runs: measured alike (eval.report.runs.load_runs).
    """
    groups = group_by_method(runs)
    style = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{style}</style>
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
    """The sections of the page below its title."""
    measurement = shared_measurement(groups)
    metric = Protocol(measurement, {}).metric
    line = protocol_line(measurement, metric)
    distances = steps_figure(groups, metric, line)
    notes = reading_notes(groups) if measurement else ""
    noise = f"<p>{escape(shared_noise_text(representative_runs(groups)))}</p>\n"
    samples = figure_row([*sample_figures(groups), trajectory_figure(groups)])
    training = training_figures(groups)
    guided = plot_figure(GUIDED_TITLE, guidance_text(groups), guidance_plot(groups))
    maps = [plot_figure(title, MAPS_NOTE, plot) for title, plot in map_plots(groups).items()]
    return [
        f"<p>{escape(line)}.</p>\n",
        warning_paragraphs(groups) + protocol_details(groups, measurement),
        results_table(groups, looks(groups), metric),
        seeds_table(groups, metric) if has_several_seeds(groups) else "",
        f'<div class="beside">\n{distances}{notes}</div>\n' if measurement else "",
        f"<h2>Guidance</h2>\n{figure_row([guided])}" if guided else "",
        f"<h2>Samples</h2>\n{noise}{samples}",
        f"<h2>Maps</h2>\n{figure_row(maps)}" if maps else "",
        f"<h2>Training</h2>\n{figure_row(training)}" if training else "",
    ]


def shared_measurement(groups: Groups) -> Mapping[str, Any]:
    """How all measured runs were measured; {} if none was."""
    return next((run.measurement for run in all_runs(groups) if run.measurement), {})


def protocol_line(measurement: Mapping[str, Any], metric: str) -> str:
    """How the numbers were measured, in one line."""
    if not measurement:
        return "Nothing was measured against real samples"
    samples, labels = f"{measurement['samples']:,} samples", measurement["labels"]
    labelled = "without labels" if labels == "none" else f"labelled {labels}"
    weights = str(measurement["weights"])[:WEIGHTS_DIGITS]
    features = measurement["features"] + (f" (weights {weights})" if weights else "")
    real = f"{measurement['reference']} ({measurement['reference_sha256'][:WEIGHTS_DIGITS]})"
    return f"{metric}: {samples}, {labelled}, against {real}, on features of {features}"


def warning_texts(groups: Groups) -> list[str]:
    """All warnings, each once, and the reasons why runs have no metrics; without full stops."""
    texts: dict[str, None] = {}
    for result in all_results(groups):
        texts |= dict.fromkeys(warning.rstrip(".") for warning in result.get("warnings", ()))
    for run in all_runs(groups):
        reasons = {result["skipped"] for result in run.results.values() if "skipped" in result}
        texts |= {f"{run.name} has no {reason}": None for reason in sorted(reasons)}
    return [*texts]


def warning_paragraphs(groups: Groups) -> str:
    """All warnings as HTML."""
    texts = warning_texts(groups)
    return "".join(f'<p class="warning">Warning: {escape(text)}.</p>\n' for text in texts)


def plain_notes(groups: Groups) -> list[str]:
    """Notes on how to read the numbers of a page."""
    runs, spreads = all_runs(groups), {spread_name(len(own)) for own in groups.values()}
    seeds = [SEEDS_NOTE, *(note for name, note in SPREAD_NOTES.items() if name in spreads)]
    return [
        *NOTES,
        *([" ".join(seeds)] if len(seeds) > 1 else []),
        *([EVALUATIONS_NOTE] if any(run.evaluations for run in runs) else []),
        *([TEACHER_NOTE] if any(run.total for run in runs) else []),
    ]


def reading_notes(groups: Groups) -> str:
    """Notes on how to read the numbers, as HTML."""
    text = "".join(f"<p>{escape(note)}</p>\n" for note in plain_notes(groups))
    return f'<div class="notes">\n<h3>How to read the numbers</h3>\n{text}</div>\n'


def protocol_details(groups: Groups, measurement: Mapping[str, Any]) -> str:
    """All fields of the protocols, in a part of the page that opens by a click."""
    fields = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value_text(value))}</dd>\n"
        for name, value in measurement.items()
    )
    for classes in dict.fromkeys(run.classes for run in all_runs(groups) if run.classes):
        words = ", ".join(label_texts(range(len(classes)), classes))
        fields += f"<dt>classes</dt><dd>{escape(words)}</dd>\n"
    names = list(dict.fromkeys(name for run in all_runs(groups) for name in run.sampling))
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in ["run", *names])
    rows = "".join(sampling_row(run, names) for run in all_runs(groups))
    return (
        f"<details>\n<summary>Protocol: all fields</summary>\n<dl>\n{fields}</dl>\n"
        f'<div class="scroll"><table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}</tbody>\n'
        "</table></div>\n</details>\n"
    )


def sampling_row(run: EvaluatedRun, names: Sequence[str]) -> str:
    """A row of the table of sampling fields."""
    sampling = {**run.sampling, "steps": ", ".join(map(str, run.results))}
    cells = "".join(f"<td>{escape(value_text(sampling.get(name)))}</td>" for name in names)
    return f'<tr><th scope="row">{escape(run.name)}</th>{cells}</tr>\n'
