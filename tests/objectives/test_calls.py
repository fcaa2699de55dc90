"""The network calls and random draws of every objective in one training step.

A network that records its calls replaces each network.
"""

from functools import lru_cache
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.training.trees import leaves_by_path
from tests.objectives.assembled import (
    CASES,
    CLASSES,
    ONE_STEP,
    ROWS,
    assemble,
    field_names,
    field_value,
    samples,
    unroll_scan,
    without_checkpoint,
)
from tests.objectives.recorded import Record, take_step

# phase -> calls in it, "NETWORK MODE LABELS". The phase is "share" or the player whose loss it is.
# MODE: "trains" with dropout, "rests" without. LABELS: "kept", "dropped" at the rate of the field,
# "null" for none, "guided" with a null row for every row, "guided in part" for some, "guided
# dropped" for both, "of pairs".
CALLS = {
    "denoising": {"network": ["network trains dropped"]},
    # The target makes the two half steps of the bootstrap rows.
    "shortcut": {"network": ["target rests guided in part"] * 2 + ["network trains dropped"]},
    "unguided shortcut": {"network": ["target rests kept"] * 2 + ["network trains dropped"]},
    # The target draws the same mask as the network: see SAME_MASK.
    "consistency_distillation": {
        "network": ["teacher rests guided", "network trains kept", "target trains kept"]
    },
    "plain distillation": {
        "network": ["teacher rests guided", "network trains kept", "network trains kept"]
    },
    "consistency_training": {"network": ["network trains kept", "target trains kept"]},
    "training without target": {"network": ["network trains kept", "network trains kept"]},
    "consistency_tuning": {"network": ["network trains kept", "network trains kept"]},
    "continuous_training": {"network": ["network trains kept"]},
    "continuous_distillation": {"network": ["teacher rests guided", "network trains kept"]},
    "plain continuous distillation": {"network": ["teacher rests kept", "network trains kept"]},
    # After the first stage, the only one with a guided teacher.
    "progressive": {"network": ["teacher rests kept"] * 2 + ["network trains kept"]},
    "taught mean flow": {
        # Guided, with the labels that were dropped for the network.
        "network": ["teacher rests guided dropped"] + ["network trains dropped"] * 2
    },
    # Guidance in one call, then as above.
    "improved_mean_flow": {"network": ["network rests guided"] + ["network trains dropped"] * 2},
    # After the first stage.
    "tract": {"network": ["teacher rests kept", "target rests kept", "network trains kept"]},
    # A loop of the solver's steps. The jumps from t and u share a mask.
    "consistency_trajectory": {
        "network": ["teacher rests guided"]
        + ["network trains kept"] * 3
        + ["target rests kept"] * 2
    },
    # The start of the teacher's step, the step, and both sides at the noise end.
    "boot": {
        "network": ["network rests kept"]
        + ["network trains kept"] * 2
        + ["teacher rests guided"] * 2
    },
    # Loops of the solver's steps to each time; then all times together.
    "dsno": {"network": ["teacher rests guided"] * 4 + ["network trains kept"]},
    "moment_matching": {
        "share": ["network trains kept"],
        "fake_score": ["fake_score trains kept", "teacher rests guided"],
        "network": ["fake_score rests kept", "teacher rests guided", "teacher rests null"],
    },
    "parameter_matching": {
        "share": ["network trains kept"],
        "network": ["teacher rests kept"] * 4,
    },
    "progressive of every scale": {"network": ["teacher rests kept"] * 2 + ["network trains kept"]},
    "shortcut of every scale": {
        "network": ["target rests guided in part"] * 2 + ["network trains dropped"]
    },
    "guidance_distillation": {
        "network": ["teacher rests guided dropped", "network trains dropped"]
    },
    # Output and features, then the derivative.
    "genie": {"network": ["network rests guided dropped"] * 2},
    "direct": {"network": ["network trains of pairs"]},
    # A path is a loop.
    "dis": {"network": ["network trains kept"]},
    "dds": {"network": ["network trains kept"]},
    # A path is a loop; then two half steps, and the step that learns from them.
    "scds": {
        "network": ["network trains kept"] + ["target rests kept"] * 2 + ["network trains kept"]
    },
    "reflow": {"network": ["network trains of pairs"]},
    # A rollout is a loop, which calls the network once as it is traced.
    "live_reflow": {"network": ["target rests guided", "network trains dropped"]},
    "live reflow of itself": {"network": ["network rests guided", "network trains dropped"]},
    # Guidance, flow rows, and rows with an interval.
    "mean_flow": {
        "network": ["network rests null", "network rests kept"] + ["network trains dropped"] * 2
    },
    "distribution_matching": {
        "share": ["generator trains kept"],
        "fake_score": ["fake_score trains kept"],
        # The scores are constants for the generator. Its own call uses the noise of the pairs.
        "generator": [
            "fake_score rests kept",
            "teacher rests guided",
            "teacher rests null",
            "generator trains of pairs",
        ],
    },
    "joint matching": {
        "share": ["generator trains kept", "fake_score trains kept"],
        "fake_score": [],
        "generator": ["teacher rests guided", "teacher rests null"],
    },
    "matching without fake score": {
        "share": ["generator trains kept"],
        "generator": ["teacher rests guided", "teacher rests null", "generator trains of pairs"],
    },
}
# Cases that compare two evaluations under one dropout mask.
SAME_MASK = {
    "consistency_distillation",
    "plain distillation",
    "consistency_training",
    "training without target",
    "consistency_tuning",
    "consistency_trajectory",
}
# Objectives whose network reads an earlier time.
SHORTCUTS = ("shortcut", "shortcut of every scale", "unguided shortcut")
LIVE = ("live_reflow", "live reflow of itself")
SECOND_TIMES = (
    *SHORTCUTS,
    *LIVE,
    "mean_flow",
    "taught mean flow",
    "improved_mean_flow",
    "consistency_trajectory",
    "boot",
    "dsno",
    "scds",
)
# Objectives whose losses treat the two halves of a batch apart.
HALVED = ("parameter_matching",)
# (phase, network) -> the time sampler that draws the times of its calls.
TIMES = {
    "denoising": {("network", "network"): "time_sampler"},
    "shortcut": {("network", "network"): "time_sampler"},
    "shortcut of every scale": {("network", "network"): "time_sampler"},
    "unguided shortcut": {("network", "network"): "time_sampler"},
    "guidance_distillation": {
        ("network", "network"): "time_sampler",
        ("network", "teacher"): "time_sampler",
    },
    "genie": {("network", "network"): "time_sampler"},
    "reflow": {("network", "network"): "time_sampler"},
    "live_reflow": {("network", "network"): "time_sampler"},
    "consistency_tuning": {("network", "network"): "time_sampler"},
    "continuous_training": {("network", "network"): "time_sampler"},
    "continuous_distillation": {
        ("network", "network"): "time_sampler",
        ("network", "teacher"): "time_sampler",
    },
    "plain continuous distillation": {
        ("network", "network"): "time_sampler",
        ("network", "teacher"): "time_sampler",
    },
    "distribution_matching": {
        ("fake_score", "fake_score"): "fake_time_sampler",
        ("generator", "fake_score"): "time_sampler",
        ("generator", "teacher"): "time_sampler",
    },
    "joint matching": {
        ("share", "fake_score"): "time_sampler",
        ("generator", "teacher"): "time_sampler",
    },
    "matching without fake score": {("generator", "teacher"): "time_sampler"},
}


