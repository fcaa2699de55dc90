"""Figures of a results page as HTML. Each caption says how its figure was made."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import numpy as np
from PIL import Image

from fewstep.data.folders.class_names import label_texts
from fewstep.data.spaces.space import Space
from fewstep.eval.metrics import MAIN, METRICS
from fewstep.eval.metrics.metric import logged_name
from fewstep.eval.report.curves import (
    CURVES,
    DISTANCE_STEPS,
    Plot,
    noise_plot,
    plot_png,
    steps_plot,
    training_plot,
)
from fewstep.eval.report.runs import EvaluatedRun, Groups, value_text

# Larger images are shrunk, so that a page of five pictures stays below about 10 MB.
LARGEST_SIDE = 128
# A picture may shrink to this share of its width, or to this width if that is less.
SHRINK, SHRUNK_WIDTH = 0.75, 544
LIGHT_INK, DARK_INK = "#222222", "#e4e4e4"
# Fields of a config that runs must share for their curves of a distance to be comparable.
MEASURED_BY = {
    "evaluate.features": "features {}",
    "evaluate.weights": "weights {}",
    "evaluate.num_samples": "{} samples",
    "evaluate.reference": "reference {}",
    "data.name": "data {}",
    "data.label_shares": "label shares {}",
}
COST = "Cost is in forward passes of one image, without the training of a teacher."
# field of a sampling protocol -> its text in a caption; the seed comes last
SAMPLED_BY = {
    "sampler": "sampler {}",
    "guidance_scale": "guidance {}",
    "network": "network {}",
    "step": "training step {}",
}


def steps_figure(groups: Groups, metric: str, protocol: str) -> str:
    """The main metric by number of sampling steps; "" if nothing was measured."""
    plot = steps_plot(groups, metric)
    band = "; the band spans the seeds" if has_several_seeds(groups) else ""
    caption = f"{protocol}; {sampling_text(all_runs(groups))}{band}."
    return plot_figure(f"{METRICS[MAIN].heading} by number of steps", caption, plot)


def has_several_seeds(groups: Groups) -> bool:
    """Whether any method has runs of several seeds."""
    return any(len(runs) > 1 for runs in groups.values())


def all_runs(groups: Groups) -> list[EvaluatedRun]:
    """All runs of all groups."""
    return [run for runs in groups.values() for run in runs]


def sampling_text(runs: Sequence[EvaluatedRun]) -> str:
    """How runs were sampled, in one line. Where they differ, it lists all values."""
    parts = []
    for field, form in SAMPLED_BY.items():
        values = dict.fromkeys(value_text(run.sampling.get(field)) for run in runs)
        parts.append(form.format(" / ".join(values)))
    seeds = sorted({run.seed for run in runs})
    return ", ".join([*parts, f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"])


def representative_runs(groups: Groups) -> dict[str, EvaluatedRun]:
    """One run of each method: that of the smallest common seed, else that of its smallest seed."""
    common = set.intersection(*({run.seed for run in runs} for runs in groups.values()))
    seed = min(common, default=None)
    return {
        name: next((run for run in runs if run.seed == seed), runs[0])
        for name, runs in groups.items()
    }


def shared_noise_text(shown: Mapping[str, EvaluatedRun]) -> str:
    """Which noise and labels the rows of a picture share."""
    seeds = sorted({run.seed for run in shown.values()})
    labels = {tuple(run.labels[: run.space.compared].tolist()) for run in shown.values()}
    noise = f"The noise is the same in each row (seed {seeds[0]})"
    if len(seeds) > 1:
        of_seeds = (
            f"seed {seed}: {', '.join(name for name, run in shown.items() if run.seed == seed)}"
            for seed in seeds
        )
        noise = f"The noise differs between rows ({'; '.join(of_seeds)})"
    if len(labels) > 1:
        return f"{noise}; the labels differ between methods."
    (own,) = labels
    if max(own) < 0:
        return f"{noise}; there are no labels."
    if not common_space(shown).image:
        return f"{noise}; the labels are the same."
    # Labels stay numbers if runs name their classes differently.
    names = {run.classes for run in shown.values()}
    words = label_texts(own, names.pop() if len(names) == 1 else ())
    return f"{noise}; the labels are {', '.join(words)}."


def sample_figures(groups: Groups) -> list[str]:
    """One picture for each number of steps, with a row for each method that has this number."""
    shown = representative_runs(groups)
    figures = []
    for steps in sorted({steps for run in shown.values() for steps in run.images}):
        having = {name: run for name, run in shown.items() if steps in run.images}
        space = common_space(having)
        count = min(space.compared, *(len(run.images[steps]) for run in having.values()))
        rows = {name: run.images[steps][:count] for name, run in having.items()}
        caption = sampling_text(list(having.values()))
        figures.append(image_figure(steps_text(steps), caption, draw_picture(rows, space)))
    return figures


def trajectory_figure(groups: Groups) -> str:
    """One sample's trajectory from noise to data, a row for each method; "" if no run has one."""
    shown = {name: run for name, run in representative_runs(groups).items() if run.trajectory.size}
    if not shown:
        return ""
    rows = {
        f"{name}, {steps_text(max(run.results))}": run.trajectory for name, run in shown.items()
    }
    caption = (
        "The network's inputs on the way to the first sample, and the sample; "
        f"{sampling_text(list(shown.values()))}"
    )
    return image_figure("From noise to data", caption, draw_picture(rows, common_space(shown)))


