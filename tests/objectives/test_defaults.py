"""An objective with default fields has the losses and samples of its docstring and paper."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.diffusion import time_sampling
from fewstep.diffusion.path import PATHS
from fewstep.diffusion.spacing import karras_spacing, uniform_spacing
from fewstep.diffusion.time_pairs import constant
from fewstep.objectives.base import SHARED
from fewstep.objectives.boot import boot
from fewstep.objectives.consistency import WEIGHTINGS
from fewstep.objectives.consistency_distillation import consistency_distillation
from fewstep.objectives.consistency_training import consistency_training
from fewstep.objectives.consistency_trajectory import consistency_trajectory, denoising_times
from fewstep.objectives.consistency_tuning import consistency_tuning
from fewstep.objectives.continuous_consistency import continuous_distillation, continuous_training
from fewstep.objectives.denoising import denoising, denoising_loss
from fewstep.objectives.direct import direct
from fewstep.objectives.distances import pseudo_huber, squared_l2
from fewstep.objectives.distribution_matching import distribution_matching
from fewstep.objectives.divergences import (
    LOW_NOISE,
    Point,
    noise_free_score_distillation,
    score_identity,
    score_implicit_matching,
)
from fewstep.objectives.dsno import dsno
from fewstep.objectives.generators import one_step_generator, particles
from fewstep.objectives.genie import genie
from fewstep.objectives.guidance_distillation import guidance_distillation
from fewstep.objectives.live_reflow import live_reflow
from fewstep.objectives.moment_matching import moment_matching
from fewstep.objectives.parameter_matching import parameter_matching
from fewstep.objectives.progressive import WEIGHTINGS as SNR_WEIGHTINGS
from fewstep.objectives.progressive import progressive
from fewstep.objectives.reflow import reflow
from fewstep.objectives.shortcut import shortcut
from fewstep.objectives.tract import tract
from fewstep.samplers.grids import grid_to_path_end
from fewstep.samplers.ode import ddim, ddim_step, euler, heun_step
from tests.networks import affine_network, build_model

KEY = jax.random.key(0)
ROWS = 128
NETWORK = affine_network()._replace(shape=(2,))
LINEAR, VE = build_model(NETWORK, PATHS["linear"]()), build_model(NETWORK, PATHS["ve"](), "F")
WEIGHTED = NETWORK._replace(log_weight=lambda params, t: params["c"] * t)
TRIGFLOW = build_model(WEIGHTED, PATHS["trigflow"]())
STEPPED = build_model(NETWORK._replace(second_time="step_size"), PATHS["linear"]())
TIMED = build_model(NETWORK._replace(second_time="time"), PATHS["linear"]())
TOGETHER = build_model(TIMED.network._replace(trajectory=4), TIMED.path)
AVERAGED = build_model(NETWORK._replace(second_time="interval"), PATHS["linear"]())
SCALED = build_model(NETWORK._replace(guidance_input=True), PATHS["linear"]())
UNIFORM = WEIGHTINGS["uniform"]

CASES = {
    "denoising": (
        lambda **fields: denoising(LINEAR, **fields),
        {
            "time_sampler": time_sampling.uniform_times(LINEAR.path),
            "label_dropout": 0.1,
            "guidance_scale": 1.0,
            "solver": euler(),
            "spacing": uniform_spacing(LINEAR.path),
            "ends_at": grid_to_path_end,
        },
    ),
    "consistency_distillation": (
        lambda **fields: consistency_distillation(VE, **fields),
        {
            "curriculum": constant(18),
            "spacing": karras_spacing(VE.path),
            "skip": 1,
            "teacher_solver": heun_step,
            "distance": squared_l2(),
            "weighting": UNIFORM,
            "target_decay": 0.95,
            "guidance_scale": 1.0,
            "guidance_range": (),
        },
    ),
    "consistency_training": (
        lambda **fields: consistency_training(VE, curriculum=constant(9), **fields),
        {
            "spacing": karras_spacing(VE.path),
            "time_sampler": None,
            "distance": squared_l2(),
            "weighting": UNIFORM,
            "initial_decay": 0.9,
        },
    ),
    "consistency_tuning": (
        lambda **fields: consistency_tuning(VE, total_steps=10, **fields),
        {
            "stages": 8,
            "q": 2.0,
            "k": 8.0,
            "b": 1.0,
            "time_sampler": time_sampling.log_normal_times(VE.path, -1.1, 2.0),
            "distance": pseudo_huber(0.0),
            "weighting": WEIGHTINGS["inverse_gap"],
            "spacing": karras_spacing(VE.path),
        },
    ),
    "continuous_training": (
        lambda **fields: continuous_training(TRIGFLOW, **fields),
        {
            "time_sampler": time_sampling.log_normal_times(TRIGFLOW.path, -1.0, 1.4),
            "tangent_warmup": 10_000,
            "tangent_scale": 0.1,
            "adaptive_weight": True,
            "spacing": uniform_spacing(TRIGFLOW.path),
        },
    ),
    "continuous_distillation": (
        lambda **fields: continuous_distillation(TRIGFLOW, **fields),
        {
            "time_sampler": time_sampling.log_normal_times(TRIGFLOW.path, -1.0, 1.4),
            "tangent_warmup": 10_000,
            "tangent_scale": 0.1,
            "adaptive_weight": True,
            "guidance_scale": 1.0,
            "spacing": uniform_spacing(TRIGFLOW.path),
        },
    ),
    "shortcut": (
        lambda **fields: shortcut(STEPPED, **fields),
        {
            "max_steps": 128,
            "bootstrap_fraction": 0.25,
            "target_decay": 0.999,
            "target_warmup": True,
            "time_sampler": time_sampling.uniform_times(STEPPED.path),
            "label_dropout": 0.1,
            "guidance_scale": 1.0,
        },
    ),
    "distribution_matching": (
        lambda **fields: distribution_matching(LINEAR, **fields),
        {
            "divergence": score_implicit_matching(pseudo_huber()),
            "sigma_init": 2.5,
            "time_sampler": time_sampling.log_normal_times(LINEAR.path, -1.2, 1.2),
            "fake_time_sampler": time_sampling.log_normal_times(LINEAR.path, -1.2, 1.2),
            "normalize": False,
            "guidance_scale": 1.0,
            "fake_score_updates": 1,
            "joint": False,
            "regression_weight": 0.0,
        },
    ),
    "progressive": (
        lambda **fields: progressive(LINEAR, total_steps=20, **fields),
        {
            "max_steps": 64,
            "weighting": SNR_WEIGHTINGS["truncated_snr"],
            "spacing": uniform_spacing(LINEAR.path),
            "guidance_scale": 1.0,
        },
    ),
    "tract": (
        lambda **fields: tract(LINEAR, total_steps=20, **fields),
        {
            "step_counts": (1024, 32, 1),
            "weighting": SNR_WEIGHTINGS["truncated_snr"],
            "spacing": uniform_spacing(LINEAR.path),
            "target_decay": 0.5,
            "average_residual": 1e-3,
            "guidance_scale": 1.0,
        },
    ),
    "consistency_trajectory": (
        lambda **fields: consistency_trajectory(TIMED, **fields),
        {
            "points": 18,
            "spacing": karras_spacing(TIMED.path),
            "solver_steps": 17,
            "teacher_solver": heun_step,
            "distance": squared_l2(),
            "target_decay": 0.999,
            "denoising_weight": 1.0,
            "time_sampler": denoising_times(TIMED.path),
            "guidance_scale": 1.0,
            "gamma": 0.0,
        },
    ),
    "boot": (
        lambda **fields: boot(TIMED, **fields),
        {
            "gap": 0.04,
            "spacing": uniform_spacing(TIMED.path),
            "teacher_solver": ddim_step,
            "distance": squared_l2(),
            "boundary_weight": 1.0,
            "guidance_scale": 1.0,
        },
    ),
    "dsno": (
        lambda **fields: dsno(TOGETHER, **fields),
        {
            "times": 4,
            "solver_steps": 64,
            "teacher_solver": ddim_step,
            "spacing": uniform_spacing(TIMED.path),
            "distance": squared_l2(),
            "guidance_scale": 1.0,
        },
    ),
    "moment_matching": (
        lambda **fields: moment_matching(LINEAR, **fields),
        {"least_steps": 8, "spacing": uniform_spacing(LINEAR.path), "guidance_scale": 1.0},
    ),
    "parameter_matching": (
        lambda **fields: parameter_matching(LINEAR, **fields),
        {"least_steps": 8, "spacing": uniform_spacing(LINEAR.path)},
    ),
    "guidance_distillation": (
        lambda **fields: guidance_distillation(SCALED, **fields),
        {
            "guidance_range": (1.0, 5.0),
            "guidance_scale": 1.0,
            "time_sampler": time_sampling.uniform_times(SCALED.path),
            "label_dropout": 0.1,
            "solver": ddim(),
            "spacing": uniform_spacing(SCALED.path),
            "ends_at": grid_to_path_end,
        },
    ),
    "genie": (
        lambda **fields: genie(LINEAR, **fields),
        {
            "head_width": 128,
            "time_sampler": time_sampling.uniform_times(LINEAR.path),
            "label_dropout": 0.1,
            "guidance_scale": 1.0,
            "spacing": uniform_spacing(LINEAR.path),
            "ends_at": grid_to_path_end,
        },
    ),
    "direct": (
        lambda **fields: direct(LINEAR, **fields),
        {"distance": squared_l2(), "guidance_scale": 1.0},
    ),
    "reflow": (
        lambda **fields: reflow(LINEAR, **fields),
        {
            "time_sampler": time_sampling.uniform_times(LINEAR.path),
            "guidance_scale": 1.0,
            "solver": ddim(),
            "spacing": uniform_spacing(LINEAR.path),
            "ends_at": grid_to_path_end,
        },
    ),
    "live_reflow": (
        lambda **fields: live_reflow(AVERAGED, **fields),
        {
            "rollout_steps": 8,
            "live_fraction": 0.125,
            "target_decay": 0.0,
            "time_sampler": time_sampling.uniform_times(AVERAGED.path),
            "label_dropout": 0.1,
            "guidance_scale": 1.0,
        },
    ),
    "regression to pairs": (
        lambda **fields: distribution_matching(LINEAR, regression_weight=0.25, **fields),
        {"regression_distance": squared_l2(), "generator": one_step_generator(LINEAR, 2.5)},
    ),
}

# Sampling steps of the objectives that sample in some numbers only.
SAMPLED_IN = {"tract": 32, "moment_matching": 8, "parameter_matching": 8}


def perturbed_params(network, by):
    """Parameters that differ between networks."""
    return jax.tree.map(lambda leaf: leaf + by, network.init(KEY))


def compute_results(objective, steps=None):
    """Losses with gradients, decays and samples: all results that a default can change."""
    names = [*objective.players, *objective.followers, *objective.frozen]
    players = {name: player.network for name, player in objective.players.items()}
    networks = {
        name: perturbed_params(players.get(name, NETWORK), 0.1 * number)
        for number, name in enumerate(names)
    }
    x = jax.random.normal(jax.random.key(1), (ROWS, 2))
    batch = {"x": x, "label": jnp.arange(ROWS) % 3}
    batch["pairs"] = {"eps": x, "x_0": 2.0 * x, "label": batch["label"]}
    if objective.share:
        batch[SHARED] = objective.share(networks, batch, KEY)
    found = {}
    for name, player in objective.players.items():
        mean = lambda p, loss=player.loss: loss(p, networks, batch, KEY, jnp.int32(4))[0].mean()
        found[name] = jax.value_and_grad(mean)(networks[name])
        found[f"{name} every"] = player.every
    for name, follower in objective.followers.items():
        for step in (0, 10**6):
            found[f"{name} {step}"] = follower.update(jnp.float32(1.0), jnp.float32(0.0), step)
    steps = steps or (2 if "images" in objective.reads else 1)
    keys, condition = jax.random.split(KEY, ROWS), {"label": batch["label"]}
    params, scale = networks[objective.generator], objective.guidance_scale
    found["samples"] = objective.sample(
        params, x, condition, keys, steps=steps, guidance_scale=scale
    )
    return found, scale


@pytest.mark.in_turn("name", 2)
@pytest.mark.parametrize("name", CASES)
def test_the_defaults_are_those_of_the_paper(name):
    make, published = CASES[name]
    steps = SAMPLED_IN.get(name)
    default, expected = (compute_results(made, steps) for made in (make(), make(**published)))
    chex.assert_trees_all_equal(default, expected)
    assert default[1] == 1.0  # without guidance


def test_a_loss_on_its_own_drops_no_label():
    batch = {"x": jnp.ones((5000, 2)), "label": jnp.arange(5000) % 3}
    sampler, params = time_sampling.uniform_times(LINEAR.path), NETWORK.init(KEY)
    default, none = (
        denoising_loss(LINEAR, sampler, **fields)(params, {}, batch, KEY, 0)[0]
        for fields in ({}, {"label_dropout": 0.0})
    )
    np.testing.assert_array_equal(default, none)


def test_defaults_of_divergences_and_generators():
    rows = jax.random.normal(KEY, (5, ROWS, 2))
    rho = jnp.linspace(0.5, 1.0, ROWS)[:, None]
    point = Point(rows[0], rows[1], rho, rows[2], rows[3], rows[4])
    for default, explicit in (
        (score_identity(), score_identity(1.2)),
        (score_implicit_matching(), score_implicit_matching(pseudo_huber())),
        (noise_free_score_distillation(), noise_free_score_distillation(0.72)),
    ):
        np.testing.assert_array_equal(default.surrogate(point), explicit.surrogate(point))
    assert LOW_NOISE == 0.72
    label, params = {"label": jnp.zeros(ROWS, jnp.int32)}, NETWORK.init(KEY)
    made = [
        one_step_generator(LINEAR, *level).generate(params, rows[0], label)
        for level in ((), (2.5,))
    ]
    np.testing.assert_array_equal(*made)
    first = [particles((2,), 4, *deviation).network.init(KEY) for deviation in ((), (1.0,))]
    chex.assert_trees_all_equal(*first)
