"""Modes of points whose density has no exact samples."""

import numpy as np

from fewstep.densities.lattice import phi4
from fewstep.densities.posteriors import cancer
from fewstep.eval.points import modes_of_batches

FIELD = phi4("field", 4, 0.3, 0.02)
NOISE = np.random.default_rng(0).standard_normal((100, 16))


def test_a_lost_phase_is_half_of_the_weight():
    batches = [NOISE[:60] + 2.0, NOISE[60:] + 2.0]
    found = modes_of_batches(batches, FIELD)
    assert found == {"mode_entropy": 0.0, "mode_distance": 0.5}
    both = modes_of_batches(
        [batch * np.sign(batch.mean(1, keepdims=True)) for batch in batches]
        + [-batch for batch in batches],
        FIELD,
    )
    assert both["mode_distance"] == 0.0


def test_of_unknown_modes_nothing_is_said_and_all_batches_are_made():
    made = iter([NOISE, NOISE])
    assert modes_of_batches(made, cancer("cancer")) == {}
    assert list(made) == []
