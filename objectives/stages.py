"""Stages of training: in which step each begins, and in how many steps its network samples.

Steps are counted from 0. The state after n steps belongs to the stage of its last one, n - 1: at a
boundary it is the end of a stage, and the step that is taken from it begins the next.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from jax import Array


class Stage(NamedTuple):
    """A part of the training, up to the start of the next.

    start: the step that begins it. sampling_steps: the numbers of sampling steps that its network
    is trained for, () for all that the method samples in.
    """

    start: int
    sampling_steps: tuple[int, ...] = ()


ONE_STAGE = (Stage(0),)


def stage_index(stages: Sequence[Stage], step: Array | int) -> Array | int:
    """The number of the stage that a step is in, from 0."""
    return sum(step >= stage.start for stage in stages[1:])


def stage_start(stages: Sequence[Stage], step: Array | int) -> Array | int:
    """The step that began the stage of a step."""
    return sum(
        (step >= late.start) * (late.start - early.start) for early, late in pairwise(stages)
    )


def begins_stage(stages: Sequence[Stage], step: Array) -> Array:
    """Whether a step begins a stage, not counting the first."""
    return sum(step == stage.start for stage in stages[1:]) > 0


def stage_ends(stages: Sequence[Stage], steps: int) -> tuple[int, ...]:
    """The numbers of steps, below `steps`, after which a stage has ended."""
    return tuple(stage.start for stage in stages[1:] if stage.start < steps)


def allowed_sampling_steps(
    stages: Sequence[Stage], done: int, asked: Sequence[int]
) -> tuple[int, ...]:
    """The numbers of sampling steps, of those asked, that the network after `done` steps is for."""
    known = stages[stage_index(stages, done - 1)].sampling_steps
    return tuple(steps for steps in asked if not known or steps in known)


def check_sampling_steps(stages: Sequence[Stage], done: int, asked: Sequence[int]) -> None:
    """Raises ValueError if the network after `done` steps samples in none of the numbers asked."""
    if asked and not allowed_sampling_steps(stages, done, asked):
        raise ValueError(
            f"after {done} training steps this run is in {stage_title(stages, done)}, and cannot "
            f"sample in {', '.join(map(str, asked))}; ask for that number, or choose another "
            "--checkpoint"
        )


def stage_title(stages: Sequence[Stage], done: int) -> str:
    """The stage after `done` steps, such as "stage 2 of 5 (8 sampling steps)"."""
    index = stage_index(stages, done - 1)
    known = stages[index].sampling_steps
    steps = f" ({', '.join(map(str, known))} sampling step{'s' * (known != (1,))})" if known else ""
    return f"stage {index + 1} of {len(stages)}{steps}"
