"""The end that a network predicts at pure noise is its sample in one step, guidance included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.assembled import CASES, CLASSES, DIMENSION, ROWS, assemble, samples

ASSEMBLED = {name: assemble(name) for name in CASES}
# Its samples take a second-order step, its ends a step of first order.
OTHERWISE = {"genie"}
WITH_END = [
    name
    for name, case in ASSEMBLED.items()
    if case.objective.end_point is not None and name not in OTHERWISE
]
SCALES = (1.0, 2.0, 3.0)


def end(case, scale):
    """The predicted end from the noise of `samples`."""
    eps = jax.random.normal(jax.random.key(4), (ROWS, DIMENSION))
    path, objective = case.model.path, case.objective
    return objective.end_point(
        case.networks[objective.generator],
        path.prior(eps),
        jnp.full(ROWS, path.t_max),
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
