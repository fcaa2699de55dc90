"""Pairs of noise and what a teacher makes of it: made once per run, and kept in its folder."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from data import Pairs
from eval.generate import batch_sampler, cycle_labels, generate_floats, noise
from objectives.base import Params
from training.experiment import Experiment
from training.files import read_npz, write_npz
from training.sharding import everywhere

FILE = "pairs.npz"
# Not the stream of samples: what a generator is trained on is not what it is evaluated on.
SEED, STREAM = 0, "pairs"


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
) -> Pairs:
    """`count` samples of the teacher in `steps` steps, with the noise that each started from.

    Read from the folder's file if it is there. Labels go through the classes in turn. Raises
    ValueError for a count or a number of steps that is not positive, or a file of another count.
    """
    if count < 1 or steps < 1:
        raise ValueError(f"pairs.count={count} and pairs.steps={steps} must be 1 or more")
    path = folder / FILE
    # They are made by all processes together, so either all of them read or all make.
    if everywhere(path.is_file()):
        return load(path, count)
    choices = np.arange(taught.num_classes) if taught.num_classes else np.array([-1])
    labels = cycle_labels(choices, count)
    sample = batch_sampler(
        taught.objective,
        taught.image_shape,
        mesh,
        seed=SEED,
        steps=steps,
        guidance_scale=guidance_scale,
        stream=STREAM,
    )
    made = generate_floats(sample, params, labels, batch_size, "the teacher's pairs")
    starts = partial(noise, SEED, image_shape=taught.image_shape, stream=STREAM)
    eps = jax.jit(starts)(np.arange(count))[0]
    pairs = Pairs(jax.device_get(eps), np.concatenate(list(made)), labels)
    if jax.process_index() == 0:
        write_npz(path, **pairs._asdict())
    return pairs


def load(path: Path, count: int) -> Pairs:
    """Read pairs. Raises ValueError for a file that cannot be read, or of another count."""
    remedy = "delete it to make it again"
    arrays = read_npz(path, remedy)
    if set(arrays) != set(Pairs._fields):
        raise ValueError(f"{path} holds {sorted(arrays)}, which are no pairs; {remedy}")
    pairs = Pairs(**arrays)
    if len(pairs.label) != count:
        raise ValueError(
            f"{path} has {len(pairs.label)} pairs, not pairs.count={count}; delete it to make them "
            "again"
        )
    return pairs