@pytest.fixture(scope="module")
def steps():
    """case -> its recorded step, computed once."""
    with pytest.MonkeyPatch.context() as patched:
        yield lru_cache(lambda name: take_step(name, patched))


def label_treatment(call, batch, every=1):
    """The labels of a call compared with those of the batch, in the words of CALLS."""
    pairs = batch.get("pairs", {"label": None})["label"]
    kept = batch.get("label", pairs)
    rest = np.delete(kept, np.s_[::every])
    if "label" in batch and np.array_equal(
        call.label, np.repeat(kept, len(call.label) // len(kept))
    ):
        return "kept"
    for labels, word in ((batch.get("label"), "kept"), (pairs, "of pairs")):
        for own in () if labels is None else (labels, labels[::every], rest):
            if not len(own):
                continue
            extra = call.label[len(own) :]
            if len(extra) >= 0 and np.array_equal(call.label[: len(own)], own) and all(extra == -1):
                share = len(extra) / len(own)
                return {0.0: word, 1.0: "guided"}.get(share, "guided in part")
    if all(call.label == -1):
        return "null"
    half, null = np.split(call.label, 2) if len(call.label) == 2 * len(kept) else ((), ())
    if len(half) and all(null == -1) and np.all((half == kept) | (half == -1)):
        return "guided dropped"
    for own in (batch["label"], batch["label"][::every], rest):
        if len(own) == len(call.label) and np.all((call.label == own) | (call.label == -1)):
            return "dropped"
    return "other"


def row_period(name):
    """Rows per row of the smaller part, or 1 for a case whose rows are all alike."""
    if name in HALVED:
        return 2
    for field in ("bootstrap_fraction", "interval_fraction", "live_fraction"):
        if field in field_names(name):
            return round(1 / field_value(name, field))
    return 1


def test_every_objective_has_its_calls_here():
    assert set(CALLS) == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_networks_are_called_in_their_mode_with_their_labels(name, steps):
    step = steps(name)
    found = {phase: [] for phase in CALLS[name]}
    for call in step.calls:
        labels = label_treatment(call, step.batch, row_period(name))
        found[call.phase].append(f"{call.who} {call.mode} {labels}")
    assert {p: sorted(c) for p, c in found.items()} == {
        p: sorted(c) for p, c in CALLS[name].items()
    }
    # A call has a key exactly if it has dropout; two sides that are compared have one mask.
    assert all(bool(call.key) == call.train for call in step.calls)
    keys = [call.key for call in step.calls if call.train]
    assert len(set(keys)) == len(keys) - (name in SAME_MASK)
    # The step evaluates all networks of the objective, and no others, but those that only followers
    # read.
    assert {call.who for call in step.calls} == set(step.case.networks) - {"average"}


@pytest.mark.in_turn("name", 3)
@pytest.mark.parametrize("name", [name for name in CASES if "label_dropout" in field_names(name)])
def test_labels_are_dropped_at_the_rate_of_the_field(name, steps):
    step = steps(name)
    # A network that is not trained has a null row for every row.
    labels = [call.label if call.train else call.label[:ROWS] for call in step.calls]
    trains = [call.train or name == "genie" for call in step.calls]
    null = np.concatenate([own == -1 for own, kept in zip(labels, trains, strict=True) if kept])
    if name in (*SHORTCUTS, *LIVE):
        assert not null[:: row_period(name)].any()  # bootstrap rows keep theirs
        null = np.delete(null, np.s_[:: row_period(name)])
    rate = field_value(name, "label_dropout")
    assert null.mean() == pytest.approx(rate, abs=correlation_bound(5, len(null)))


@pytest.mark.in_turn("name", 3)
@pytest.mark.parametrize("name", CASES)
def test_every_parameter_of_a_player_is_trained(name, steps):
    case, before, after, *_ = steps(name)
    for player, params in before.items():
        trained = leaves_by_path(case.objective.players[player].part(params))
        changes = leaves_by_path(jax.tree.map(jnp.subtract, after[player], params))
        for path in changes.keys() - {"who"}:
            change = np.abs(np.asarray(changes[path]))
            assert np.isfinite(change).all()
            assert change.max() > 1e-4 if path in trained else change.max() == 0.0, (player, path)


def correlation_bound(count, rows):
    """`count` standard deviations of a correlation over `rows` rows; of a share, these are more."""
    return count / rows**0.5


@pytest.mark.in_turn("name", 3)
@pytest.mark.parametrize("name", CASES)
def test_random_draws_are_of_every_row_and_independent(name, steps):
    record = steps(name).record
    keys = [draw.key for draw in record.draws]
    assert len(set(keys)) == len(keys) - (name in SAME_MASK)
    assert not set(keys) & record.parents
    # No key is made twice, as fold_in(key, 1) beside split(key, 2) would.
    assert len(set(record.children)) == len(record.children)
    columns = {}
    for i, draw in enumerate(record.draws):
        values = draw.values.reshape(len(draw.values), -1).astype(np.float64)
        rows = len(values) // steps(name).case.model.network.trajectory
        assert {len(values), rows} & {
            ROWS,
            ROWS // row_period(name),
            ROWS - ROWS // row_period(name),
        }
        if draw.values.dtype == np.float32:
            assert len(np.unique(values, axis=0)) > 0.9 * len(values)
        if draw.key not in keys[:i]:
            columns |= {(i, draw.function, j): column for j, column in enumerate(values.T)}
    for (a, one), (b, other) in combinations(columns.items(), 2):
        if len(one) == len(other) and one.std() and other.std():
            correlation = np.corrcoef(one, other)[0, 1]
            assert abs(correlation) < correlation_bound(5, len(one)), (a, b)


@pytest.mark.in_turn("name", 3)
@pytest.mark.parametrize("name", CASES)
def test_networks_get_times_of_the_path_and_those_that_were_drawn(name, steps):
    step = steps(name)
    path, times = step.case.model.path, step.record.times
    for call in step.calls:
        low, high = path.clock(jnp.asarray([path.t_min, path.t_max], jnp.float32))
        least = low - 1.0 / 4 if name in SHORTCUTS else low  # a flow row looks one step ahead
        assert (call.s <= call.t).all() and (call.t <= high + 1e-6).all()
        assert (call.t >= low - 1e-6).all() and (call.s >= least - 1e-6).all()
        if name not in SECOND_TIMES:
            np.testing.assert_array_equal(call.s, call.t)
    for (phase, who), field in TIMES.get(name, {}).items():
        drawn = path.clock(times[field])
        # If there is a call at an earlier time, the first call is at t.
        calls = [call for call in step.calls if (call.phase, call.who) == (phase, who)]
        for call in calls[: 1 if name in SAME_MASK else None]:
            called_at = call.t
            if name in SHORTCUTS:
                called_at = np.delete(called_at, np.s_[:: row_period(name)])
            np.testing.assert_array_equal(called_at[: len(drawn)], drawn)


@pytest.mark.parametrize("name", sorted(SAME_MASK - {"consistency_trajectory"}))
def test_the_second_of_two_sides_is_at_an_earlier_time(name, steps):
    *teacher, later, earlier = (call.t for call in steps(name).calls)
    assert (earlier <= later).all() and (earlier < later).mean() > 0.9
    for called_at in teacher:
        np.testing.assert_array_equal(called_at[:ROWS], later)


@pytest.mark.parametrize("name", SHORTCUTS)
def test_flow_rows_look_one_of_the_finest_steps_ahead(name, steps):
    (trained,) = (call for call in steps(name).calls if call.train)
    sizes = np.delete(trained.t - trained.s, np.s_[:: row_period(name)])
    np.testing.assert_allclose(sizes, 1.0 / field_value(name, "max_steps"), rtol=1e-5)


# Improved MeanFlow's scales are log-uniform, and 1 outside an interval: see its own tests.
@pytest.mark.in_turn("name", 3)
@pytest.mark.parametrize("name", [name for name in CASES if name != "improved_mean_flow"])
def test_a_network_with_that_input_gets_a_scale_of_the_range(name, steps):
    step = steps(name)
    if not step.case.model.network.guidance_input:
        assert all(call.scale is None for call in step.calls)
        return
    low, high = field_value(name, "guidance_range")
    first = next(call.scale for call in step.calls if call.train)
    # All calls of a row have its scale; a target's are those of its own rows.
    own = first[:: row_period(name)]
    others = [call.scale[: len(own)] for call in step.calls if not call.train]
    assert all(np.array_equal(own, other) for other in others)
    assert low <= first.min() < low + 0.05 and high - 0.05 < first.max() <= high
    assert first.mean() == pytest.approx(0.5 * (low + high), abs=correlation_bound(5, ROWS))


# Cases whose sampler applies guidance, and their numbers of steps. Others have learned guidance.
GUIDED_SAMPLERS = {
    "denoising": (1, 2, 4, 8),
    "genie": (1, 2, 4, 8),
    "shortcut": (8,),
    "shortcut of every scale": (8,),
    **dict.fromkeys(LIVE, (2, 4, 8)),
}


@pytest.mark.in_turn("name", 3)
@pytest.mark.parametrize("name", CASES)
def test_samplers_call_the_network_once_a_step_without_dropout(name, monkeypatch):
    record = Record()
    case = assemble(name, record.record_network)
    objective = case.objective
    record.names = [objective.generator]
    params = {**case.networks[objective.generator], "who": jnp.float32(0)}
    monkeypatch.setattr(jax.lax, "scan", unroll_scan)
    monkeypatch.setattr(jax, "checkpoint", without_checkpoint)
    for steps in (1,) if CASES[name][0] in ONE_STEP else (1, 2, 4, 8):
        record.calls.clear()
        scale = 3.5 if case.model.network.guidance_input else objective.guidance_scale
        samples(objective, params, steps, scale=scale)
        jax.effects_barrier()
        word = "guided" if steps in GUIDED_SAMPLERS.get(name, ()) else "kept"
        calls = [record.calls[i] for i in sorted(record.calls)]
        batch = {"label": np.arange(ROWS) % CLASSES}
        assert [(call.mode, label_treatment(call, batch)) for call in calls] == [
            ("rests", word)
        ] * steps
        if case.model.network.guidance_input:
            assert all((call.scale == scale).all() for call in calls)


GUIDED_TEACHERS = [
    name
    for name, phases in CALLS.items()
    if any(call.startswith("teacher rests guided") for calls in phases.values() for call in calls)
]


@pytest.mark.parametrize("name", GUIDED_TEACHERS)
def test_a_teacher_that_takes_the_scale_as_an_input_is_called_once_a_row(name, monkeypatch):
    step = take_step(name, monkeypatch, teacher_scales=(1.0, 9.0))
    words = [label_treatment(call, step.batch) for call in step.calls if call.who == "teacher"]
    assert words and not any(word.startswith("guided") for word in words)
