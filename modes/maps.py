"""--mode=evaluate --maps: what map from noise to data a network has learned (eval/maps.py)."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from fewstep.data import proportional_labels
from fewstep.eval.maps import MADE, agreement, map_numbers, map_rows, mapper
from fewstep.eval.report.maps import FOLDER, summary, write_maps
from fewstep.eval.sampling import guidance_scale
from fewstep.files import check_writable
from fewstep.modes.recorded_run import LoadedRun, given_place, load_run
from fewstep.modes.request import Request, require_workdir
from fewstep.modes.student import config_in_place_of
from fewstep.objectives.stages import allowed_sampling_steps, check_sampling_steps
from fewstep.samplers.grids import named_steps
from fewstep.training.experiment import check_guidance
from fewstep.training.generate import batch_sampler, map_batches
from fewstep.training.location import find_teacher, parse_location

FEWEST = 2  # samples of a label: each is compared with another
Rows = Mapping[str, np.ndarray]


def measure_maps(request: Request) -> None:
    """Measure a run's map beside its teacher's, or that of --teacher, and that of --beside.

    Writes numbers as JSON, and curves and predicted ends as pictures, to --out, by default
    WORKDIR/maps. Raises ValueError, before any compute, without a teacher, and for a run that has
    other examples.
    """
    folder = request.out or require_workdir(request) / FOLDER
    check_writable(folder, "choose another folder by --out=FOLDER")
    run = load_run(request)
    run.config.evaluate = config_in_place_of(run.config, request).evaluate
    scale = guidance_scale(run.experiment, run.config)
    teacher = load_map_teacher(request, run)
    others = [load_other(request.beside)] if request.beside else []
    for name, other in (("teacher", teacher), *(("beside", other) for other in others)):
        check_same_examples(name, run, other)
        check_guidance(other.experiment, scale)
    check_guidance(run.experiment, scale)
    labels = equal_labels(run)
    rows = compute_rows(run, teacher, scale, labels)
    numbers = map_numbers(rows, labels)
    for other in others:
        made = compute_samples(other, run, scale, labels)
        numbers["beside"] = agreement(rows[MADE], made, labels)
        numbers["compared"] = describe(other)
    result = {
        "method": run.config.method,
        "step": run.step,
        "seed": run.config.seed,
        "guidance_scale": scale,
        "sampling_steps": fewest_steps(run),
        "samples": len(labels),
        "teacher": describe(teacher),
        **numbers,
    }
    if jax.process_index() == 0:
        folder.mkdir(exist_ok=True, parents=request.out is not None)
        write_maps(folder, result, rows, run.experiment.space)
        print(summary(result), flush=True)


def describe(run: LoadedRun) -> dict[str, Any]:
    """What a result says about another run."""
    return {"run": str(run.folder), "method": run.config.method, "step": run.step}


def load_other(place: str) -> LoadedRun:
    """The run at WORKDIR[@STEP]."""
    location = parse_location(place)
    return load_run(Request(workdir=location.folder, checkpoint=location.step))


def load_map_teacher(request: Request, run: LoadedRun) -> LoadedRun:
    """The denoiser of --teacher, else of the run. Raises ValueError for none, or no denoiser."""
    asked = request.teacher or given_place(request, "teacher")
    if not asked and run.config.teacher:
        asked = str(find_teacher(run.folder, run.config.teacher))
    if not asked:
        raise ValueError(
            f"--maps follows the trajectories of a teacher, and {run.folder} has none; name a run "
            "of flow_matching, edm or another denoiser by --teacher=WORKDIR"
        )
    teacher = load_other(asked)
    if not teacher.experiment.objective.denoises:
        raise ValueError(
            f"--teacher={asked} was trained by {teacher.config.method}, which has no trajectories; "
            "name a run of flow_matching, edm or another denoiser"
        )
    return teacher


def check_same_examples(flag: str, run: LoadedRun, other: LoadedRun) -> None:
    """Raises ValueError unless two runs have examples of one shape and the same classes."""
    own, its = run.experiment, other.experiment
    pairs = {
        "examples of": (its.space.shape, own.space.shape),
        "data.num_classes": (its.num_classes, own.num_classes),
    }
    found = [
        f"{name} {there}, not {here}" for name, (there, here) in pairs.items() if there != here
    ]
    if found:
        raise ValueError(
            f"--{flag}={other.folder} has other examples than {run.folder}: {'; '.join(found)}"
        )


def fewest_steps(run: LoadedRun) -> int:
    """The fewest of evaluate.steps that the run samples in; its map from noise to data."""
    stages, asked = run.experiment.objective.stages, run.config.evaluate.steps or (1,)
    with named_steps(f"evaluate.steps={tuple(asked)}"):
        check_sampling_steps(stages, run.step, asked)
    return min(allowed_sampling_steps(stages, run.step, asked))


def guided_channels(run: LoadedRun) -> int | None:
    """How many leading channels the run's samples are guided in; None for all."""
    return run.config.objective.get("guided_channels")


def equal_labels(run: LoadedRun) -> np.ndarray:
    """The labels of evaluate.num_samples samples, all classes in equal shares: [N].

    There are more if the classes would have fewer than FEWEST each.
    """
    classes = run.experiment.num_classes
    samples = max(run.config.evaluate.num_samples, FEWEST * max(classes, 1))
    return proportional_labels((1,) * classes, samples)


def compute_rows(run: LoadedRun, teacher: LoadedRun, scale: float, labels: np.ndarray) -> Rows:
    """The rows of eval.maps for samples of the noise of the run's evaluations."""
    own = mapper(run.experiment, fewest_steps(run), scale, guided_channels(run))
    taught = mapper(teacher.experiment, 1, scale, guided_channels(teacher))
    make = partial(map_rows, own, taught, run.experiment.space.shape, run.config.seed)
    return joined(run, jax.jit(make), (run.params, teacher.params), labels)


def compute_samples(
    other: LoadedRun, run: LoadedRun, scale: float, labels: np.ndarray
) -> np.ndarray:
    """Another run's samples of the same noise, in its own fewest steps."""
    objective, shape = other.experiment.objective, other.experiment.space.shape
    sampler = batch_sampler(
        objective,
        shape,
        other.mesh,
        seed=run.config.seed,
        steps=fewest_steps(other),
        guidance_scale=scale,
    )
    return joined(run, sampler, other.params, labels)


def joined(run: LoadedRun, make: Any, params: Any, labels: np.ndarray) -> Any:
    """What a function makes of all rows, in batches, joined on the host."""
    size = min(run.config.evaluate.batch_size, len(labels))
    batches: Sequence[Any] = [*map_batches(make, params, labels, size, "maps")]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)
