"""Stages of training: the training step that begins each, and the sampling steps of its network.

Training steps count from 0. The state after n steps belongs to the stage of its last step, n - 1.
At a boundary the state is therefore the end of a stage, and the next step begins the next stage.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from jax import Array

from fewstep.samplers.grids import StepsError


class Stage(NamedTuple):
    """A part of the training. It ends where the next stage starts.

    start: the training step that begins it.
    sampling_steps: numbers of sampling steps that its network is trained for; () allows all those
        of the method.
    """

    start: int
    sampling_steps: tuple[int, ...] = ()


ONE_STAGE = (Stage(0),)


def stage_index(stages: Sequence[Stage], step: Array | int) -> Array | int:
    """The index, from 0, of the stage that contains a training step."""
    return sum(step >= stage.start for stage in stages[1:])


def stage_start(stages: Sequence[Stage], step: Array | int) -> Array | int:
    """The first step of the stage that contains a training step."""
    return sum(
        (step >= late.start) * (late.start - early.start) for early, late in pairwise(stages)
    )


def begins_stage(stages: Sequence[Stage], step: Array) -> Array:
    """Whether a training step begins a stage other than the first."""
    return sum(step == stage.start for stage in stages[1:]) > 0


def stage_ends(stages: Sequence[Stage], steps: int) -> tuple[int, ...]:
    """The numbers of training steps, below `steps`, after which a stage has ended."""
    return tuple(stage.start for stage in stages[1:] if stage.start < steps)


def allowed_sampling_steps(
    stages: Sequence[Stage], done: int, asked: Sequence[int]
) -> tuple[int, ...]:
    """Those of the asked numbers of sampling steps that the network after `done` steps allows."""
    known = stages[stage_index(stages, done - 1)].sampling_steps
    return tuple(steps for steps in asked if not known or steps in known)


def check_sampling_steps(stages: Sequence[Stage], done: int, asked: Sequence[int]) -> None:
    """Raises StepsError if the network after `done` training steps allows none of them."""
    if asked and not allowed_sampling_steps(stages, done, asked):
        raise StepsError(
            f"after {done} training steps this run is in {stage_title(stages, done)}, and cannot "
            f"sample in {', '.join(map(str, asked))}; ask for that number, or choose another "
            "--checkpoint"
        )


def stage_title(stages: Sequence[Stage], done: int) -> str:
    """The stage after `done` training steps, such as "stage 2 of 5 (8 sampling steps)"."""
    index = stage_index(stages, done - 1)
    known = stages[index].sampling_steps
    steps = f" ({', '.join(map(str, known))} sampling step{'s' * (known != (1,))})" if known else ""
    return f"stage {index + 1} of {len(stages)}{steps}"
