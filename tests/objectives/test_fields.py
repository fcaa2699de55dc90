"""Every field of every objective changes the results that it should, and no others."""

import inspect
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.configs import base
from fewstep.configs import objectives as documented
from fewstep.objectives import OBJECTIVES
from fewstep.parts import Part, RunLength, declared_marks
from fewstep.training.construct import RunContext, arguments
from fewstep.training.sources import SOURCES, teacher_sources
from tests.objectives.assembled import (
    CASES,
    ONE_STEP,
    TESTED,
    TOTAL,
    assemble,
    field_names,
    field_value,
    loss_rows,
    objective_batch,
    samples,
    unroll_scan,
    without_checkpoint,
)

# What the fields of each name change: "loss" is that of every player, with its gradient; "samples"
# includes errors; "updates" are those of followers; "needs" are the declarations of an objective.
EFFECTS = {
    "adaptive_weight": {"loss"},
    "average_residual": {"updates"},
    "b": {"loss"},
    "bootstrap_fraction": {"loss"},
    "bootstrap_weight": {"loss"},
    "boundary_weight": {"loss"},
    "curriculum": {"loss", "samples"},
    "denoising_weight": {"loss"},
    "distance": {"loss"},
    "divergence": {"generator loss"},
    "ends_at": {"samples"},
    "fake_score_updates": {"period"},
    "fake_time_sampler": {"fake_score loss"},
    "gamma": {"samples"},
    "gap": {"loss"},
    "generator": {"loss", "samples", "needs"},
    "guidance_interval": {"samples"},
    "guidance_range": {"loss", "samples"},
    "guided_channels": {"samples"},
    "guidance_scale": {"loss", "samples", "scale"},
    "head_width": {"loss", "samples"},
    "initial_decay": {"updates"},
    "interval_fraction": {"loss"},
    "joint": {"loss"},
    "k": {"loss"},
    "label_dropout": {"loss"},
    "least_steps": {"loss", "samples"},
    "leftover_rows": {"loss"},
    "live_fraction": {"loss"},
    "max_steps": {"loss", "samples"},
    "mixing": {"loss"},
    "normalize": {"generator loss"},
    "path_loss": {"loss"},
    "path_steps": {"loss"},
    "points": {"loss", "samples"},
    "q": {"loss"},
    "reads_score": {"loss", "samples"},
    "regression_distance": {"generator loss"},
    "regression_weight": {"generator loss"},
    "rollout_steps": {"loss", "samples"},
    "sample_times": {"samples"},
    "sigma_init": {"loss", "samples"},
    "skip": {"loss"},
    "solver": {"samples"},
    "solver_steps": {"loss"},
    "source": {"loss", "needs"},
    "spacing": {"samples"},
    "stages": {"loss"},
    "step_counts": {"loss", "samples", "updates", "needs"},
    "tangent_scale": {"loss"},
    "tangent_warmup": {"loss"},
    "target_decay": {"updates"},
    "target_warmup": {"updates"},
    "teacher_solver": {"loss"},
    "time_sampler": {"loss"},
    "times": {"loss", "samples"},
    "total_steps": {"loss"},
    "velocity": {"loss", "needs"},
    "weight_offset": {"loss"},
    "weight_power": {"loss"},
    "weighting": {"loss"},
}
GENERATOR_GUIDANCE = {"generator loss", "samples", "scale"}
# Fields that mean more or less than their name does elsewhere.
OWN_EFFECTS = {
    # A denoiser uses guidance in sampling only.
    ("denoising", "guidance_scale"): {"samples", "scale"},
    # Training and sampling use one grid.
    ("consistency_distillation", "spacing"): {"loss", "samples"},
    ("plain distillation", "spacing"): {"loss", "samples"},
    ("consistency_training", "spacing"): {"loss", "samples"},
    ("training without target", "spacing"): {"loss", "samples"},
    # The scale of the teacher is drawn from the range.
    ("consistency_distillation", "guidance_scale"): {"samples", "scale"},
    # In training the scale is drawn from the range.
    ("improved_mean_flow", "guidance_scale"): {"samples", "scale"},
    # Decay 0 removes the target.
    ("plain distillation", "target_decay"): {"loss", "updates", "needs"},
    ("training without target", "initial_decay"): {"loss", "updates", "needs"},
    # mu(k) is a function of the number of points.
    ("consistency_training", "curriculum"): {"loss", "samples", "updates"},
    # The stages decide what a step trains and in how many steps each network samples.
    ("progressive", "max_steps"): {"loss", "samples", "needs"},
    ("progressive", "total_steps"): {"loss", "needs"},
    ("progressive", "spacing"): {"loss", "samples"},
    # After the first stage students inherit the scale.
    ("progressive", "guidance_scale"): {"samples", "scale"},
    ("tract", "total_steps"): {"loss", "needs", "updates"},
    ("tract", "spacing"): {"loss", "samples"},
    ("tract", "guidance_scale"): {"samples", "scale"},
    ("consistency_trajectory", "spacing"): {"loss", "samples"},
    ("boot", "spacing"): {"loss"},
    ("dis", "spacing"): {"loss", "samples"},
    ("dds", "spacing"): {"loss", "samples"},
    ("dsno", "spacing"): {"loss", "samples"},
    ("moment_matching", "spacing"): {"loss", "samples"},
    ("parameter_matching", "spacing"): {"loss", "samples"},
    ("progressive of every scale", "max_steps"): {"loss", "samples", "needs"},
    ("progressive of every scale", "total_steps"): {"loss", "needs"},
    ("progressive of every scale", "spacing"): {"loss", "samples"},
    # Each row draws its scale.
    ("progressive of every scale", "guidance_scale"): {"samples", "scale"},
    ("shortcut of every scale", "guidance_scale"): {"samples", "scale"},
    ("guidance_distillation", "guidance_scale"): {"samples", "scale"},
    # The new input is one of the follower too.
    ("shortcut", "guidance_range"): {"loss", "samples", "updates"},
    ("progressive", "guidance_range"): {"loss", "samples", "updates"},
    # Pairs are guided already.
    ("direct", "guidance_scale"): {"samples", "scale"},
    ("reflow", "guidance_scale"): {"samples", "scale"},
    # Decay 0 removes the target.
    ("live reflow of itself", "target_decay"): {"loss", "updates", "needs"},
    # In the losses only the teacher is guided.
    ("distribution_matching", "guidance_scale"): GENERATOR_GUIDANCE,
    ("joint matching", "guidance_scale"): GENERATOR_GUIDANCE,
    ("matching without fake score", "guidance_scale"): GENERATOR_GUIDANCE,
    ("distribution_matching", "time_sampler"): {"generator loss"},
    ("matching without fake score", "time_sampler"): {"generator loss"},
    ("joint matching", "regression_weight"): {"generator loss", "needs"},
    ("matching without fake score", "divergence"): {"loss", "needs", "period"},
}
UNUSED = "has no use without the term, the player or the input that the case leaves out"
REFUSED = "is refused beside another field of the case"
# Reasons why a field changes nothing.
EXCEPTIONS = {
    ("consistency_distillation", "reads_score"): UNUSED,
    ("plain distillation", "reads_score"): UNUSED,
    ("joint matching", "regression_distance"): UNUSED,
    ("matching without fake score", "fake_time_sampler"): UNUSED,
    ("matching without fake score", "fake_score_updates"): REFUSED,
    ("matching without fake score", "joint"): REFUSED,
    ("joint matching", "fake_time_sampler"): REFUSED,
    ("taught mean flow", "mixing"): REFUSED,
    ("unguided shortcut", "guidance_range"): REFUSED,
}
# Fields that must change together.
BESIDE = {
    ("mean_flow", "velocity"): {"mixing": 0.0},
    ("distribution_matching", "joint"): {"fake_time_sampler": None},
}
EARLY, LATE = 3, 30
# A scale that no case has.
FOREIGN_SCALE = 5.0


