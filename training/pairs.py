"""Pairs of noise and a teacher's sample from it: generated once per run and kept in its folder.

The file records the fingerprint of the teacher's parameters and how it sampled. A run refuses pairs
that were made in another way.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fewstep.data import Pairs, proportional_labels
from fewstep.objectives.base import Params
from fewstep.training.cluster.processes import true_everywhere
from fewstep.training.experiment import Experiment
from fewstep.training.generate import batch_sampler, generate, initial_noise
from fewstep.training.storage.fingerprint import fingerprint
from fewstep.training.storage.seal import check_array, read_sealed, write_sealed

FILE = "pairs.npz"
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
    made = generate(sample, params, labels, batch_size, "the teacher's pairs")
    starts = partial(initial_noise, SEED, shape=taught.space.shape, stream=STREAM)
    eps = jax.jit(starts)(np.arange(count))[0]
    pairs = Pairs(jax.device_get(eps), np.concatenate(list(made)), labels)
    if jax.process_index() == 0:
        write_sealed(path, source, **pairs._asdict())
    return pairs


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
