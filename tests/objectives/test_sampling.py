"""The frame of the samplers of all methods."""

import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.objectives.sampling import learned_guidance, sample_fn

ROWS = 4
PARAMS, EPS = jnp.float32(3.0), jnp.arange(ROWS, dtype=jnp.float32)
LABELS = {"label": jnp.arange(ROWS)}


def network(params, x, t, s, condition):
    """params for a class, 0 for the null class, plus the guidance scale of the condition."""
    given = condition.get("guidance_scale", jnp.zeros_like(x))
    return jnp.where(condition["label"] >= 0, params, 0.0) + given


def solve(predict, eps, condition, keys, steps):
    return keys + steps * predict(eps, eps, eps, condition)


def sample(steps=2, scale=1.0, **parts):
    sampler = sample_fn(network, solve, **parts)
    return np.asarray(sampler(PARAMS, EPS, LABELS, 10.0 * EPS, steps=steps, guidance_scale=scale))


@pytest.mark.parametrize(("scale", "predicted"), [(1.0, 3.0), (0.0, 0.0), (2.0, 6.0)])
def test_by_default_any_scale_guides_what_a_method_solves_with(scale, predicted):
    for steps in (1, 2):
        np.testing.assert_allclose(sample(steps, scale), 10.0 * EPS + steps * predicted)


def test_a_network_that_has_learned_guidance_is_used_as_it_is_or_given_the_scale():
    alone, several = learned_guidance(1.5), learned_guidance(1.5, (1.0, 4.0))
    np.testing.assert_allclose(sample(scale=1.5, guidance=alone), 10.0 * EPS + 6.0)
    np.testing.assert_allclose(sample(scale=2.0, guidance=several), 10.0 * EPS + 2 * (3.0 + 2.0))
    for scale, guidance in ((2.0, alone), (5.0, several)):
        with pytest.raises(ValueError, match="guidance scale"):
            sample(scale=scale, guidance=guidance)


def test_a_number_of_steps_is_refused_before_anything_else():
    def check_steps(steps):
        if steps != 1:
            raise ValueError(f"not in {steps}")

    with pytest.raises(ValueError, match="not in 2"):
        sample(2, 2.0, guidance=learned_guidance(1.0), check_steps=check_steps)
    assert sample(1, check_steps=check_steps).shape == (ROWS,)
