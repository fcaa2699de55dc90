"""Networks that a distance reads: known before they exist, and read by a training step."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.configs.methods import METHODS
from fewstep.eval.features import fixed
from fewstep.eval.features.fixed import load_fixed, read_perceptual
from fewstep.latents.linear import linear_codec
from fewstep.models.codecs import fit_codec
from fewstep.models.convnet import convnet
from fewstep.models.lpips import BACKBONES, Conv, convolutions, lpips_distance, lpips_init
from fewstep.objectives import OBJECTIVES, consistency
from fewstep.objectives.distances import DISTANCES
from fewstep.parts import Part, declared_marks
from fewstep.training.codec_weights import keep_fitted
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
    monkeypatch.setitem(fixed.READERS, "classifier", lambda config, dataset, source: PARAMS)


def test_shapes_are_those_of_what_is_read(classifier):
    config, mesh = perceptual(), make_mesh()
    experiment = build(config)
    known = step_inputs(config, experiment, mesh).frozen["classifier"]
    read = load_fixed(config, experiment.objective, SimpleNamespace(), mesh)["classifier"]
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
    config = with_lpips(**{"objective.distance.network": "alex"})
    objective = build(config).objective
    with pytest.raises(FileNotFoundError, match=r"e\.distance\.weights=FILE,FILE or \$FEWSTEP_LPI"):
        load_fixed(config, objective, None, make_mesh())
    other = small_config("dmd", **{"objective.regression_distance.name": "lpips"})
    with pytest.raises(FileNotFoundError, match=r"objective\.regression_distance\.weights=FILE"):
        read_perceptual(other, None, "", "alex")
    params = jax.device_get(lpips_init("alex", (8, 8, 1))(jax.random.key(0)))
    np.savez(tmp_path / "both.npz", **write_lpips(params, convolutions("alex"), sliced=False))
    monkeypatch.setenv("FEWSTEP_LPIPS", str(tmp_path / "both.npz"))
    (read,) = load_fixed(config, objective, None, make_mesh()).values()
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(read), params)


def test_without_its_data_set_a_classifier_cannot_be_read():
    config = perceptual()
    with pytest.raises(ValueError, match="classifier of the data set, which is not here"):
        load_fixed(config, build(config).objective, None, make_mesh())


LATENTS = {"codec.name": "linear", "codec.scale": (0.7,), "data.image_size": 16}
LATENTS |= {"objective.distance.network": "alex", "objective.distance.weights": "both.npz"}


@pytest.fixture
def latent_runs(monkeypatch, tmp_path):
    """Weights of a small LPIPS in the current folder, and a codec that was fitted and kept."""
    monkeypatch.setitem(BACKBONES, "alex", (Conv(0, 4, tapped=True), Conv(2, 5, tapped=True)))
    monkeypatch.chdir(tmp_path)
    lpips = jax.device_get(lpips_init("alex", (16, 16, 1))(jax.random.key(0)))
    np.savez("both.npz", **write_lpips(lpips, convolutions("alex"), sliced=False))
    images = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 1), dtype=np.uint8)
    codec = keep_fitted("linear", fit_codec("linear", images), tmp_path / "data")
    own = {"data.dir": str(tmp_path / "data"), "codec.fingerprint": codec.fingerprint}
    return lpips, codec.params, LATENTS | own


def methods_of_distances():
    """(method, field of its distance) for every method whose losses compare data."""
    for objective in OBJECTIVES:
        method = next(m for m in METHODS if small_config(m).objective.name == objective)
        for field in distance_fields(objective):
            if objective not in (
                "autoencoder",
                "dsno",
                "shortcut",
                "scds",
            ):  # no latents, or no data
                yield method, field


@pytest.mark.parametrize(("method", "field"), [*methods_of_distances()])
def test_every_distance_of_latents_reads_the_decoder_of_the_run(method, field, latent_runs):
    *_, fields = latent_runs
    fields = {name.replace("distance", field): value for name, value in fields.items()}
    chosen = {f"objective.{field}.{k}": v for k, v in (("name", "lpips"), ("decoded", True))}
    chosen[f"objective.{field}.c"] = None
    config = small_config(method, **fields, **chosen)
    if "regression_weight" in config.objective:
        config.objective.regression_weight = 0.5
    experiment = build(config)
    assert experiment.objective.fixed == ("lpips_alex:both.npz", "codec")
    read = load_fixed(config, experiment.objective, None, make_mesh())
    shapes = jax.tree.map(lambda leaf: leaf.shape, fixed_shapes(experiment))
    assert jax.tree.map(lambda leaf: leaf.shape, read) == shapes


@pytest.mark.parametrize("pixels", [0.0, 0.3])
def test_latents_are_compared_as_the_images_that_they_decode_to(pixels, latent_runs):
    lpips, codec, fields = latent_runs
    chosen = {"objective.distance.decoded": True, "objective.distance.pixels": pixels}
    config = with_lpips(**fields, **chosen)
    experiment = build(config)
    seen = []
    player = experiment.objective.players["network"]
    params = player.network.init(jax.random.key(1))
    x = jax.random.normal(jax.random.key(2), (8, *experiment.space.shape))
    networks = {"network": params, "target": params}
    networks |= load_fixed(config, experiment.objective, None, make_mesh())
    batch = {"x": x, "label": jnp.arange(8) % 10}
    inputs = networks, batch, jax.random.key(3), jnp.int32(0)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            consistency,
            "consistency_distance",
            lambda model, distance, *rest: seen.append(distance) or distance(x, x[::-1]),
        )
        player.loss(params, *inputs)
    # By hand: the network sees 0.7 z of raw latents z.
    raw = linear_codec((16, 16, 1))
    a, b = (raw.decode(codec, latents / 0.7) for latents in (x, x[::-1]))
    expected = lpips_distance("alex", lpips, a, b) + pixels * jnp.abs(a - b).mean((1, 2, 3))
    (distance,) = seen
    np.testing.assert_allclose(distance(x, x[::-1]), expected, rtol=1e-5)
    # The gradient goes through the decoder to the network.
    gradient = jax.grad(lambda p: player.loss(p, *inputs)[0].mean())(params)
    norms = [float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)]
    assert np.isfinite(norms).all() and max(norms) > 0.0


def test_latents_of_one_channel_may_be_compared_as_they_are(latent_runs):
    *_, fields = latent_runs
    config = with_lpips(**fields, **{"objective.distance.decoded": False})
    with pytest.raises(ValueError, match=r"channels, not 4 x 4 x \d+, set its field decoded=True"):
        fixed_shapes(build(config))
    config.codec.update(name="pixels", fingerprint="", scale=(1.0,))
    experiment = build(config)
    assert experiment.objective.fixed == ("latent_lpips_alex:both.npz",)
    (shape,) = fixed_shapes(experiment).values()
    assert shape["conv_0"]["kernel"].shape == (3, 3, 3, 4)
    assert load_fixed(config, experiment.objective, None, make_mesh())


@pytest.mark.parametrize("decoded", [True, False])
def test_a_run_of_pixels_has_nothing_to_decode(decoded):
    with pytest.raises(ValueError, match="distance.decoded=.* is for latents, .* no codec.name"):
        build(with_lpips(**{"objective.distance.decoded": decoded}))


def test_a_classifier_takes_no_latents_as_they_are(latent_runs):
    fields = {"codec.name": "linear", "data.image_size": 16, "objective.distance.decoded": False}
    with pytest.raises(ValueError, match="distance.decoded=False: the classifier .* set it True"):
        build(perceptual(**fields))
    fields["objective.distance.decoded"] = True
    assert build(perceptual(**fields)).objective.fixed == ("classifier", "codec")