def try_samples(case, steps, scale):
    """Samples, or the error of an objective that cannot sample."""
    objective = case.objective
    try:
        return samples(objective, case.networks[objective.generator], steps, scale=scale)
    except ValueError as refusal:
        return str(refusal)


def observe(case):
    """All observable results of an objective, by the names of EFFECTS."""
    objective, networks = case.objective, case.networks
    seen = {
        f"{player} loss": loss_rows(case, player, networks[player], LATE)
        for player in objective.players
    }
    seen["samples"] = [
        try_samples(case, steps, scale)
        for steps, scale in (
            *((steps, objective.guidance_scale) for steps in (1, 2, 3)),
            *((steps, FOREIGN_SCALE) for steps in (1, 4)),
        )
    ]
    seen["updates"] = {
        name: [
            follower.update(networks[name], networks[follower.source], step)
            for step in (EARLY, LATE)
        ]
        for name, follower in objective.followers.items()
    }
    seen["period"] = [player.every for player in objective.players.values()]
    seen["scale"] = objective.guidance_scale
    plain = ("players", "followers", "sample", "share", "guidance_scale", "end_point")
    plain += ("diagnostics",)
    seen["needs"] = {k: v for k, v in objective._asdict().items() if k not in plain}
    seen["needs"]["followers"] = {k: f.source for k, f in objective.followers.items()}
    seen["needs"]["players"] = list(objective.players)
    seen["needs"]["end_point"] = objective.end_point is not None
    return seen


