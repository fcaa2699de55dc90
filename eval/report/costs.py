"""What runs cost: their training, alone and with their teachers, and their samples."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from fewstep.eval.report.runs import EvaluatedRun, identifying_fields
from fewstep.progress import progress_bar
from fewstep.training.cost.sampling_cost import evaluations_per_sample
from fewstep.training.cost.step_cost import network_evaluations, training_seconds
from fewstep.training.experiment import rebuild, with_solver
from fewstep.training.location import find_teacher
from fewstep.training.metrics import LOG, read_rows
from fewstep.training.storage.identity import as_dict, flatten_fields, read_identity
from fewstep.training.storage.workdir import is_run, load_config

# "images_seen", "network_evaluations" and "seconds"; None if unknown
Cost = Mapping[str, float | None]
UNKNOWN: Cost = dict.fromkeys(("images_seen", "network_evaluations", "seconds"))


def add_costs(runs: Sequence[EvaluatedRun]) -> list[EvaluatedRun]:
    """The runs with the network evaluations of training and samples, and with teachers' costs.

    What this version cannot build stays unknown.
    """
    counted = EvaluationCounts()
    costed = []
    for run in progress_bar(runs, desc="cost of training", silent=len(runs) < 2):
        config, folder = load_config(run.folder), str(run.folder)
        budget = counted.with_evaluations(run.budget, config, folder)
        of_teacher = teacher_cost(config, run.folder, counted)
        costed.append(
            run._replace(
                budget=budget,
                total=None if of_teacher is None else add_cost(budget, of_teacher),
                evaluations=counted.of_samples(run, config),
            )
        )
    return costed


def teacher_cost(config: ConfigDict, run: Path, counted: "EvaluationCounts") -> Cost | None:
    """What the teacher of a run cost, with its own teachers; None if the run has no teacher."""
    if not config.teacher:
        return None
    folder, step = find_teacher(run, config.teacher)
    if not is_run(folder):
        return UNKNOWN
    taught, identity = load_config(folder), read_identity(folder)
    if identity is not None and identity.imported:  # trained by others, at an unknown cost
        return UNKNOWN
    own = counted.with_evaluations(
        training_cost(folder, taught, taught.steps if step is None else step), taught, str(folder)
    )
    before = teacher_cost(taught, folder, counted)
    return own if before is None else add_cost(own, before)


def training_cost(folder: Path, config: ConfigDict, step: int) -> Cost:
    """What a run cost up to a training step, without network evaluations."""
    rows = read_rows(folder / LOG)
    return UNKNOWN | {
        "images_seen": step * config.batch_size,
        "seconds": training_seconds(rows, step, config.batch_size),
    }


def add_cost(first: Cost, second: Cost) -> Cost:
    """The sum of two costs; a part that one of them does not know is unknown."""
    pairs = {name: (first[name], second[name]) for name in UNKNOWN}
    return {name: None if None in pair else sum(pair) for name, pair in pairs.items()}


class EvaluationCounts:
    """Counts network evaluations, once for all runs that differ only in the seed."""

    def __init__(self) -> None:
        self.of_training: dict[str, float | None] = {}
        self.of_sampling: dict[str, Mapping[int, int]] = {}

    def with_evaluations(self, cost: Cost, config: ConfigDict, run: str) -> Cost:
        """The cost of a run's training with its network evaluations."""
        key = alike(config)
        if key not in self.of_training:
            try:
                self.of_training[key] = network_evaluations(config, rebuild(config, run))
            except ValueError:
                self.of_training[key] = None
        per_image, images = self.of_training[key], cost["images_seen"]
        known = per_image is not None and images is not None
        return {**cost, "network_evaluations": per_image * images if known else None}

    def of_samples(self, run: EvaluatedRun, config: ConfigDict) -> Mapping[int, int]:
        """The network evaluations of a sample by number of sampling steps; {} if unknown."""
        steps, scale = sorted(run.results), run.sampling["guidance_scale"]
        sampler = run.sampling["sampler"]
        key = f"{alike(config)} {steps} {scale} {sampler}"
        if key not in self.of_sampling:
            try:
                if "solver" in config.objective:
                    config = with_solver(config, run.name, sampler)
                rebuild(config, run.name)
                self.of_sampling[key] = evaluations_per_sample(config, steps, scale)
            except ValueError:
                self.of_sampling[key] = {}
        return self.of_sampling[key]


def alike(config: ConfigDict) -> str:
    """What identifies a run but for its seed and the place of its teacher, as text."""
    fields = identifying_fields(flatten_fields(as_dict(config)))
    return json.dumps({**fields, "teacher": bool(config.teacher)}, sort_keys=True)
