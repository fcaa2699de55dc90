"""The results page of runs in their folders, with the cost of their training."""

from collections.abc import Container, Sequence
from pathlib import Path

from fewstep.eval.report.page import results_page
from fewstep.eval.report.runs import EvaluatedRun, group_by_method, load_runs
from fewstep.progress import progress_bar
from fewstep.training.cost.step_cost import network_evaluations
from fewstep.training.experiment import rebuild
from fewstep.training.storage.workdir import load_config


def write_page(
    folders: Sequence[Path], out: Path, metric: str = "", ids: Container[str] | None = None
) -> list[EvaluatedRun]:
    """Writes the page of the runs in these folders (eval.report.runs), and returns the runs."""
    groups = group_by_method(load_runs(folders, metric, ids))
    runs = []
    for group in progress_bar(groups.values(), desc="cost of training", silent=len(groups) < 2):
        runs += add_network_evaluations(group)
    data = dict.fromkeys(result["data"] for run in runs for result in run.results.values())
    results_page(out, title=f"Fewstep: {', '.join(data)}", runs=runs)
    return runs


def add_network_evaluations(group: Sequence[EvaluatedRun]) -> list[EvaluatedRun]:
    """The runs of a group, with the network evaluations of their training.

    group: runs that differ only in the seed. The evaluations do not include a teacher's training.
    They stay unknown for runs that this version cannot build.
    """
    config = load_config(group[0].folder)
    try:
        per_image = network_evaluations(config, rebuild(config, str(group[0].folder)))
    except ValueError:
        return list(group)
    return [
        run._replace(
            budget={**run.budget, "network_evaluations": per_image * run.budget["images_seen"]}
        )
        for run in group
    ]
