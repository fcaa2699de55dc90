"""Results of --maps (eval/maps.py): their files, their text, and their curves on a page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.data.spaces.space import Space
from fewstep.eval.report.curves import Line, Plot, look, plot_png
from fewstep.eval.report.results import load_results, save_results
from fewstep.eval.report.runs import Groups
from fewstep.files import replace_file, write_png

FOLDER = "maps"
INK = "#222222"
# number by noise level -> its heading
CURVES = {
    "error": "Distance of the predicted end to the teacher's",
    "spread": "Spread of the predicted ends of a trajectory",
}
NUMBERS = {
    "mean_error": "error",
    "mean_spread": "spread",
    "straightness": "straightness",
    "teacher_straightness": "of the teacher",
    "transport": "transport cost",
    "teacher_transport": "of the teacher",
    "agreement": "agreement with the teacher",
    "beside": "with the run beside",
}
LEVEL = "noise level, sigma / (alpha + sigma)"


def write_maps(
    folder: Path, result: Mapping[str, Any], rows: Mapping[str, np.ndarray], space: Space
) -> None:
    """Writes step_STEP.json, and _curves.png and _ends.png beside it."""
    path = folder / f"step_{result['step']:08d}.json"
    count = space.compared
    shown = {"teacher's end": rows["end"], "from noise": rows["made"]}
    if "ends" in rows:
        lines = [
            Line(name, look(i), list(zip(result["levels"], result[name], strict=True)))
            for i, name in enumerate(CURVES)
        ]
        plot = Plot(lines, LEVEL, "root mean square", fraction=True)
        replace_file(path.with_name(f"{path.stem}_curves.png"), plot_png(plot, INK))
        shown |= {f"at {tau:g}": rows["ends"][:, i] for i, tau in enumerate(result["levels"])}
    pictures = {title: space.finish(x[:count]) for title, x in shown.items()}
    write_png(path.with_name(f"{path.stem}_ends.png"), space.compare(pictures))
    save_results(path, result)


def summary(result: Mapping[str, Any]) -> str:
    """The numbers of a result as plain text."""
    teacher = result["teacher"]
    words = [f"{text} {result[name]:.4f}" for name, text in NUMBERS.items() if name in result]
    return (
        f"{result['method']}, step {result['step']}, {result['sampling_steps']} steps, beside "
        f"{teacher['method']} at step {teacher['step']}: {', '.join(words)}"
    )


def newest_maps(folder: Path) -> Mapping[str, Any] | None:
    """The result of the latest training step in a run's folder; None if there is none."""
    paths = sorted((folder / FOLDER).glob("step_*.json"))
    return load_results(paths[-1]) if paths else None


def map_plots(groups: Groups) -> dict[str, Plot]:
    """The curves of all runs with maps, by heading; {} if there are none."""
    found = {name: newest_maps(runs[0].folder) for name, runs in groups.items()}
    plots = {}
    for number, heading in CURVES.items():
        lines = [
            Line(name, look(i), list(zip(result["levels"], result[number], strict=True)))
            for i, (name, result) in enumerate(found.items())
            if result is not None and number in result
        ]
        if lines:
            plots[heading] = Plot(lines, LEVEL, "root mean square", fraction=True)
    return plots
