"""Draws samples from a loaded run: what --mode=sample and `Run.sample` of Python share."""

from collections.abc import Iterator, Sequence
from functools import partial

import jax
import numpy as np

from fewstep.modes.draws import FEW, Draw, many_steps
from fewstep.modes.recorded_run import LoadedRun
from fewstep.objectives.stages import check_sampling_steps
from fewstep.samplers.grids import named_steps
from fewstep.training.cluster.processes import warn
from fewstep.training.experiment import check_guidance
from fewstep.training.generate import (
    STREAM_SEED,
    BatchSampler,
    batch_sampler,
    finish_together,
    generate,
)

LARGEST_SEED = 2**31 - 1


def check_draw(steps: int, seeds: Sequence[int]) -> None:
    """Raises ValueError for a number of sampling steps below 1, and for a seed out of range."""
    if steps < 1:
        raise ValueError(f"--steps={steps} must be 1 or more")
    if min(seeds) < 0:
        raise ValueError(f"--seeds={min(seeds)} must be 0 or more")
    if max(seeds) > LARGEST_SEED:
        raise ValueError(f"--seeds={max(seeds)} is too large; the largest is {LARGEST_SEED}")


def guidance_scale(run: LoadedRun, asked: float | None) -> float:
    """The guidance scale that is asked for, else the run's own. Raises ValueError."""
    scale = run.experiment.objective.guidance_scale if asked is None else asked
    check_guidance(run.experiment, scale)
    return scale


def checked_sampler(run: LoadedRun, steps: int, scale: float) -> BatchSampler:
    """The jitted sampler of a run; warns if its method needs more steps.

    Raises ValueError, before any compute, if the run cannot sample so.
    """
    objective = run.experiment.objective
    if objective.reconstructs:
        raise ValueError(
            f"{run.folder} has trained a codec, which draws no samples; train on its latents with "
            f"--config.codec.weights={run.folder}"
        )
    shape = run.experiment.space.shape
    sampler = batch_sampler(
        objective, shape, run.mesh, seed=STREAM_SEED, steps=steps, guidance_scale=scale
    )
    with named_steps(f"--steps={steps}"):
        check_sampling_steps(objective.stages, run.step, (steps,))
        jax.eval_shape(sampler, run.params, *(np.zeros(run.mesh.size, np.int32),) * 2)
    if steps < FEW and many_steps(objective):
        warn(
            f"{run.config.method} goes from noise to data in tens of sampling steps, and blurs "
            f"samples in {steps}; add --steps={many_steps(objective)}"
        )
    return sampler


def finished_samples(
    run: LoadedRun, sampler: BatchSampler, draw: Draw, batch_size: int
) -> Iterator[np.ndarray]:
    """Yields the finished samples of a draw in batches, [B, ...] as their space stores them.

    batch_size: rows that the devices compute together, also for fewer samples. So one program
    computes every sample, and its bits depend on its seed and label alone. Raises NonFiniteError.
    """
    drawn = generate(sampler, run.params, draw.labels, batch_size, "sampling", draw.seeds)
    return map(partial(finish_together, run.experiment.space.finish), drawn)
