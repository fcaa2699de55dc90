import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.objectives.stages import (
    ONE_STAGE,
    Stage,
    allowed_sampling_steps,
    begins_stage,
    check_sampling_steps,
    stage_ends,
    stage_index,
    stage_start,
    stage_title,
)

STAGES = (Stage(0, (4,)), Stage(3, (2,)), Stage(5, (1,)))


def test_steps_are_in_the_stage_that_began_last():
    indices, starts, begins = [0, 0, 0, 1, 1, 2, 2], [0, 0, 0, 3, 3, 5, 5], [3, 5]
    assert [stage_index(STAGES, step) for step in range(7)] == indices
    assert [stage_start(STAGES, step) for step in range(7)] == starts
    steps = jnp.arange(7)
    for function, expected in ((stage_index, indices), (stage_start, starts)):
        traced = jax.jit(lambda step, function=function: function(STAGES, step))(steps)
        assert traced.tolist() == expected and traced.dtype == jnp.int32
    assert np.flatnonzero(begins_stage(STAGES, steps)).tolist() == begins
    assert (stage_index(ONE_STAGE, 9), stage_start(ONE_STAGE, 9)) == (0, 0)


def test_a_state_at_a_boundary_is_the_end_of_a_stage():
    asked = (1, 2, 4, 8)
    found = [allowed_sampling_steps(STAGES, done, asked) for done in range(8)]
    assert found == [(4,)] * 4 + [(2,)] * 2 + [(1,)] * 2
    assert allowed_sampling_steps(ONE_STAGE, 5, asked) == asked
    assert stage_title(STAGES, 3) == "stage 1 of 3 (4 sampling steps)"
    assert stage_title(STAGES, 4) == "stage 2 of 3 (2 sampling steps)"
    assert stage_title(STAGES, 6) == "stage 3 of 3 (1 sampling step)"
    assert stage_title((Stage(0), Stage(2)), 3) == "stage 2 of 2"
    assert stage_ends(STAGES, 7) == (3, 5) and stage_ends(STAGES, 5) == (3,)
    assert stage_ends(ONE_STAGE, 7) == ()


def test_a_number_of_steps_of_another_stage_is_refused_by_name():
    check_sampling_steps(STAGES, 4, (1, 2))
    check_sampling_steps(ONE_STAGE, 4, (3,))
    with pytest.raises(ValueError, match=r"4 training .* stage 2 of 3 \(2 sampling .* in 1, 4; "):
        check_sampling_steps(STAGES, 4, (1, 4))
