"""Parameters without zeros, so that initialisation hides no term of a network."""

import jax
import numpy as np
import pytest


@pytest.fixture
def random_params():
    """params, seed -> the same tree with normal entries of a size that keeps activations near 1."""

    def draw(params, seed=0):
        generator = np.random.default_rng(seed)

        def draw_leaf(leaf):
            scale = leaf.shape[0] ** -0.5 if len(leaf.shape) > 1 else 0.3
            return (scale * generator.standard_normal(leaf.shape)).astype(np.float32)

        return jax.tree.map(draw_leaf, params)

    return draw
