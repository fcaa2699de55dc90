import importlib.util
import inspect
from functools import reduce
from itertools import pairwise
from operator import getitem
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from fewstep import models
from fewstep.configs import base, overrides
from fewstep.configs import objectives as documented
from fewstep.configs.methods import METHODS, TEACHERS
from fewstep.diffusion.path import PATHS
from fewstep.diffusion.prediction import KINDS
from fewstep.diffusion.spacing import SPACINGS
from fewstep.diffusion.time_pairs import CURRICULA
from fewstep.diffusion.time_sampling import TIME_SAMPLERS
from fewstep.models.dit import SIZES, DiTSize
from fewstep.objectives import OBJECTIVES
from fewstep.objectives.distances import DISTANCES
from fewstep.objectives.divergences import DIVERGENCES
from fewstep.objectives.needs import NOTHING
from fewstep.parts import Entry, Part, RunLength, declared_marks
from fewstep.samplers import SOLVERS
from fewstep.training.cost.choice import choose
from fewstep.training.cost.hardware import Hardware
from fewstep.training.experiment import build, debug_config
from fewstep.training.fixed_networks import fixed_shapes
from fewstep.training.inheritance import inherit, inherited_fields
from fewstep.training.optimizer import build_optimizer
from fewstep.training.state import initial_state
from fewstep.training.step import train_step
from tests.training.kinds import each_with_one
from tests.training.runs import (
    SAMPLERS,
    largest_difference,
    perturb,
    random_batch,
    untrained_teacher,
)
from tests.training.test_sharding import mesh_of

SIZES_OF_DATA = {
    "digits": (8, 1, 10),
    "fashion_mnist": (28, 1, 10),
    "fashion_mnist_latents": (28, 1, 10),
    "mixtures": (0, 0, 8),
    "pictures": (32, 3, 3),
    "density": (0, 0, 8),
}
FOLDER = Path(__file__).parent.parent.parent / "configs"
FILES = sorted(
    p.stem
    for p in FOLDER.glob("*.py")
    if "\ndef get_config(" in p.read_text()
    and not p.stem.startswith("shortcut_table")  # test_shortcut_table.py
)
# A file whose data have no images for a codec, or whose network has no trajectory: one clear error.
UNFIT = {("autoencoder", "density"), ("autoencoder", "mixtures"), ("dsno", "imagenet64")}
# Cheap tests take every pair; these trace whole networks, so each method takes one file in turn.
EACH_METHOD_IN_A_FILE = pytest.mark.parametrize(
    ("method", "file"),
    [pair for pair in each_with_one(list(METHODS), FILES) if pair not in UNFIT],
)


def config_of(file, method):
    """The config of a file, with what the data set and the devices would fill in.

    Samplers of a density have one for data.
    """
    config = given_config(file, method)
    own = (0, 0, 0) if method in SAMPLERS else SIZES_OF_DATA.get(file)
    if method in SAMPLERS and file != "density":
        config.data.name, config.codec.name = "density:gmm9", ""
        config.data.flip = False
        config.codec.scale = config.codec.shift = ()
    if own:
        config.data.image_size, config.data.channels, config.data.num_classes = own
    return choose(config, Hardware(mesh_of(1, 1), "cpu", False, None))


