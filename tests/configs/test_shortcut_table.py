"""The rows of the shortcut paper's table have its rules on every data set."""

import jax.numpy as jnp
import pytest

from fewstep.configs import (
    methods,
    shortcut_table,
    shortcut_table_celebahq256,
    shortcut_table_fashion_mnist,
    shortcut_table_imagenet256,
)
from fewstep.configs.methods import TEACHERS
from fewstep.configs.shortcut_table import ROWS
from fewstep.diffusion.time_pairs import doubling
from fewstep.eval.sampling import check_sampling
from fewstep.objectives.progressive import halving_stages
from fewstep.training.experiment import build
from fewstep.training.sharding import make_mesh

FILES = {
    "digits": shortcut_table,
    "fashion_mnist": shortcut_table_fashion_mnist,
    "celebahq256": shortcut_table_celebahq256,
    "imagenet256": shortcut_table_imagenet256,
}


@pytest.mark.parametrize("data", FILES)
def test_all_rows_have_one_network_and_as_many_gradient_steps(data):
    rows = {method: FILES[data].get_config(method) for method in ROWS}
    first = rows["shortcut"]
    for method, config in rows.items():
        steps = (1, 4) if method == "progressive" else (1, 4, 128)
        assert config.method == method and tuple(config.evaluate.steps) == steps
        assert (config.steps, config.batch_size) == (first.steps, first.batch_size)
        for group in ("model", "data"):
            assert config[group].to_dict() == first[group].to_dict()
        assert config.optimizer.learning_rate == first.optimizer.learning_rate
        distance = config.objective.get("distance")
        assert distance is None or distance.name == "squared_l2"
        assert (config.path.name == "linear") == (method != "ddpm")
    assert {method for method in rows if method in TEACHERS} == {"progressive", "cd_flow", "reflow"}
    assert {TEACHERS[method] for method in ("progressive", "cd_flow", "reflow")} <= rows.keys()


def test_progressive_distillation_starts_below_the_teacher_s_128_steps():
    fields = shortcut_table.get_config("progressive").objective
    stages = halving_stages(fields.max_steps, 700)
    assert [stage.sampling_steps for stage in stages] == [(2**k,) for k in range(6, -1, -1)]


def test_the_grids_of_consistency_models_end_with_the_most_sampling_steps():
    assert shortcut_table.get_config("cd_flow").objective.curriculum.points == 128 + 1
    fields = shortcut_table.get_config("ct_flow").objective.curriculum
    points = doubling(fields.first, fields.last, total_steps=800)
    assert [int(points(jnp.int32(step))) - 1 for step in range(0, 800, 100)] == [
        2**k for k in range(8)
    ]
    assert int(points(jnp.int32(10_000))) == 129


def test_guided_rows_of_imagenet_share_a_scale_and_others_have_none():
    scales = {
        method: shortcut_table_imagenet256.get_config(method).objective.get("guidance_scale", 1.0)
        for method in ROWS
    }
    assert {method for method, scale in scales.items() if scale == 1.0} == {"cd_flow", "ct_flow"}
    assert set(scales.values()) == {1.0, 1.5}
    for data in ("digits", "celebahq256"):
        objectives = [FILES[data].get_config(method).objective for method in ROWS]
        assert {fields.get("guidance_scale", 1.0) for fields in objectives} == {1.0}


@pytest.mark.parametrize("method", ROWS)
def test_every_row_samples_in_its_numbers_of_steps(method):
    config = shortcut_table.get_config(method)
    config.data.image_size, config.data.channels, config.data.num_classes = 8, 1, 10
    if config.objective.get("spacing", {}).get("name") == "":
        config.objective.spacing.name = "uniform"  # a student has its teacher's
    methods.network(config, size="nano")
    check_sampling(build(config), config, make_mesh())


def test_other_methods_are_those_of_the_data():
    assert shortcut_table.get_config("ict").evaluate.steps == (1, 2, 4)
