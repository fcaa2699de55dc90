"""The end that a network predicts at pure noise is its sample in one step, guidance included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.assembled import CASES, CLASSES, DIMENSION, ROWS, assemble, samples
from tests.objectives.recorded import Record

ASSEMBLED = {name: assemble(name) for name in CASES}
# Its samples take a second-order step, its ends a step of first order.
OTHERWISE = {"genie"}
WITH_END = [
    name
    for name, case in ASSEMBLED.items()
    if case.objective.end_point is not None and name not in OTHERWISE
]
# Their ends take a step for each bit of the time.
IN_JUMPS = ("shortcut", "scds")
SCALES = (1.0, 2.0, 3.0)


def end(case, scale, at=1.0, **more):
    """The predicted end from the noise of `samples`, at a share of the way to t_max.

    more: entries of the parameters.
    """
    eps = jax.random.normal(jax.random.key(4), (ROWS, DIMENSION))
    path, objective = case.model.path, case.objective
    return objective.end_point(
        {**case.networks[objective.generator], **more},
        path.prior(eps),
        jnp.full(ROWS, path.t_min + at * (path.t_max - path.t_min)),
        {"label": jnp.arange(ROWS) % CLASSES},
        guidance_scale=scale,
    )


@pytest.mark.parametrize("name", WITH_END)
def test_the_end_at_pure_noise_is_the_sample_in_one_step(name):
    case, possible = ASSEMBLED[name], 0
    params = case.networks[case.objective.generator]
    for scale in SCALES:
        try:
            sampled = samples(case.objective, params, 1, scale=scale)
        except ValueError as error:
            assert "guidance scale" in str(error)
            with pytest.raises(ValueError, match="guidance scale"):
                end(case, scale)
            continue
        possible += 1
        # On `ve`, samples end at the noise of t_min or without any.
        np.testing.assert_allclose(end(case, scale), sampled, atol=0.01)
    assert possible


@pytest.mark.parametrize(
    "name", [name for name in (*WITH_END, *OTHERWISE) if CASES[name][0] not in IN_JUMPS]
)
def test_an_end_is_predicted_at_the_time_of_its_point(name):
    record = Record()
    case = assemble(name, record.record_network)
    record.names, path = [case.objective.generator], case.model.path
    end(case, case.objective.guidance_scale, at=0.4, who=jnp.float32(0))
    jax.effects_barrier()
    (call,) = record.calls.values()
    time = path.clock(jnp.float32(path.t_min + 0.4 * (path.t_max - path.t_min)))
    np.testing.assert_allclose(call.t, np.full(len(call.t), time), rtol=1e-5)


def test_the_end_of_genie_is_guided():
    one, other = (end(assemble("genie", guidance_scale=scale), scale) for scale in (1.0, 2.0))
    assert np.abs(one - other).max() > 0.01