def given_config(file, method):
    spec = importlib.util.spec_from_file_location(file, FOLDER / f"{file}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(method)


@pytest.fixture
def no_blocks(monkeypatch):
    """Networks without blocks, which are the same for every config, compile in a tenth of the time.

    With blocks every objective is trained in tests/training/test_sharding.py.
    """
    monkeypatch.setitem(SIZES, "nano", DiTSize(16, 0, 1))


def training_batch(config, experiment):
    given = config.batch_size, experiment.space.shape, config.data.num_classes
    return random_batch(experiment.objective, *given)


@pytest.mark.in_turn("method", 6)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_a_step(method, no_blocks):
    config = debug_config(config_of("digits", method))
    # The first rate of a warm-up is 0, and so would be the update.
    config.optimizer.warmup_steps = 0
    experiment = build(config)
    objective, optimizers = experiment.objective, experiment.optimizers
    # Moved from its initial output of zero, which on some paths is the student's solution already.
    frozen = {name: perturb(params) for name, params in untrained_teacher(experiment).items()}
    state = initial_state(objective._replace(init_from={}), optimizers, config.seed, frozen)
    if any(player.trained for player in objective.players.values()):  # the rest is the teacher
        state = state._replace(networks=perturb(state.networks))
    step = jax.jit(train_step(objective, optimizers, config.seed))
    updated, metrics = step(state, frozen, training_batch(config, experiment))
    assert all(m.total == 1 for name, m in metrics.items() if name.endswith("finite"))
    for player in objective.players:
        assert largest_difference(state.networks[player], updated.networks[player]) > 0


@pytest.mark.in_turn("method", 3)
@EACH_METHOD_IN_A_FILE
def test_every_config_s_step_fits_its_data(file, method, no_blocks):
    config = debug_config(config_of(file, method))
    experiment = build(config)
    objective, optimizers = experiment.objective, experiment.optimizers
    init = objective.players[objective.generator].network.init
    frozen = jax.eval_shape(lambda: {name: init(jax.random.key(0)) for name in objective.frozen})
    frozen |= fixed_shapes(experiment)
    state = jax.eval_shape(lambda f: initial_state(objective, optimizers, 0, f), frozen)
    step = train_step(objective, optimizers, 0)
    updated, _ = jax.eval_shape(step, state, frozen, training_batch(config, experiment))
    assert jax.tree.structure(updated) == jax.tree.structure(state)


@pytest.mark.in_turn("method", 3)
@EACH_METHOD_IN_A_FILE
def test_every_config_builds_at_full_size_and_samples(file, method):
    config = config_of(file, method)
    experiment = build(config)
    objective = experiment.objective
    shapes = jax.eval_shape(objective.players[objective.generator].network.init, jax.random.key(0))
    eps = jax.ShapeDtypeStruct((2, *experiment.space.shape), jnp.float32)
    condition = {"label": jax.ShapeDtypeStruct((2,), jnp.int32)}
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0)))
    # The network is the same at every step: one, and on one file two.
    for steps in config.evaluate.steps[: 2 if file == "digits" else 1]:
        sampled = jax.eval_shape(
            lambda p, e, c, k, steps=steps: objective.sample(
                p, e, c, k, steps=steps, guidance_scale=objective.guidance_scale
            ),
            *(shapes, eps, condition, keys),
        )
        assert sampled.shape == eps.shape


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("file", FILES)
def test_every_field_has_a_type_by_which_flags_can_set_it(file, method):
    def check(fields, prefix):
        for name in fields:
            if isinstance(fields[name], ConfigDict):
                check(fields[name], f"{prefix}{name}.")
            else:
                assert fields.get_type(name) is not type(None), prefix + name

    check(given_config(file, method), "")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(("student", "teacher"), TEACHERS.items())
def test_a_teacher_of_the_same_file_has_its_student_s_path_and_model(file, student, teacher):
    one, other = config_of(file, student), config_of(file, teacher)
    if teacher in SAMPLERS and file != "density":
        return  # the student takes its network from its teacher
    if teacher == "ddpm":
        other.prediction.kind = "v"  # as configs/methods.py asks of a teacher of lcm
    for part in ("path", "prediction"):
        assert one[part].to_dict() == other[part].to_dict()
    own = {"loss_weight": False, "guidance_input": False, "dropout": 0.0, "attention": "xla"}
    own |= {"score_input": False, "score_precision": 0.0, "coordinate_width": 0, "odd": False}
    assert one.model.to_dict() | own == other.model.to_dict() | own


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("method", [name for name in METHODS if f"{name}_flow" in TEACHERS])
def test_with_a_teacher_a_method_and_its_flow_variant_are_the_same(file, method):
    def differing(one, other):
        return {field for field, *_ in inherited_fields(one, other)} - {"method"}

    flow = f"{method}_flow"
    presets = config_of(file, method), config_of(file, flow)
    edm, flow_matching = config_of(file, "edm"), config_of(file, "flow_matching")
    assert not differing(inherit(presets[0], flow_matching), presets[1])
    assert not differing(inherit(presets[1], edm), presets[0])


@pytest.mark.parametrize("file", FILES)
def test_students_of_pairs_have_as_many(file):
    counts = {config_of(file, m).pairs.count for m in ("direct", "reflow", "reflow_distill")}
    assert len(counts) == 1


def fields(function, skip=0):
    return list(inspect.signature(function).parameters)[skip:]


def fields_of(table, without):
    return {field for function in table.values() for field in fields(function)} - without


@pytest.mark.parametrize("name", OBJECTIVES)
def test_base_has_every_field_of_an_objective_with_its_default(name):
    fields_there = getattr(documented, name)().to_dict()
    assert fields_there.pop("name") == name
    parameters = inspect.signature(OBJECTIVES[name]).parameters
    # What is optimised is a field of Python's alone.
    assert set(fields_there) == set(fields(OBJECTIVES[name], skip=1)) - {"generator"}
    marks = declared_marks(OBJECTIVES[name])
    for field, value in fields_there.items():
        mark, default = marks.get(field), parameters[field].default
        if isinstance(mark, Part):
            assert value["name"] in {*mark.table, ""}
        elif isinstance(mark, Entry):
            assert mark.table[value] is default
        elif isinstance(mark, RunLength) and default is inspect.Parameter.empty:
            assert value is None
        else:
            assert value == default, field