def changed_observations(before, after):
    """The names of the results that differ between two observations."""
    return {name for name in before | after if not equal(before.get(name), after.get(name))}


def equal(a, b):
    """Whether two trees are equal bit by bit."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


@pytest.fixture(autouse=True)
def without_compilation(monkeypatch):
    """Makes loops over sampling steps Python loops, which compile nothing."""
    monkeypatch.setattr(jax.lax, "scan", unroll_scan)
    monkeypatch.setattr(jax, "checkpoint", without_checkpoint)


def expected_effects(case, field, before, after):
    """EFFECTS, with "loss" replaced by the loss of every player."""
    effects = OWN_EFFECTS.get((case, field), EFFECTS.get(field))
    if effects is None:
        raise LookupError(f"say in EFFECTS what {field!r} of {CASES[case][0]} changes")
    losses = {name for name in before | after if name.endswith(" loss")}
    return (effects - {"loss"}) | (losses if "loss" in effects else set())


@pytest.fixture(scope="module")
def observations():
    """case -> its observation, computed once."""
    return lru_cache(lambda case: observe(assemble(case)))


@pytest.mark.in_turn("case", 3)
@pytest.mark.parametrize(
    ("case", "field"), [(case, field) for case in CASES for field in field_names(case)]
)
def test_a_field_changes_what_it_stands_for_and_nothing_else(case, field, observations):
    changed = {field: field_value(case, field, other=True)} | BESIDE.get((case, field), {})
    if EXCEPTIONS.get((case, field)) == REFUSED:
        with pytest.raises(ValueError, match="objective."):
            assemble(case, **changed)
        return
    before, after = observations(case), observe(assemble(case, **changed))
    unused = EXCEPTIONS.get((case, field)) == UNUSED
    assert changed_observations(before, after) == (
        set() if unused else expected_effects(case, field, before, after)
    )


def test_every_effect_and_every_exception_is_of_a_field_that_there_is():
    there = {(case, field) for case in CASES for field in field_names(case)}
    assert set(OWN_EFFECTS) | set(EXCEPTIONS) | set(BESIDE) <= there
    assert set(EFFECTS) == {field for _, field in there}


def fields_with_default_none(name):
    """The fields of an objective whose default is None."""
    parameters = inspect.signature(OBJECTIVES[name]).parameters.values()
    # Configs do not have the generator as a field.
    return [p.name for p in parameters if p.default is None and p.name != "generator"]


@pytest.mark.in_turn("name", 3)
@pytest.mark.parametrize(
    ("name", "field"),
    [(name, field) for name in TESTED for field in fields_with_default_none(name)],
)
def test_a_default_of_none_is_the_documented_part_whatever_the_other_fields(name, field):
    """configs/objectives.py against the factory."""
    config = base.config()
    config.objective = getattr(documented, name)()
    # These times have no distinct nearest points on a grid of few points.
    beside = {"sample_times": ()} if field in ("curriculum", "spacing") else {}
    beside = {k: v for k, v in beside.items() if k in field_names(name)}
    case = assemble(name, **beside, **{field: None})
    given = config.objective.to_dict(), "objective", RunContext(case.model.path, TOTAL)
    parts = arguments(OBJECTIVES[name], *given)
    explicit = assemble(name, **beside, **{field: parts[field]})
    assert changed_observations(observe(case), observe(explicit)) == set()


def has_schedule(function):
    """Whether a function, or that of one of its parts, can depend on the length of a run."""
    marks = declared_marks(function).values()
    parts = [part for mark in marks if isinstance(mark, Part) for part in mark.table.values()]
    return any(isinstance(mark, RunLength) for mark in marks) or any(map(has_schedule, parts))


@pytest.mark.parametrize("case", TESTED)
def test_a_loss_changes_with_the_step_until_its_schedule_ends_and_not_after(case):
    assembled = assemble(case)
    for player, params in ((p, assembled.networks[p]) for p in assembled.objective.players):
        first, last, late = (
            loss_rows(assembled, player, params, step) for step in (1, TOTAL, 1000 * TOTAL)
        )
        np.testing.assert_array_equal(last, late)
        assert np.array_equal(first, last) != has_schedule(OBJECTIVES[case])


@pytest.mark.in_turn("case", 3)
@pytest.mark.parametrize("case", CASES)
def test_an_objective_says_what_of_a_batch_it_reads(case):
    assembled = assemble(case)
    objective, networks = assembled.objective, assembled.networks
    batch = {}
    for source in SOURCES:
        batch |= objective_batch(objective._replace(reads=(source,)))
    losses = lambda batch: [
        loss_rows(assembled, player, networks[player], LATE, batch) for player in objective.players
    ]
    plain = losses(batch)
    read = {
        name: not equal(plain, losses({**batch, name: jax.tree.map(lambda a: a[::-1], value)}))
        for name, value in batch.items()
    }
    assert read == {name: name in objective_batch(objective) for name in batch}


@pytest.mark.parametrize("case", CASES)
def test_who_learns_from_a_teacher_says_that_it_needs_one(case):
    objective = assemble(case).objective
    copied = "teacher" in objective.followers
    kept = any(player.trained for player in objective.players.values())
    taught = bool(objective.frozen or copied or kept or teacher_sources(objective))
    assert objective.needs_teacher == taught


# Objectives whose samplers accept another guidance scale than that of training.
GUIDED = {
    "denoising",
    "shortcut",
    "consistency_distillation",
    "guidance_distillation",
    "live_reflow",
    "improved_mean_flow",
    "dis",
    "dds",
    "scds",
}
# Objectives whose samplers draw noise between steps.
STOCHASTIC = set(OBJECTIVES) - {"shortcut", "distribution_matching", "progressive", "mean_flow"}
STOCHASTIC -= {"scds", "genie", "direct", "live_reflow", "tract", "boot", "dsno"}
STOCHASTIC -= {"improved_mean_flow"}


@pytest.mark.in_turn("name", 3)
@pytest.mark.parametrize("name", TESTED)
def test_samples_depend_on_all_that_they_are_made_of(name):
    _, objective, networks = case = assemble(name)
    steps = 1 if name in ONE_STEP else 8
    params = networks[objective.generator]
    plain = samples(objective, params, steps)
    assert not equal(plain, samples(objective, jax.tree.map(jnp.negative, params), steps))
    assert equal(plain, samples(objective, params, steps, seed=5)) != (name in STOCHASTIC)
    # A sampler that accepts another guidance scale follows it.
    asked = try_samples(case, steps, 3.5)
    assert isinstance(asked, str) or not equal(plain, asked)
    assert isinstance(asked, str) != (name in GUIDED)


@pytest.mark.parametrize("name", TESTED)
def test_a_denoiser_can_teach_and_nothing_else(name):
    denoisers = ("denoising", "guidance_distillation", "genie", "reflow", "dis", "dds")
    assert assemble(name).objective.denoises == (name in denoisers)
