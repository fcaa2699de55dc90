"""Every field of every part of an objective changes its results and has the published default."""

import inspect
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.diffusion.path import PATHS
from fewstep.diffusion.prediction import KINDS, Coefficients, raw_kind
from fewstep.diffusion.spacing import SPACINGS
from fewstep.diffusion.time_pairs import CURRICULA
from fewstep.diffusion.time_sampling import TIME_SAMPLERS
from fewstep.models.convnet import convnet
from fewstep.models.lpips import BACKBONES, lpips_init
from fewstep.models.model import Model
from fewstep.objectives.distances import DISTANCES, huber
from fewstep.objectives.divergences import DIVERGENCES, Point
from fewstep.objectives.followers import constant_ema, power_ema, warmed_ema
from fewstep.objectives.generators import one_step_generator, particles
from fewstep.objectives.point_pairs import PAIR_SOURCES, PairParts
from fewstep.samplers import SOLVERS
from fewstep.training.fixed_networks import split_name
from tests.gaussian import Gaussian
from tests.objectives.assembled import responsive_network

KEY = jax.random.key(0)
A, B, NOISE, FAKE, TEACHER, NULL = jax.random.normal(KEY, (6, 32, 2))
LABEL = {"label": jnp.zeros(32, jnp.int32)}
VE, LINEAR = PATHS["ve"](), PATHS["linear"]()
FRACTION = jnp.linspace(0.05, 0.95, 10)
TIMES = jnp.linspace(0.1, 1.0, 16)


def point():
    """Rows at noise levels from 0.1 to 1.6, on both sides of NFSD's low noise."""
    rho = jnp.linspace(0.1, 1.6, 32)[:, None]
    return Point(A, rho * NOISE, rho, FAKE, TEACHER, NULL)


def image_distance(distance):
    """The distance of two images; by LPIPS with random parameters, others for other weights.

    A decoder halves images.
    """
    if distance.name != "lpips":
        return distance.given(CLASSIFIER)(IMAGES, -IMAGES)
    kind, source = split_name(distance.networks[0])
    x = jax.random.uniform(KEY, (1, 32, 32, 1), minval=-1.0)
    shallow = {name: backbone[:2] for name, backbone in BACKBONES.items()}
    with patch.dict(BACKBONES, shallow):
        init = lpips_init(kind.removeprefix("lpips_"), x.shape[1:])
        params = init(jax.random.key(len(source)))
        return distance.given({distance.networks[0]: params, "codec": {}})(x, -x)


def solver_samples(solver):
    denoise = Gaussian(jnp.zeros(2), jnp.array([0.3, 1.7])).denoiser(VE)
    times = jnp.array([30.0, 8.0, 2.0, 0.5, 0.1, 0.002])
    return solver(denoise, VE, 30.0 * A, times, jax.random.split(KEY, 32))


def pairs_of(source):
    """The points of a teacher that is the network itself."""
    step = lambda networks, draw: draw.x_t * (1.0 + draw.s - draw.t)[:, None]
    parts = PairParts(MODEL, step, SPACINGS["uniform"](LINEAR), CURRICULA["constant"](5), 1)
    batch = {"x": A, **LABEL, "pairs": {"x_0": B, "eps": NOISE, **LABEL}}
    draw, x_s = source.points(parts)({}, batch, KEY, jnp.int32(0))
    return {"draw": draw.x_t, "x_s": x_s}


def divergence_gradient(generator):
    params = generator.network.init(KEY)
    return params, generator.generate(params, A, LABEL)


def schedules(path):
    ends = path.t_min, path.t_max
    return {name: getattr(path, name)(TIMES) for name in ("alpha", "sigma", "time_at")} | {
        "ends": ends
    }


def random_code(kind):
    c = Coefficients(*(jnp.float32(x) for x in (0.8, 0.6, -1.0, 1.0)))
    return {"decode": kind.decode(A, B, c), "c_in": kind.c_in(c)}


