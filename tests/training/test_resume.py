"""A run of every kind that is killed anywhere and started again ends as if nothing had happened.

Processes and kills are real (tests/training/killed.py). The kinds of state come from the registry
of methods (tests/training/kinds.py).
"""

import json
from functools import partial

import numpy as np
import pytest

from fewstep.training.pace import MEASURED
from fewstep.training.storage.lengths import Length
from tests.training import killed
from tests.training.kinds import ALWAYS, methods_of_kinds, objective_and_kind, turn_of

# A change of the grid, of the target's decay, or of the tangent within the run: in its middle, so
# that "step 6" is the last of a stage, "step 7" the first of the next.
STAGES = {
    "ct": {"objective.curriculum.last": 8},
    "ect": {"objective.stages": 2, "objective.q": 16.0},
    "sct": {"objective.tangent_warmup": 6},
    "scd": {"objective.tangent_warmup": 6},
    "sim": {"objective.fake_score_updates": 3},
    "progressive": {"objective.max_steps": 2, "ema.decays": (0.5,)},
}
# In the order of a run: before its first checkpoint and update of an average; in the middle of an
# epoch of 3.1 batches; while step 4 is being saved, and so half written or complete; in the
# evaluation of step 6, whose newest checkpoint is that of step 4; between two stages; after the
# last.
KILLS = (
    ("step", 1),
    ("step", 3),
    ("saving", 4),
    ("evaluating", 6),
    ("step", 7),
    ("evaluating", 12),
)
# Those of a method whose stages are its objective's own, which are saved and evaluated at their
# ends: just before, at and just after a boundary that is a checkpoint too.
STAGED_KILLS = (
    ("step", 3),
    ("step", 6),
    ("saving", 6),
    ("evaluating", 6),
    ("step", 7),
    ("step", 8),
    ("evaluating", 12),
)


def rows(folder):
    """Logged losses and evaluations by step, without the columns that measure the machine."""
    found = {}
    for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        told = {name: value for name, value in row.items() if name not in MEASURED}
        found.setdefault(row["step"], {}).update(told)
    return found


@pytest.mark.parametrize("method", methods_of_kinds())
def test_killed_at_places_in_turn_and_started_again(method, tmp_path):
    fields = STAGES.get(method, {})
    killed.run_process(tmp_path / "whole", method, fields)
    kills = STAGED_KILLS if objective_and_kind(method)[1].staged else KILLS
    for place, at in sorted(turn_of(kills, 4 if method in ALWAYS else 2), key=kills.index):
        killed.run_process(tmp_path / "cut", method, fields, place, at, expect=-9)
    killed.run_process(tmp_path / "cut", method, fields)
    whole, cut = killed.final_state(tmp_path / "whole"), killed.final_state(tmp_path / "cut")
    assert int(cut.step) == killed.STEPS
    assert killed.have_same_bits(whole, cut)
    assert rows(tmp_path / "whole") == rows(tmp_path / "cut")
    networks, first = whole.networks[next(iter(whole.networks))], killed.affine_network().init(None)
    assert not killed.have_same_bits(networks, first)


@pytest.mark.in_turn("how", 3)
@pytest.mark.parametrize("how", ["extend", "hold", "rewarm"])
def test_a_continued_run_is_killed_and_started_again(how, tmp_path):
    fields = {"optimizer.schedule": "cosine", "optimizer.warmup_steps": 1}
    lengths = (Length(0, 6), Length(6, killed.STEPS, how, 0.5))
    killed.run_process(tmp_path / "whole", "edm", fields, lengths=lengths)
    killed.run_process(tmp_path / "cut", "edm", fields, steps=6)
    killed.run_process(tmp_path / "cut", "edm", fields, "step", 10, expect=-9, lengths=lengths)
    killed.run_process(tmp_path / "cut", "edm", fields, lengths=lengths)
    whole, cut = killed.final_state(tmp_path / "whole"), killed.final_state(tmp_path / "cut")
    assert killed.have_same_bits(whole, cut)
    rates = {step: row["learning_rate"] for step, row in rows(tmp_path / "cut").items()}
    last = {"extend": 0.5 * (1 + np.cos(np.pi * 10 / 11)), "hold": 0.5, "rewarm": 0.04775}[how]
    assert rates[12] == pytest.approx(1e-3 * last, rel=1e-3)


@pytest.mark.in_turn("dispatch", 2)
@pytest.mark.parametrize(
    "dispatch", [2, 3]
)  # 3 does not divide the 4 and 6 at which something is due
def test_several_steps_at_once_are_the_same_steps(tmp_path, dispatch):
    run = partial(killed.run_process, newer_fusions=True)
    run(tmp_path / "one", "sim", STAGES["sim"])
    run(tmp_path / "at_once", "sim", STAGES["sim"], "step", 11, dispatch=dispatch, expect=-9)
    run(tmp_path / "at_once", "sim", STAGES["sim"], dispatch=dispatch)
    one, at_once = killed.final_state(tmp_path / "one"), killed.final_state(tmp_path / "at_once")
    assert killed.have_same_bits(one, at_once)
    assert rows(tmp_path / "one") == rows(tmp_path / "at_once")
