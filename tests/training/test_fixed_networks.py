"""Networks that a distance reads: known before they exist, and read by a training step."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.configs.methods import METHODS
from fewstep.eval.features import fixed
from fewstep.eval.features.fixed import load_fixed
from fewstep.models.convnet import convnet
from fewstep.models.lpips import BACKBONES, Conv, convolutions, lpips_init
from fewstep.objectives import OBJECTIVES
from fewstep.objectives.distances import DISTANCES
from fewstep.parts import Part, declared_marks
from fewstep.training.cost.compiled import step_inputs
from fewstep.training.experiment import build
from fewstep.training.fixed_networks import fixed_shapes
from fewstep.training.sharding import make_mesh
from fewstep.weights.layouts.lpips import write_lpips
from tests.training.runs import small_config

PARAMS = convnet((8, 8, 1), 10).init(jax.random.key(0))


def perceptual(method="ct", **fields):
    return small_config(method, **{"objective.distance.name": "features", **fields})


@pytest.fixture
def classifier(monkeypatch):
    """The classifier of a data set without its training."""
    monkeypatch.setitem(fixed.READERS, "classifier", lambda dataset, root, source: PARAMS)


def test_shapes_are_those_of_what_is_read(classifier, tmp_path):
    config, mesh = perceptual(), make_mesh()
    experiment = build(config)
    known = step_inputs(config, experiment, mesh).frozen["classifier"]
    read = load_fixed(experiment.objective, SimpleNamespace(), tmp_path, mesh)["classifier"]
    for there, here in zip(jax.tree.leaves(known), jax.tree.leaves(read), strict=True):
        assert (there.shape, there.dtype) == (here.shape, here.dtype)
        assert there.sharding == here.sharding
    np.testing.assert_array_equal(read["logits"]["kernel"], PARAMS["logits"]["kernel"])


def distance_fields(objective):
    return [
        field
        for field, mark in declared_marks(OBJECTIVES[objective]).items()
        if isinstance(mark, Part) and mark.table is DISTANCES
    ]


@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if distance_fields(name)])
def test_an_objective_names_what_its_distance_reads_or_refuses_it(objective):
    method = next(m for m in METHODS if small_config(m).objective.name == objective)
    for field in distance_fields(objective):
        fields = {f"objective.{field}.name": "features", f"objective.{field}.c": None}
        config = small_config(method, **fields)
        if "regression_weight" in config.objective:
            config.objective.regression_weight = 0.5
        try:
            assert build(config).objective.fixed == ("classifier",)
        except ValueError as error:
            assert "name=features compares images" in str(error)


def test_a_loss_reads_the_network_that_it_is_given():
    experiment = build(perceptual())
    player = experiment.objective.players["network"]
    params = player.network.init(jax.random.key(1))
    x = jax.random.uniform(jax.random.key(2), (16, 8, 8, 1), minval=-1.0)
    batch = {"x": x, "label": jnp.arange(16) % 10}

    def loss(given):
        networks = {"network": params, "target": params, "classifier": given}
        return player.loss(params, networks, batch, jax.random.key(3), jnp.int32(0))[0].mean()

    scaled = jax.tree.map(lambda leaf: 1.5 * leaf, PARAMS)
    assert float(loss(PARAMS)) != float(loss(scaled))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"data.channels": 2}, "images are \\[8, 8, 2\\]"),
        ({"data.num_classes": 0}, "num_classes"),
        ({"codec.name": "linear", "data.image_size": 16}, "it does not take latents"),
    ],
)
def test_data_that_the_classifier_does_not_take_are_refused(fields, reason):
    with pytest.raises(ValueError, match=f"distance `features` reads .*{reason}.*pseudo_huber"):
        fixed_shapes(build(perceptual(**fields)))


def with_lpips(**fields):
    return small_config("ct", **{"objective.distance.name": "lpips", **fields})


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "vgg takes images of 16 x 16 pixels or more, not 8 x 8"),
        (
            {"objective.distance.network": "alex", "data.image_size": 16},
            "alex takes images of 31 x 31 pixels or more, not 16 x 16",
        ),
        ({"data.image_size": 16, "data.channels": 2}, "1 or 3 channels, not 16 x 16 x 2"),
        ({"codec.name": "linear", "data.image_size": 64}, "it does not take latents"),
    ],
)
def test_examples_that_lpips_does_not_take_are_refused(fields, reason):
    with pytest.raises(ValueError, match=f"distance `lpips` reads images: .*{reason}"):
        fixed_shapes(build(with_lpips(**fields)))


def test_lpips_reads_its_files_or_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONES, "alex", (Conv(0, 4, tapped=True),))
    monkeypatch.delenv("FEWSTEP_LPIPS", raising=False)
    objective = build(with_lpips(**{"objective.distance.network": "alex"})).objective
    with pytest.raises(FileNotFoundError, match=r"distance\.weights=FILE,FILE or \$FEWSTEP_LPIPS"):
        load_fixed(objective, None, tmp_path, make_mesh())
    params = jax.device_get(lpips_init("alex", (8, 8, 1))(jax.random.key(0)))
    np.savez(tmp_path / "both.npz", **write_lpips(params, convolutions("alex"), sliced=False))
    monkeypatch.setenv("FEWSTEP_LPIPS", str(tmp_path / "both.npz"))
    (read,) = load_fixed(objective, None, tmp_path, make_mesh()).values()
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(read), params)


def test_without_its_data_set_a_classifier_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match="classifier of the data set, which is not here"):
        load_fixed(build(perceptual()).objective, None, tmp_path, make_mesh())
