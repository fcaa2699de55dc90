"""Objectives of the registry with all fields set to values that are neither default nor neutral.

The fields come from the signatures of the objectives. Each field name needs an entry in VALUES: its
value in the cases here, and another one.
"""

import inspect
import zlib
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fewstep.densities.density import Density
from fewstep.diffusion.path import PATHS
from fewstep.diffusion.prediction import KINDS
from fewstep.diffusion.spacing import karras_spacing
from fewstep.diffusion.time_pairs import doubling, square_root
from fewstep.diffusion.time_sampling import ROW_LEVELS, log_normal_times, logit_normal_times
from fewstep.models.model import Model
from fewstep.models.network import Network
from fewstep.objectives import OBJECTIVES
from fewstep.objectives.base import SHARED, Objective
from fewstep.objectives.consistency import WEIGHTINGS
from fewstep.objectives.distances import huber, norm, pseudo_huber
from fewstep.objectives.divergences import integral_kl, score_distillation, score_identity
from fewstep.objectives.generators import particles
from fewstep.objectives.mean_flow import VELOCITIES
from fewstep.objectives.needs import network_needs
from fewstep.objectives.path_sampling import PATH_LOSSES
from fewstep.objectives.point_pairs import rollout_source
from fewstep.objectives.progressive import WEIGHTINGS as SNR_WEIGHTINGS
from fewstep.samplers import SOLVERS
from fewstep.samplers.grids import GRIDS
from fewstep.samplers.ode import STEPS
from tests.training.runs import random_batch

KEY, SHARE_KEY = jax.random.key(0), jax.random.key(1)
# Enough rows to measure shares and correlations.
CLASSES, ROWS, DIMENSION = 3, 2048, 2
# The network of an autoencoder is a codec: tests/objectives/test_autoencoder.py.
TESTED = [name for name in OBJECTIVES if name != "autoencoder"]
# The length of schedules here.
TOTAL = 40


class ModelPart(NamedTuple):
    """A part that is built from the model."""

    part: Any

    def build(self, model):
        return self.part(model)


