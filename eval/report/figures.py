"""Figures of a results page, each with its caption and with how it was made, as HTML."""

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

# Larger images are shown smaller: a page of five pictures stays below some ten megabytes.
LARGEST_SIDE = 128
# A picture shrinks to this share of its width, but never needs more than these pixels.
SHRINK, SHRUNK_WIDTH = 0.75, 544
LIGHT_INK, DARK_INK = "#222222", "#e4e4e4"
# Fields of a config that must agree between runs for their curves of a distance to compare.
MEASURED_BY = {
    "evaluate.features": "features {}",
    "evaluate.weights": "weights {}",
    "evaluate.num_samples": "{} samples",
    "evaluate.reference": "reference {}",
    "data.name": "data {}",
}
COST = "Training cost as much as so many forward passes of one image, without its teacher's."
# Fields of a sampling protocol as a caption says them; the seed is said last.
SAMPLED_BY = {
    "sampler": "sampler {}",
    "guidance_scale": "guidance {}",
    "network": "network {}",
    "step": "training step {}",
}


def steps_figure(groups: Groups, metric: str, protocol: str) -> str:
    """The main metric against the number of steps; "" where nothing was measured."""
    plot = steps_plot(groups, metric)
    band = "; the band spans the seeds, least to largest" if has_several_seeds(groups) else ""
    caption = f"{protocol}; {sampling_text(all_runs(groups))}{band}."
    return plot_figure(f"{METRICS[MAIN].heading} by number of steps", caption, plot)


def has_several_seeds(groups: Groups) -> bool:
    """Whether any method has several seeds."""
    return any(len(runs) > 1 for runs in groups.values())


def all_runs(groups: Groups) -> list[EvaluatedRun]:
    """All runs."""
    return [run for runs in groups.values() for run in runs]


def sampling_text(runs: Sequence[EvaluatedRun]) -> str:
    """How samples were made, in a line: what runs share, and the values that they do not."""
    parts = []
    for field, form in SAMPLED_BY.items():
        values = dict.fromkeys(value_text(run.sampling.get(field)) for run in runs)
        parts.append(form.format(" / ".join(values)))
    seeds = sorted({run.seed for run in runs})
    return ", ".join([*parts, f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"])


def representative_runs(groups: Groups) -> dict[str, EvaluatedRun]:
    """One run of each method: of the least seed that all have, or else of its own least."""
    common = set.intersection(*({run.seed for run in runs} for runs in groups.values()))
    seed = min(common, default=None)
    return {
        name: next((run for run in runs if run.seed == seed), runs[0])
        for name, runs in groups.items()
    }


def shared_noise_text(shown: Mapping[str, EvaluatedRun]) -> str:
    """What the columns of a picture have in common, and what they have not."""
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
    # Runs whose classes have other names show their labels alone.
    names = {run.classes for run in shown.values()}
    words = label_texts(own, names.pop() if len(names) == 1 else ())
    return f"{noise}; the labels are {', '.join(words)}."


def sample_figures(groups: Groups) -> list[str]:
    """For each number of steps one picture, with a row of images for each method that has it."""
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
    """One image's way from noise to data, a row for each method; "" where none was kept."""
    shown = {name: run for name, run in representative_runs(groups).items() if run.trajectory.size}
    if not shown:
        return ""
    rows = {
        f"{name}, {steps_text(max(run.results))}": run.trajectory for name, run in shown.items()
    }
    caption = (
        "What the network is given on its way to the first sample, and the sample; "
        f"{sampling_text(list(shown.values()))}"
    )
    return image_figure("From noise to data", caption, draw_picture(rows, common_space(shown)))


def steps_text(steps: int) -> str:
    """1 step, 2 steps."""
    return f"{steps} step{'s' * (steps > 1)}"


def common_space(runs: Mapping[str, EvaluatedRun]) -> Space:
    """The space of the samples of runs, which all have the same."""
    return next(iter(runs.values())).space


def draw_picture(rows: Mapping[str, np.ndarray], space: Space) -> Image.Image:
    """Samples [n, ...] under their titles, images made smaller where they are large."""
    return space.compare({t: shrink_images(x) if space.image else x for t, x in rows.items()})


def shrink_images(images: np.ndarray) -> np.ndarray:
    """Images [N, H, W, C] no larger than LARGEST_SIDE: means of whole blocks of pixels."""
    factor = -(-max(images.shape[1:3]) // LARGEST_SIDE)
    if factor == 1:
        return images
    height, width = (side // factor for side in images.shape[1:3])
    blocks = images[:, : height * factor, : width * factor]
    blocks = blocks.reshape(len(images), height, factor, width, factor, -1)
    return blocks.mean(axis=(2, 4)).round().astype(np.uint8)


def training_figures(groups: Groups) -> list[str]:
    """Curves of the training log, and the loss by noise level at its end."""
    one_each = "One line for each run; the seeds of a method share its colour."
    seeds = one_each if has_several_seeds(groups) else ""
    figures = [
        plot_figure(title, seeds, training_plot(groups, metric)) for metric, title in CURVES.items()
    ]
    figures += distance_figures(groups, seeds)
    caption = (
        "The last row of the log. Levels are eighths of the angle of noise to signal. Losses of "
        "different methods are different quantities: compare their shapes."
    )
    figures.append(plot_figure("Loss by noise level", caption, noise_plot(groups)))
    return [figure for figure in figures if figure]


def distance_figures(groups: Groups, seeds: str) -> list[str]:
    """The distance of some numbers of sampling steps against training, by steps and by their cost.

    The cost is that of the run itself, without its teacher's, and is drawn where methods differ.
    Nothing is drawn if the runs were not measured alike: numbers of several protocols have no axis
    in common.
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
    """How the evaluations during training were measured, in a line."""
    fields = {form: run.config.get(field) for field, form in MEASURED_BY.items()}
    words = ", ".join(form.format(value_text(value)) for form, value in fields.items() if value)
    return f"Measured while training: {words}."


def plot_figure(title: str, caption: str, plot: Plot | None) -> str:
    """A plot drawn for light and for dark pages; "" where there is none."""
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
    """A picture that scrolls sideways where it would shrink beyond legibility."""
    image.save(png := io.BytesIO(), format="PNG")
    least = min(int(SHRINK * image.width), SHRUNK_WIDTH)
    content = f'<img alt="{escape(title)}" width="{image.width}" height="{image.height}"'
    content += f' style="min-width: {least}px" src="{data_uri(png.getvalue())}">'
    return figure(title, caption, content, "image")


def figure(title: str, caption: str, content: str, kind: str) -> str:
    """Content under its title, and how it was made below."""
    return (
        f'<figure class="{kind}">\n<h3>{escape(title)}</h3>\n<div class="scroll">{content}</div>\n'
        f"<figcaption>{escape(caption)}</figcaption>\n</figure>\n"
    )


def figure_row(figures: Iterable[str]) -> str:
    """Figures beside each other as far as the page is wide."""
    return f'<div class="figures">\n{"".join(figures)}</div>\n'


def data_uri(content: bytes) -> str:
    """A PNG as the address of itself."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
