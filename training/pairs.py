"""Pairs of noise and a teacher's sample from it: generated once per run and kept in its folder.

The devices of all processes make them together, in parts that are kept, so that a run which is
killed goes on. The file records the fingerprint of the teacher's parameters and how it sampled. A
run refuses pairs that were made in another way.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fewstep.data import Pairs, proportional_labels
from fewstep.objectives.base import Params
from fewstep.objectives.stages import check_sampling_steps
from fewstep.training.cluster.processes import meet, true_everywhere
from fewstep.training.experiment import Experiment
from fewstep.training.generate import batch_sampler, generate, initial_noise
from fewstep.training.storage.fingerprint import fingerprint
from fewstep.training.storage.seal import check_array, read_sealed, write_sealed

FILE = "pairs.npz"
# Folder of the pairs that are made so far, and pairs in each of its files.
PARTS, PART = "pairs", 4096
# Not the stream of evaluations: a generator is not evaluated on noise that it is trained on.
SEED, STREAM = 0, "pairs"
REMEDY = "delete it to make them again"


def teacher_pairs(
    folder: Path,
    taught: Experiment,
    params: Params,
    mesh: Mesh,
    *,
    count: int,
    steps: int,
    guidance_scale: float,
    batch_size: int,
    label_counts: Sequence[int],
) -> Pairs:
    """`count` samples of the teacher in `steps` steps, each with the noise that it starts from.

    Reads the folder's file if there is one, else writes it. label_counts: counts of the classes, in
    whose shares labels are drawn. Raises ValueError if count or steps is below 1, or the file holds
    other pairs.
    """
    if count < 1 or steps < 1:
        raise ValueError(f"pairs.count={count} and pairs.steps={steps} must be 1 or more")
    path = folder / FILE
    labels = proportional_labels(label_counts, count)
    source = {
        "parameters": fingerprint(params),
        "pairs.count": count,
        "pairs.steps": steps,
        "guidance_scale": float(guidance_scale),
        "image_shape": taught.space.shape,
        "num_classes": taught.num_classes,
        "seed": SEED,
    }
    # All processes generate pairs together, so either all of them read the file or none does.
    if true_everywhere(path.is_file()):
        return load_pairs(path, source, labels)
    sample = batch_sampler(
        taught.objective,
        taught.space.shape,
        mesh,
        seed=SEED,
        steps=steps,
        guidance_scale=guidance_scale,
        stream=STREAM,
    )
    starts = jax.jit(partial(initial_noise, SEED, shape=taught.space.shape, stream=STREAM))

    def make(rows: np.ndarray, description: str) -> Pairs:
        made = generate(sample, params, labels[rows], batch_size, description, rows)
        x_0 = np.concatenate(list(made))
        return Pairs(jax.device_get(starts(rows)[0]), x_0, labels[rows])

    pairs = make_in_parts(folder / PARTS, source, labels, make)
    meet()  # all have read the parts
    if jax.process_index() == 0:
        write_sealed(path, source, **pairs._asdict())
        shutil.rmtree(folder / PARTS)
    return pairs


def check_sampler(
    run: str, teacher: Experiment, abstract: Params, trained: int, steps: int, scale: float
) -> None:
    """Raises ValueError if a teacher cannot make pairs in these steps at this guidance scale.

    run: its name in the message. abstract: shapes of its parameters. trained: its training steps.
    """
    objective, shape = teacher.objective, teacher.space.shape
    eps = jax.ShapeDtypeStruct((1, *shape), np.float32)
    condition = {"label": jax.ShapeDtypeStruct((1,), np.int32)}
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    try:
        check_sampling_steps(objective.stages, trained, (steps,))
        sample = partial(objective.sample, steps=steps, guidance_scale=scale)
        jax.eval_shape(sample, abstract, eps, condition, keys)
    except ValueError as error:
        raise ValueError(
            f"pairs.steps={steps} or objective.guidance_scale={scale:g} is not possible with "
            f"teacher={run}: {error}"
        ) from error


def make_in_parts(
    folder: Path,
    source: Mapping[str, Any],
    labels: np.ndarray,
    make: Callable[[np.ndarray, str], Pairs],
) -> Pairs:
    """Pairs made part by part, each kept in a file of `folder` until all are made.

    So a run that is killed makes only the rest when it starts again. make: (numbers of pairs,
    description) -> pairs. Raises ValueError as `load_pairs` does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    starts, parts = range(0, len(labels), PART), []
    for number, first in enumerate(starts, start=1):
        rows = np.arange(first, min(first + PART, len(labels)))
        path, own = folder / f"{first}.npz", {**source, "first": first}
        if true_everywhere(path.is_file()):
            part = load_pairs(path, own, labels[rows])
        else:
            part = make(rows, f"the teacher's pairs, part {number} of {len(starts)}")
            if jax.process_index() == 0:
                write_sealed(path, own, **part._asdict())
        parts.append(part)
    return Pairs(*map(np.concatenate, zip(*parts, strict=True)))


def load_pairs(path: Path, source: Mapping[str, Any], labels: np.ndarray) -> Pairs:
    """Read pairs that were made from `source`.

    labels: [count], the labels that they must have. Raises ValueError if the file is damaged or
    holds other pairs.
    """
    arrays = read_sealed(path, source, REMEDY)
    if set(arrays) != set(Pairs._fields):
        raise ValueError(f"{path} holds {sorted(arrays)}, which are not pairs; {REMEDY}")
    pairs = Pairs(**arrays)
    count, shape = len(labels), tuple(source["image_shape"])
    if pairs.label.ndim and len(pairs.label) != count:
        raise ValueError(f"{path} has {len(pairs.label)} pairs, not pairs.count={count}; {REMEDY}")
    for name in ("eps", "x_0"):
        check_array(path, name, arrays[name], np.float32, (count, *shape), REMEDY)
    check_array(path, "label", pairs.label, np.int32, (count,), REMEDY)
    if not np.array_equal(pairs.label, labels):
        raise ValueError(f"{path} has labels that differ from data.label_shares; {REMEDY}")
    return pairs