# (value of a field in the cases here, another value)
VALUES = {
    "adaptive_weight": (True, False),
    "average_residual": (0.2, 0.4),
    "b": (0.7, 1.6),
    "bootstrap_fraction": (0.25, 0.5),
    "bootstrap_weight": (0.6, 1.2),
    "boundary_weight": (0.7, 1.3),
    "curriculum": (square_root(3, 9, total_steps=TOTAL), doubling(2, 6, total_steps=TOTAL)),
    "denoising_weight": (0.7, 1.3),
    "distance": (pseudo_huber(0.3), huber(0.2)),
    "divergence": (score_identity(1.5), integral_kl()),
    "ends_at": (GRIDS["data"], GRIDS["path"]),
    "fake_score_updates": (3, 4),
    "fake_time_sampler": tuple(
        ModelPart(lambda m, x=x: logit_normal_times(m.path, x)) for x in (-0.5, 0.6)
    ),
    "gamma": (0.6, 0.3),
    "gap": (0.1, 0.2),
    "generator": (None, particles((DIMENSION,), ROWS)),
    "guidance_interval": ((0.1, 0.8), (0.2, 0.9)),
    "guidance_range": ((1.5, 4.0), (2.0, 6.0)),
    "guided_channels": (1, None),
    "guidance_scale": (2.0, 3.0),
    "head_width": (6, 9),
    "initial_decay": (0.8, 0.6),
    "interval_fraction": (0.25, 0.5),
    "joint": (False, True),
    "k": (6.0, 4.0),
    "label_dropout": (0.3, 0.7),
    "least_steps": (1, 2),
    "leftover_rows": (ROW_LEVELS["largest"], ROW_LEVELS["coarse"]),
    "live_fraction": (0.25, 0.5),
    "max_steps": (4, 8),
    "mixing": (0.3, 0.6),
    "normalize": (True, False),
    "path_loss": (PATH_LOSSES["log_variance"], PATH_LOSSES["kl"]),
    "path_steps": (3, 5),
    "points": (9, 12),
    "q": (1.5, 1.8),
    "reads_score": (False, True),
    "regression_distance": (huber(0.2), norm(1.5)),
    "regression_weight": (0.4, 0.7),
    "rollout_steps": (2, 3),
    "sample_times": tuple(
        ModelPart(
            lambda model, u=u: tuple(
                map(float, karras_spacing(model.path, 2.0).time(jnp.asarray(u)))
            )
        )
        for u in ((0.7, 0.35), (0.8, 0.5))
    ),
    "sigma_init": (1.3, 0.9),
    "skip": (2, 1),
    "solver_steps": (3, 2),
    "solver": (SOLVERS["ancestral"](), SOLVERS["ddim"]()),
    "source": (None, rollout_source(groups=4, substeps=1)),
    "spacing": tuple(
        ModelPart(lambda model, p=p: karras_spacing(model.path, p)) for p in (2.0, 4.0)
    ),
    "stages": (5, 3),
    "step_counts": ((64, 16, 8, 4, 2, 1), (64, 16, 8, 4, 1)),
    "tangent_scale": (0.3, 0.6),
    "tangent_warmup": (TOTAL, TOTAL // 2),
    "target_decay": (0.5, 0.7),
    "target_warmup": (True, False),
    "teacher_solver": (STEPS["ddim"], STEPS["heun"]),
    "time_sampler": tuple(
        ModelPart(lambda m, x=x: log_normal_times(m.path, x, 0.7)) for x in (-0.4, 0.5)
    ),
    "times": (4, 2),
    "total_steps": (TOTAL, 2 * TOTAL),
    "velocity": (VELOCITIES["sample"], VELOCITIES["teacher"]),
    "weight_offset": (0.02, 0.5),
    "weight_power": (0.5, 0.8),
    "weighting": (WEIGHTINGS["inverse_gap"], WEIGHTINGS["uniform"]),
}
# Fields whose name means something else than in VALUES.
OWN_VALUES = {
    ("dsno", "solver_steps"): (4, 8),
    # In its last stage steps start at pure noise, so no loss depends on data or weights.
    ("progressive", "max_steps"): (16, 8),
    # Three step sizes, which do not divide the number of bootstrap rows.
    **dict.fromkeys((("shortcut", "max_steps"), ("scds", "max_steps")), (8, 4)),
    **dict.fromkeys(
        (("progressive", "weighting"), ("tract", "weighting")),
        (SNR_WEIGHTINGS["snr_plus_one"], SNR_WEIGHTINGS["truncated_snr"]),
    ),
}
# Cases by name: (objective, fields that differ from VALUES). Each objective is a case; more cases
# have a part that a field turns off.
CASES = {name: (name, {}) for name in TESTED} | {
    "taught mean flow": ("mean_flow", {"velocity": VELOCITIES["teacher"], "mixing": 0.0}),
    "shortcut": ("shortcut", {"guidance_range": ()}),
    "shortcut of every scale": ("shortcut", {}),
    "unguided shortcut": (
        "shortcut",
        {"guidance_scale": 1.0, "guidance_range": (), "target_warmup": False},
    ),
    "progressive": ("progressive", {"guidance_range": ()}),
    "progressive of every scale": ("progressive", {}),
    "live reflow of itself": ("live_reflow", {"target_decay": 0.0}),
    "plain distillation": (
        "consistency_distillation",
        {"guidance_range": (), "target_decay": 0.0},
    ),
    "training without target": ("consistency_training", {"initial_decay": 0.0}),
    "plain continuous distillation": (
        "continuous_distillation",
        {"guidance_scale": 1.0, "adaptive_weight": False},
    ),
    "joint matching": (
        "distribution_matching",
        {"joint": True, "fake_time_sampler": None, "regression_weight": 0.0},
    ),
    "matching without fake score": (
        "distribution_matching",
        {"divergence": score_distillation(), "fake_score_updates": 1},
    ),
}
MODELS = {
    "denoising": ("ve", "F"),  # a path that does not end at the data
    "guidance_distillation": ("ve", "F"),
    "genie": ("ve", "F"),
    "reflow": ("ve", "F"),
    "consistency_distillation": ("vp_cosine", "velocity"),
    "consistency_training": ("ve", "F"),
    "consistency_trajectory": ("ve", "F"),
    "consistency_tuning": ("trigflow", "F"),
    "continuous_training": ("trigflow", "F"),
    "continuous_distillation": ("trigflow", "F"),
    **dict.fromkeys(("dis", "dds", "scds"), ("vp_ddpm", "tilt")),
}
# For methods that sample a density.
TARGET = Density("normal", DIMENSION, lambda x: -0.5 * jnp.sum((x - 0.3) ** 2))


# Objectives that sample in one step.
ONE_STEP = {"distribution_matching", "direct", "boot", "dsno"}


class Case(NamedTuple):
    """A model, an objective on it, and the parameters of all networks that a step sees."""

    model: Model
    objective: Objective
    networks: dict[str, Any]


def field_names(case):
    """The names of the fields of a case's objective."""
    name, _ = CASES[case]
    return list(inspect.signature(OBJECTIVES[name]).parameters)[1:]


def field_value(case, field, other=False):
    """The value of a field in a case; other: its other value."""
    name, own = CASES[case]
    if field not in VALUES:
        raise LookupError(
            f"VALUES of tests/objectives/assembled.py has no entry for the field {field!r} of "
            f"{CASES[case][0]}; add a value that is not its default, and another"
        )
    value, another = OWN_VALUES.get((name, field), VALUES[field])
    if not other:
        return own.get(field, value)
    return another if own.get(field, value) == value else value


def assemble(case, wrap=lambda network: network, teacher_scales=(), **changed):
    """The case with some fields changed. wrap: network -> network, applied to its network."""
    name, _ = CASES[case]
    fields = {field: field_value(case, field) for field in field_names(case)} | changed
    path, kind = MODELS.get(name, ("linear", "velocity"))
    network = responsive_network(**network_needs(OBJECTIVES[name], fields))
    model = Model(wrap(network), PATHS[path](), KINDS[kind], teacher_scales, TARGET)
    fields = {k: v.build(model) if isinstance(v, ModelPart) else v for k, v in fields.items()}
    objective = OBJECTIVES[name](model, **fields)
    return Case(model, objective, distinct_params(objective, model))


def responsive_network(
    second_time="none",
    guidance_input=False,
    guidance_interval=False,
    trajectory=1,
    loss_weight=False,
):
    """A small network with dropout, whose output depends on each input and parameter."""

    def init(key):
        params = {
            "a": jnp.float32(0.6),
            "b": jnp.float32(-0.2),
            "c": jnp.float32(0.5),
            "e": jnp.linspace(-1.0, 1.0, CLASSES + 1),
        }
        if second_time != "none":
            params["d"] = jnp.float32(0.7)
        if guidance_input:
            params["g"] = jnp.float32(0.3)
        if guidance_interval:
            params["i"] = jnp.asarray([0.4, -0.6])
        if trajectory > 1:
            params["m"] = jnp.float32(0.3)
        if loss_weight:
            params["w"] = jnp.asarray([0.4, -0.3])
        return params

    def inner_layer(params, x, t, s, condition):
        row = params["b"] + params["c"] * t + params["e"][condition["label"]]
        row += params["d"] * (t - s) if second_time != "none" else 0.0
        row += params["g"] * condition["guidance_scale"] if guidance_input else 0.0
        if guidance_interval:
            ends = jnp.stack([condition["guidance_start"], condition["guidance_end"]])
            row += params["i"] @ ends
        inner = params["a"] * x + row[:, None]
        if trajectory > 1:
            mean = inner.reshape(-1, trajectory, DIMENSION).mean(axis=1)
            inner += params["m"] * jnp.repeat(mean, trajectory, axis=0)
        return inner

    def apply(params, x, t, s, condition, *, train=False, rng=None):
        output = jnp.sin(inner_layer(params, x, t, s, condition))
        if not train:
            return output
        return output * jax.random.bernoulli(rng, 0.8, x.shape) / 0.8

    def features(params, x, t, s, condition, names, **mode):
        inner = inner_layer(params, x, t, s, condition)
        units = jnp.concatenate([inner, jnp.cos(inner)], axis=-1)
        return apply(params, x, t, s, condition, **mode), dict.fromkeys(names, units)

    def log_weight(params, t):
        return params["w"][0] + params["w"][1] * t

    weight = log_weight if loss_weight else None
    inputs = second_time, guidance_input, guidance_interval, trajectory
    given = {"hidden": ("units",), "features": features}
    return Network(init, apply, *inputs, weight, (DIMENSION,), **given)


def distinct_params(objective, model):
    """Different parameters for each player, follower and teacher; matrices vary."""

    def moved(leaf, by):
        apart = jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape) if leaf.ndim > 1 else 1.0
        return (1.0 + 0.5 * by) * leaf + 0.2 * by * apart

    params = {}
    for name in (*objective.players, *objective.followers, *objective.frozen):
        network = objective.players[name].network if name in objective.players else model.network
        by = zlib.crc32(name.encode()) / 2**32
        params[name] = jax.tree.map(partial(moved, by=by), network.init(KEY))
    return params