def test_base_has_every_field_of_the_parts_of_an_objective():
    config = base.config()
    assert set(documented.time_sampler()) - {"name"} == fields_of(TIME_SAMPLERS, {"path"})
    assert set().union(*(documented.divergence(name) for name in DIVERGENCES)) - {
        "name"
    } == fields_of(DIVERGENCES, set())
    assert set(documented.spacing()) - {"name"} == fields_of(SPACINGS, {"path"})
    assert set(documented.solver()) - {"name"} == fields_of(SOLVERS, set())
    assert set(documented.distance()) - {"name"} == fields_of(DISTANCES, set())
    assert set(documented.curriculum()) - {"name"} == fields_of(CURRICULA, set())
    assert set(config.path) - {"name"} == fields_of(PATHS, set())
    assert config.prediction.kind in KINDS


def test_base_has_every_field_of_networks_and_optimizers():
    config = base.config()
    assert set(config.model) - {"name"} == set().union(
        *(kind.fields for kind in models.NETWORKS.values())
    )
    dit = models.NETWORKS["dit"].fields
    assert {name: config.model[name] for name in dit} == dit | dict.fromkeys(NOTHING)
    own = set(config.optimizer) | {"updates", "starts", "heads", "continued"}
    assert own == set(fields(build_optimizer))


def test_a_part_of_another_name_forgets_the_file_s_fields_but_not_the_given_ones():
    def overridden(method, given):
        config = config_of("digits", method)
        before = {field: reduce(getitem, field.split("."), config) for field in given}
        config.update_from_flattened_dict(given)
        overrides.forget_replaced(config, given, before)
        return config

    sim = "objective.divergence"
    assert config_of("digits", "sim").objective.divergence.distance.c == 0.1
    config = overridden("sim", {f"{sim}.distance.name": "squared_l2"})
    assert config.objective.divergence.distance.c is None
    config = overridden("sim", {f"{sim}.distance.name": "cauchy", f"{sim}.distance.c": 2.0})
    assert config.objective.divergence.distance.c == 2.0
    config = overridden("sim", {f"{sim}.name": "score_identity", f"{sim}.alpha": 1.0})
    divergence = config.objective.divergence
    assert (divergence.alpha, divergence.distance.name, divergence.distance.c) == (1.0, "", None)
    config = overridden("edm", {"path.name": "linear", "prediction.kind": "velocity"})
    assert config.prediction.sigma_data is None
    # The same name, and names of what is no part, change nothing.
    config = overridden("sim", {f"{sim}.distance.name": "pseudo_huber", "data.name": "mnist"})
    assert config.objective.divergence.distance.c == 0.1 and config.data.image_size == 8


def test_the_scale_of_one_codec_is_not_that_of_another():
    def replaced(**given):
        config = config_of("imagenet256", "edm")
        before = {field: reduce(getitem, field.split("."), config) for field in given}
        config.update_from_flattened_dict(given)
        overrides.forget_replaced(config, given, before)
        return config.codec.scale, config.codec.shift

    own = replaced(**{"codec.name": "sd"})
    assert len(own[0]) == len(own[1]) == 4
    assert replaced(**{"codec.name": "taesd"}) == ((), ())
    given = {"codec.name": "taesd", "codec.scale": (2.0, 2.0, 2.0, 2.0)}
    assert replaced(**given) == ((2.0, 2.0, 2.0, 2.0), ())


@pytest.mark.parametrize(
    ("unknown", "nearest"), [("shortcuts", "shortcut"), ("icd", "cd"), ("scdd", "scd")]
)
def test_unknown_method_names_what_there_is_and_the_nearest(unknown, nearest):
    with pytest.raises(ValueError, match=f"'{unknown}' is not one of .*edm, .* mean '{nearest}'"):
        config_of("digits", unknown)


def test_cifar10_has_the_published_consistency_settings():
    # Song et al. 2023, Song & Dhariwal 2023, Geng et al. 2024, on CIFAR-10.
    cd, ct, ict, ect = (config_of("cifar10", method) for method in ("cd", "ct", "ict", "ect"))
    assert (cd.batch_size, ict.batch_size, ect.batch_size) == (512, 1024, 128)
    assert {c.optimizer.name for c in (cd, ct, ict, ect)} == {"radam"}
    assert (cd.optimizer.learning_rate, ict.optimizer.learning_rate) == (4e-4, 1e-4)
    assert (ict.model.dropout, ect.model.dropout) == (0.3, 0.2)
    assert (cd.objective.target_decay, ct.objective.initial_decay) == (0.0, 0.9)
    assert tuple(ect.objective.sample_times) == (0.821,)
    # 11, 21, 41, ... 1281 points in eight equal stages of 50,000 steps.
    curriculum = CURRICULA["doubling"](total_steps=ict.steps)
    assert [int(curriculum(k)) for k in (0, 50_000, 399_999)] == [11, 21, 1281]


