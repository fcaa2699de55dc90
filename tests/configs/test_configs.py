import importlib.util
import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from configs import base
from diffusion.path import PATHS
from diffusion.time_sampling import TIME_SAMPLERS
from objectives import OBJECTIVES
from tests.training.runs import largest_difference
from training.experiment import build, debugged
from training.loop import compile_step, create_state
from training.optimizer import optimizer
from training.sharding import make_mesh

FOLDER = Path(__file__).parent.parent.parent / "configs"
FILES = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem not in ("__init__", "base"))


def config_of(file, method):
    spec = importlib.util.spec_from_file_location(file, FOLDER / f"{file}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(method)
    # What the data set would fill in.
    own = {"digits": (8, 1, 10), "fashion_mnist": (28, 1, 10)}.get(file)
    if own:
        config.data.image_size, config.data.channels, config.data.num_classes = own
    return config


@pytest.mark.parametrize("method", OBJECTIVES)
@pytest.mark.parametrize("file", FILES)
def test_every_config_builds_and_takes_a_finite_step(file, method):
    config = debugged(config_of(file, method))
    experiment = build(config)
    mesh = make_mesh()
    state = create_state(experiment.objective, experiment.optimizers, config.seed, {}, mesh)
    step = compile_step(experiment.objective, experiment.optimizers, config.seed, mesh)
    shape = (config.batch_size, *experiment.image_shape)
    label = np.arange(config.batch_size) % max(config.data.num_classes, 1)
    batch = {
        "x": jax.random.uniform(jax.random.key(0), shape, minval=-1.0),
        "label": jnp.asarray(label if config.data.num_classes else label - 1, jnp.int32),
    }
    before = jax.device_get(state.networks)
    state, metrics = step(state, {}, batch)
    state, metrics = step(state, {}, batch)  # the first rate of a warm-up is 0
    assert metrics["finite"].total == 1
    assert largest_difference(before, state.networks) > 0


@pytest.mark.parametrize("method", OBJECTIVES)
@pytest.mark.parametrize("file", FILES)
def test_every_config_builds_at_full_size(file, method):
    experiment = build(config_of(file, method))
    shapes = jax.eval_shape(experiment.objective.players["network"].init, jax.random.key(0))
    assert jax.tree.leaves(shapes)


def fields(function, skip=0):
    return list(inspect.signature(function).parameters)[skip:]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_base_has_every_field_of_an_objective_with_its_default(name):
    documented = getattr(base, name)().to_dict()
    documented.pop("name")
    parameters = inspect.signature(OBJECTIVES[name]).parameters
    assert set(documented) == set(fields(OBJECTIVES[name], skip=2))
    for field, value in documented.items():
        if field != "time_sampler":
            assert value == parameters[field].default, field


def test_base_has_every_field_of_paths_samplers_networks_and_optimizers():
    config = base.config()
    assert set(config.path) - {"name"} == {f for p in PATHS.values() for f in fields(p)}
    of_samplers = {f for s in TIME_SAMPLERS.values() for f in fields(s)} - {"path"}
    assert set(base.time_sampler()) - {"name"} == of_samplers
    from_data = {"image_size", "channels", "num_classes"}
    assert set(config.model) - {"name"} | from_data == set(fields(models.NETWORKS["dit"]))
    assert set(config.optimizer) | {"updates"} == set(fields(optimizer))


def test_unknown_method_names_what_there_is():
    with pytest.raises(ValueError, match="no method 'shortcuts'"):
        config_of("digits", "shortcuts")