def objective_batch(objective):
    """A batch of random data from the sources that an objective reads."""
    batch = random_batch(objective, ROWS, (DIMENSION,), CLASSES, seed=2)
    return jax.tree.map(jnp.asarray, batch)


def loss_rows(case, player, params, step, batch=None, key=KEY):
    """The loss of a player, [B]. The shared arrays depend on its parameters too."""
    objective, batch = case.objective, batch or objective_batch(case.objective)
    networks = {**case.networks, player: params}
    shared = {SHARED: objective.share(networks, batch, SHARE_KEY)} if objective.share else {}
    loss = objective.players[player].loss
    return loss(params, case.networks, {**batch, **shared}, key, jnp.int32(step))[0]


def samples(objective, params, steps, *, scale=None, seed=3):
    """Samples at a guidance scale; None is the objective's own scale."""
    eps = jax.random.normal(jax.random.key(4), (ROWS, DIMENSION))
    return objective.sample(
        params,
        eps,
        {"label": jnp.arange(ROWS) % CLASSES},
        jax.random.split(jax.random.key(seed), ROWS),
        steps=steps,
        guidance_scale=objective.guidance_scale if scale is None else scale,
    )


def unroll_scan(body, carry, xs, length=None):
    """jax.lax.scan as a Python loop."""
    outputs = []
    for i in range(length or len(jax.tree.leaves(xs)[0])):
        carry, output = body(carry, jax.tree.map(lambda a, i=i: a[i], xs))
        outputs.append(output)
    stacked = jax.tree.map(lambda *each: jnp.stack(each), *outputs) if outputs else None
    return carry, stacked


def without_checkpoint(function, **options):
    """jax.checkpoint, which keeps instead of computing again."""
    return function