MODEL = Model(responsive_network(), LINEAR, KINDS["velocity"])
IMAGES = jax.random.uniform(KEY, (3, 8, 8, 1), minval=-1.0)
CLASSIFIER = {"classifier": convnet((8, 8, 1), 3).init(KEY), "codec": {}}
# Tables of parts: (functions by name, inputs before the fields, results of a part).
TABLES = {
    "time_sampler": (TIME_SAMPLERS, (VE,), lambda sample: sample(KEY, 32)),
    "spacing": (
        SPACINGS,
        (VE,),
        lambda spacing: {"time": spacing.time(FRACTION), "fraction": spacing.fraction(TIMES)},
    ),
    "curriculum": (CURRICULA, (), lambda points: [points(jnp.int32(k)) for k in (0, 15, 500)]),
    "distance": (DISTANCES, (), image_distance),
    "divergence": (DIVERGENCES, (), lambda divergence: divergence.surrogate(point())),
    "source": (PAIR_SOURCES, (), pairs_of),
    "solver": (SOLVERS, (), solver_samples),
    "path": (PATHS, (), schedules),
    "kind": ({"F": raw_kind}, (), random_code),
    "follower": (
        {f.__name__: f for f in (constant_ema, warmed_ema, power_ema)},
        (),
        lambda update: [update(A, B, step) for step in (0, 500)],
    ),
    "one_step": ({"one_step": one_step_generator}, (MODEL,), divergence_gradient),
    "particles": ({"particles": particles}, ((2,), 32), divergence_gradient),
}
# Values of fields without a default.
REQUIRED = {"total_steps": 30, "decay": 0.9, "relative_std": 0.1}
# Another value of each field than its default, or than that in REQUIRED.
OTHERS = {
    "alpha": 1.7,
    "pixels": 0.4,
    "beta_max": 15.0,
    "beta_min": 0.3,
    "c": 0.4,
    "churn": 1.0,
    "churn_max": 5.0,
    "churn_min": 4.0,
    "decay": 0.8,
    "decoded": lambda params, latents: 0.5 * latents + 0.1,
    "deviation": 2.0,
    "distance": huber(0.2),
    "first": 4,
    "groups": 8,
    "highest": 0.7,
    "last": 90,
    "low_noise": 1.2,
    "lowest": 0.2,
    "mean": 0.3,
    "network": "alex",
    "noise": 1.1,
    "order": 1,
    "points": 25,
    "power": 3.0,
    "relative_std": 0.2,
    "sigma_data": 0.8,
    "sigma_init": 1.1,
    "sigma_max": 50.0,
    "sigma_min": 0.1,
    "std": 0.5,
    "substeps": 2,
    "total_steps": 20,
    "variable": "log_rho",
    "variance": "large",
    "weights": "a.pth,b.pth",
}
# Fields that act only at some values of another field.
BESIDE = {
    ("curriculum", "doubling", "last"): {"first": 30},
    **{
        ("distance", "lpips", field): {"network": "alex"}
        for field in ("weights", "pixels", "decoded")
    },
}
# Entries of the results that do not depend on a field.
UNMOVED = {
    ("path", "ve", "sigma_min"): {"alpha", "sigma", "time_at"},
    ("path", "ve", "sigma_max"): {"alpha", "sigma", "time_at"},
    ("path", "vp_ddpm", "beta_min"): {"ends"},
    ("path", "vp_ddpm", "beta_max"): {"ends"},
    ("path", "trigflow", "sigma_data"): {"alpha", "ends"},
}


def part_fields(table, name):
    """The fields of a part, with their defaults."""
    functions, inputs, _ = TABLES[table]
    parameters = list(inspect.signature(functions[name]).parameters.values())
    return {p.name: p.default for p in parameters[len(inputs) :]}


def observe(table, name, **fields):
    functions, inputs, see = TABLES[table]
    found = see(functions[name](*inputs, **fields))
    return found if isinstance(found, dict) else {"": found}


FIELDS = [
    (table, name, field)
    for table, (functions, *_) in TABLES.items()
    for name in functions
    for field in part_fields(table, name)
]