def steps_text(steps: int) -> str:
    """A number of steps as text: 1 step, 2 steps."""
    return f"{steps} step{'s' * (steps > 1)}"


def common_space(runs: Mapping[str, EvaluatedRun]) -> Space:
    """The space of the runs' samples, which is the same for all."""
    return next(iter(runs.values())).space


def draw_picture(rows: Mapping[str, np.ndarray], space: Space) -> Image.Image:
    """One picture of samples [n, ...] by title. Large images are shrunk."""
    return space.compare({t: shrink_images(x) if space.image else x for t, x in rows.items()})


def shrink_images(images: np.ndarray) -> np.ndarray:
    """Images [N, H, W, C] whose sides are at most LARGEST_SIDE, by means over blocks of pixels."""
    factor = -(-max(images.shape[1:3]) // LARGEST_SIDE)
    if factor == 1:
        return images
    height, width = (side // factor for side in images.shape[1:3])
    blocks = images[:, : height * factor, : width * factor]
    blocks = blocks.reshape(len(images), height, factor, width, factor, -1)
    return blocks.mean(axis=(2, 4)).round().astype(np.uint8)


def training_figures(groups: Groups) -> list[str]:
    """Curves of the training log, and its last loss by noise level."""
    one_each = "One line for each run; the seeds of a method share its colour."
    seeds = one_each if has_several_seeds(groups) else ""
    figures = [
        plot_figure(title, seeds, training_plot(groups, metric)) for metric, title in CURVES.items()
    ]
    figures += distance_figures(groups, seeds)
    caption = (
        "The last row of the log. Noise levels are eighths of the angle arctan(sigma / alpha). "
        "Losses of different methods are different quantities: compare only their shapes."
    )
    figures.append(plot_figure("Loss by noise level", caption, noise_plot(groups)))
    return [figure for figure in figures if figure]


def distance_figures(groups: Groups, seeds: str) -> list[str]:
    """The distance in DISTANCE_STEPS sampling steps over training, by training step and by cost.

    Cost is that of the run, without its teacher's. It is drawn if there are several methods. If the
    runs were not measured alike, nothing is drawn, since numbers of several protocols share no
    axis.
    """
    measured = {measurement_text(run) for run in all_runs(groups)}
    if len(measured) > 1:
        return []
    (caption,) = measured
    figures = []
    for steps in DISTANCE_STEPS:
        title, name = f"{METRICS[MAIN].heading} in {steps_text(steps)}", logged_name(MAIN, steps)
        title += ", while training"
        plot = training_plot(groups, name)
        figures.append(plot_figure(title, f"{caption} {seeds}".strip(), plot))
        if len(groups) > 1:
            plot = training_plot(groups, name, by_cost=True)
            figures.append(plot_figure(f"{title}, by cost", f"{caption} {COST}", plot))
    return figures


def measurement_text(run: EvaluatedRun) -> str:
    """How the evaluations during training were measured, in one line."""
    fields = {form: run.config.get(field) for field, form in MEASURED_BY.items()}
    words = ", ".join(form.format(value_text(value)) for form, value in fields.items() if value)
    return f"Measured while training: {words}."


def plot_figure(title: str, caption: str, plot: Plot | None) -> str:
    """A figure of a plot, drawn for light and for dark pages; "" for no plot."""
    if plot is None:
        return ""
    light, dark = (data_uri(plot_png(plot, ink)) for ink in (LIGHT_INK, DARK_INK))
    return figure(
        title,
        caption,
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img alt="{escape(title)}" src="{light}"></picture>',
        "plot",
    )


def image_figure(title: str, caption: str, image: Image.Image) -> str:
    """A figure of a picture, which scrolls sideways before it becomes too small to see."""
    image.save(png := io.BytesIO(), format="PNG")
    least = min(int(SHRINK * image.width), SHRUNK_WIDTH)
    content = f'<img alt="{escape(title)}" width="{image.width}" height="{image.height}"'
    content += f' style="min-width: {least}px" src="{data_uri(png.getvalue())}">'
    return figure(title, caption, content, "image")


def figure(title: str, caption: str, content: str, kind: str) -> str:
    """A figure of any content, with a title above and a caption below."""
    return (
        f'<figure class="{kind}">\n<h3>{escape(title)}</h3>\n<div class="scroll">{content}</div>\n'
        f"<figcaption>{escape(caption)}</figcaption>\n</figure>\n"
    )


def figure_row(figures: Iterable[str]) -> str:
    """Figures side by side, in as many columns as the page has room for."""
    return f'<div class="figures">\n{"".join(figures)}</div>\n'


def data_uri(content: bytes) -> str:
    """A PNG as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
