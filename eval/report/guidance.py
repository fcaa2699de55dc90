"""Fidelity against diversity along the guidance scale, for each number of sampling steps."""

from fewstep.eval.report.curves import Line, Plot, look
from fewstep.eval.report.runs import Groups, value_text

FIDELITY, DIVERSITY = "precision", "recall"


def guidance_plot(groups: Groups) -> Plot | None:
    """Precision by recall, a line for each method and number of steps; None without scales.

    A line has the points of one run in the order of its scales.
    """
    lines = []
    for place, (name, runs) in enumerate(groups.items()):
        for turn, (steps, results) in enumerate(runs[0].guided.items()):
            metrics = [result["metrics"] for result in results.values()]
            if all({FIDELITY, DIVERSITY} <= own.keys() for own in metrics):
                points = [(own[DIVERSITY], own[FIDELITY]) for own in metrics]
                label = f"{name}, {steps} step{'s' * (steps > 1)}"
                lines.append(Line(label, look(place, turn), points))
    return (
        Plot(lines, "recall (diversity)", "precision (fidelity)", fraction=True) if lines else None
    )


def guidance_text(groups: Groups) -> str:
    """The scales along the lines of `guidance_plot`, in words."""
    scales = {scale for runs in groups.values() for own in runs[0].guided.values() for scale in own}
    return (
        f"Guidance scales {', '.join(map(value_text, sorted(scales)))} along each line, from the "
        "smallest; one seed of each method."
    )