@pytest.mark.in_turn("field", 2)
@pytest.mark.parametrize(("table", "name", "field"), FIELDS)
def test_a_field_of_a_part_changes_what_the_part_computes(table, name, field):
    assert field in OTHERS, f"add a value of {field!r}, a field of {name}, to OTHERS"
    defaults = part_fields(table, name)
    fields = {
        f: REQUIRED[f] for f, default in defaults.items() if default is inspect.Parameter.empty
    }
    fields |= BESIDE.get((table, name, field), {})
    assert OTHERS[field] not in (fields.get(field), defaults[field])
    before = observe(table, name, **fields)
    after = observe(table, name, **(fields | {field: OTHERS[field]}))
    same = {
        key
        for key in before
        if all(map(np.array_equal, *map(jax.tree.leaves, (before[key], after[key]))))
    }
    assert same == UNMOVED.get((table, name, field), set())


# The papers' values of fields that configs leave at None, by the docstrings of the parts.
DEFAULTS = {
    ("time_sampler", "logit_normal"): {"mean": 0.0, "std": 1.0},
    ("time_sampler", "log_normal"): {"mean": -1.2, "std": 1.2},
    ("time_sampler", "equal_karras"): {"power": 7.0, "lowest": 0.0, "highest": 1.0},
    ("spacing", "karras"): {"power": 7.0},
    ("curriculum", "constant"): {"points": 18},
    ("curriculum", "square_root"): {"first": 2, "last": 150},
    ("curriculum", "doubling"): {"first": 10, "last": 1280},
    ("distance", "pseudo_huber"): {"c": None},
    ("distance", "pseudo_huber_elementwise"): {"c": 0.001},
    ("distance", "norm"): {"power": 1.0},
    ("distance", "huber"): {"c": 1.0},
    ("distance", "exponential"): {"c": 1.0},
    ("distance", "cauchy"): {"c": 1.0},
    ("distance", "features"): {"pixels": 1.0, "decoded": None},
    ("distance", "lpips"): {"network": "vgg", "weights": "", "pixels": 0.0, "decoded": None},
    ("divergence", "score_implicit_matching"): {"distance": None},
    ("divergence", "score_identity"): {"alpha": 1.2},
    ("divergence", "noise_free_score_distillation"): {"low_noise": 0.72},
    ("solver", "ancestral"): {"variance": "small"},
    ("solver", "deis"): {"order": 3, "variable": "t"},
    ("solver", "unipc"): {"order": 2},
    ("solver", "churned_heun"): {
        "churn": 40.0,
        "churn_min": 0.05,
        "churn_max": 50.0,
        "noise": 1.003,
    },
    ("path", "vp_ddpm"): {"beta_min": 0.1, "beta_max": 20.0},
    ("path", "ve"): {"sigma_min": 0.002, "sigma_max": 80.0},
    ("path", "trigflow"): {"sigma_data": 0.5},
    ("kind", "F"): {"sigma_data": 0.5},
    ("one_step", "one_step"): {"sigma_init": 2.5},
    ("particles", "particles"): {"deviation": 1.0},
    ("source", "rollout"): {"groups": 4, "substeps": 3},
    ("source", "trajectories"): {"substeps": 3},
}


def test_the_defaults_of_parts_are_the_published_ones():
    found = {}
    for table, name, field in FIELDS:
        default = part_fields(table, name)[field]
        if default is not inspect.Parameter.empty:
            found.setdefault((table, name), {})[field] = default
    assert found == DEFAULTS


def test_a_default_of_none_is_the_part_that_the_docstring_names():
    sim, pseudo_huber = DIVERGENCES["score_implicit_matching"], DISTANCES["pseudo_huber"]
    assert np.array_equal(sim().surrogate(point()), sim(pseudo_huber()).surrogate(point()))
    # 0.00054 sqrt(D)
    np.testing.assert_allclose(
        pseudo_huber()(A, B), pseudo_huber(0.00054 * 2**0.5)(A, B), rtol=1e-6
    )


@pytest.mark.parametrize("name", CURRICULA)
def test_a_curriculum_ends_with_its_last_number_of_points(name):
    required = {f: REQUIRED[f] for f in part_fields("curriculum", name) if f in REQUIRED}
    points = CURRICULA[name](**required)
    last = {"constant": 18, "square_root": 151, "doubling": 1281}[name]
    ends = [int(points(jnp.int32(step))) for step in (REQUIRED["total_steps"], 10_000, 2**30)]
    assert ends == [last] * 3