def test_cifar10_has_the_published_settings_of_one_step_generators():
    # Zhou et al. 2024; the README of Luo et al. 2023; Yin et al. 2024 (DMD2, on larger images).
    sim, sid, diff_instruct, dmd = (
        config_of("cifar10", m) for m in ("sim", "sid", "diff_instruct", "dmd")
    )
    for config in (sim, sid, diff_instruct, dmd):
        assert (config.optimizer.learning_rate, config.optimizer.b1) == (1e-5, 0.0)
    assert (sid.batch_size, sid.objective.sigma_init) == (256, 2.5)
    # Luo et al. 2024 take SiD's levels and weight over to SIM.
    assert sim.batch_size == 128 and not config_of("digits", "sim").objective.normalize
    for config in (sim, sid):
        law = config.objective.time_sampler
        assert (law.name, law.highest, config.objective.normalize) == ("equal_karras", 0.8, True)
    assert (diff_instruct.batch_size, diff_instruct.objective.sigma_init) == (128, 1.0)
    for config in (sim, sid, diff_instruct):  # half-lives of 0.5 M images
        half_life = np.log(0.5) / np.log(config.ema.decays[0]) * config.batch_size
        assert half_life == pytest.approx(5e5, rel=0.15)
    law = dmd.objective.time_sampler
    assert (law.name, law.lowest, law.highest) == ("equal_karras", 0.02, 0.98)
    assert (dmd.objective.sigma_init, dmd.objective.fake_score_updates) == (80.0, 5)


def test_cifar10_has_the_published_settings_of_progressive_distillation():
    # config/cifar_distill.py of the code of Salimans & Ho 2022: 8,192 steps of the first teacher.
    config = config_of("cifar10", "progressive")
    stages = build(config).objective.stages
    assert [stage.sampling_steps[0] for stage in stages] == [4096 >> k for k in range(13)]
    assert {later.start - stage.start for stage, later in pairwise(stages)} == {50_000}
    assert config.steps - stages[-1].start == 50_000
    fields = config.optimizer
    assert (fields.name, fields.learning_rate, fields.schedule) == ("adam", 5e-5, "linear")
    assert (fields.warmup_steps, fields.clip_norm, fields.weight_decay) == (0, 1.0, 0.0)
    assert (config.batch_size, config.model.dropout, config.ema.decays) == (128, 0.0, ())


@pytest.mark.parametrize(
    ("method", "scale"), [("edm", None), ("cd", None), ("flow_matching", 1000.0), ("trigflow", 4.0)]
)
def test_a_u_net_keeps_the_time_scale_of_a_method_but_on_ve(method, scale):
    assert config_of("imagenet64", method).model.time_scale == scale
    config = config_of("cifar10", method)
    before, config.model.name = {"model.name": config.model.name}, "song_unet"
    overrides.forget_replaced(config, {"model.name": "song_unet"}, before)
    assert config.model.time_scale == scale
    assert config.model.size is None


def test_cifar10_warms_up_and_clips_as_the_papers_do():
    found = {
        m: config_of("cifar10", m).optimizer for m in ("ddpm", "edm", "cd", "ct", "ict", "tract")
    }
    assert {m: (o.warmup_steps, o.clip_norm) for m, o in found.items()} == {
        "ddpm": (5000, 1.0),
        "edm": (19_531, 0.0),
        "tract": (0, 1.0),
        **dict.fromkeys(("cd", "ct", "ict"), (0, 0.0)),
    }
    assert config_of("cifar10", "edm").objective.ends_at == "data"
    of_code = config_of("cifar10", "mean_flow").objective
    assert (of_code.weight_power, of_code.time_sampler.mean) == (0.75, -2.0)
    assert not any(config_of(file, "progressive").ema.decays for file in FILES)


def test_the_latent_configs_mirror_images_and_have_the_paper_s_share_of_bootstrap_rows():
    # Frans et al. 2024; their code's default is 1/8.
    for name, batch in (("imagenet256", 256), ("celebahq256", 64)):
        config = config_of(name, "shortcut")
        assert (config.batch_size, config.objective.bootstrap_fraction) == (batch, 0.25)
        assert config.data.flip


def test_the_law_of_fashion_mnist_s_noise_is_the_paper_s_in_units_of_its_deviation():
    config = config_of("fashion_mnist", "edm")
    published = config_of("cifar10", "edm")
    shift = np.log(config.prediction.sigma_data / 0.5)
    difference = config.objective.time_sampler.mean - published.objective.time_sampler.mean
    assert difference == pytest.approx(shift, abs=0.005)
