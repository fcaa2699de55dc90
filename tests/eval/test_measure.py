import inspect

import numpy as np
import pytest

from fewstep.data import Dataset, Split
from fewstep.data.density_points import density_dataset, density_space
from fewstep.data.spaces.pixels import ROUNDING, pixel_space
from fewstep.eval import measure as module
from fewstep.eval import reference
from fewstep.eval.features.feature_network import (
    FeatureNetwork,
    FeatureOutputs,
    extractor,
    pixel_features,
)
from fewstep.eval.measure import Measures, bias_warnings, load_measures, measure, real_image_metrics
from fewstep.eval.metrics.frechet import frechet_distance, statistics
from fewstep.eval.metrics.protocol import measurement
from fewstep.eval.reference import load_reference
from fewstep.training.sharding import make_mesh
from tests.training.runs import small_config, synthetic_split

NETWORK = pixel_features((8, 8, 1))
SPLIT = synthetic_split(400)
TRAIN, HELD_OUT = (
    Split(SPLIT.images[part], SPLIT.labels[part]) for part in (slice(250), slice(250, 400))
)


@pytest.fixture(scope="module")
def measures(tmp_path_factory):
    """Pixels against all 400 images, with a classifier that reads the label off a first pixel."""
    dataset = Dataset("synthetic", TRAIN, HELD_OUT, 10)
    extract = extractor(NETWORK, make_mesh(), 64)
    protocol = measurement(
        NETWORK, rounding="", reference="", reference_sha256="", samples=125, labels=""
    )
    root = tmp_path_factory.mktemp("root")
    real = load_reference("all", dataset, NETWORK, extract, protocol, root)

    def classify(images):
        return None, np.eye(256)[images[:, 0, 0, 0]]

    return Measures(extract, classify, 0.75, real, protocol)


def in_batches(images, size=60):
    return (images[start : start + size] for start in range(0, len(images), size))


def test_real_images_measured_against_themselves(measures):
    metrics = measure(in_batches(SPLIT.images), SPLIT.labels, measures)
    assert metrics["precision"] == metrics["recall"] == metrics["coverage"] == 1.0
    assert metrics["frechet"] < 1e-6 < measures.real.floor
    assert metrics["kernel"] < 3.0 * metrics["kernel_error"]
    expected = np.mean(SPLIT.images[:, 0, 0, 0] == SPLIT.labels)
    assert metrics["agreement"] == pytest.approx(expected)
    noise = np.zeros_like(SPLIT.images)
    noise[:, :4] = 255
    far = measure(in_batches(noise), SPLIT.labels, measures)
    assert far["frechet"] > 10 * measures.real.floor
    assert far["kernel"] > 30.0 * far["kernel_error"] and far["coverage"] == 0.0


def test_every_sample_counts_once_in_the_distance(measures):
    images = HELD_OUT.images[:130]
    direct = statistics(images.reshape(130, -1) / 127.5 - 1.0)
    metrics = measure(in_batches(images), HELD_OUT.labels[:130], measures)
    expected = frechet_distance(direct, measures.real.statistics)
    assert metrics["frechet"] == pytest.approx(expected, rel=1e-5)


def test_copies_of_training_images_are_nearer_than_held_out_ones(measures):
    copies = measure(in_batches(TRAIN.images), TRAIN.labels, measures)
    assert copies["closer"] == 1.0
    new = measure(in_batches(HELD_OUT.images), HELD_OUT.labels, measures)
    assert new["closer"] < 0.02


def test_costly_metrics_use_a_part_of_all_samples(measures, monkeypatch):
    """Images of others often come in the order of their classes."""
    monkeypatch.setattr(reference, "LARGEST_NEIGHBOURHOOD", 200)
    images = np.concatenate([TRAIN.images, np.zeros_like(TRAIN.images)])
    metrics = measure(in_batches(images), np.zeros(len(images), int), measures)
    assert metrics["closer"] == pytest.approx(0.5, abs=0.1)
    assert metrics["precision"] == pytest.approx(0.5, abs=0.1)


def test_logits_of_the_features_give_the_inception_score(measures):
    def apply(_, images):
        flat = images.reshape(len(images), -1) / 255.0
        classes = images[:, 0, 0, :1] % 10 == np.arange(10)
        return FeatureOutputs(flat, 50.0 * classes)

    network = FeatureNetwork("made", None, apply, 64, "", "")
    scoring = measures._replace(extract=extractor(network, make_mesh(), 64))
    images = SPLIT.images.copy()
    images[:, 0, 0, 0] = np.arange(400) % 10
    score = measure(in_batches(images), SPLIT.labels, scoring)["inception_score"]
    assert 8.5 < score < 10.0
    assert "inception_score" not in measure(in_batches(images), SPLIT.labels, measures)


def test_metrics_that_need_images_are_left_out_if_only_statistics_are_known(measures):
    none = np.empty((0, 64), np.float32)
    real = measures.real._replace(neighbourhood=none, train=none, held_out=none, floor=np.nan)
    bare = measures._replace(real=real, classify=None, accuracy=None)
    assert set(measure(in_batches(SPLIT.images), SPLIT.labels, bare)) == {"frechet"}
    assert real_image_metrics(bare) == {}
    assert real_image_metrics(measures) == {"frechet": measures.real.floor, "agreement": 0.75}


def test_fewer_samples_than_dimensions_give_a_warning(measures):
    few = measures._replace(measurement={**measures.measurement, "samples": 64})
    (warning,) = bias_warnings(few)
    assert "64 samples" in warning and "biased upwards" in warning
    scarce = measures.real.statistics._replace(count=64)
    (warning,) = bias_warnings(measures._replace(real=measures.real._replace(statistics=scarce)))
    assert "64 real images" in warning
    assert bias_warnings(measures) == []


def test_the_classifier_is_trained_where_it_is_asked_for(tmp_path, monkeypatch):
    fields = small_config().evaluate
    trained = []

    def classifier(dataset, root, read_only):
        trained.append(dataset.name)
        return NETWORK._replace(name="classifier", weights="abc"), 0.9

    monkeypatch.setattr(module, "classifier", classifier)
    dataset = Dataset("synthetic", TRAIN, HELD_OUT, 10)
    given = {
        "samples": 70,
        "labels": "in words",
        "space": pixel_space((8, 8, 1)),
        "root": tmp_path,
        "mesh": make_mesh(),
    }
    without = load_measures(fields, dataset, num_classes=10, **given)
    assert without.classify is None and not trained
    fields.agreement = True
    assert load_measures(fields, dataset, num_classes=0, **given).classify is None
    measures = load_measures(fields, dataset, num_classes=10, **given)
    assert trained == ["synthetic"] and measures.accuracy == 0.9
    assert measures.classify is not measures.extract
    assert measures.measurement["labels"] == "in words"
    assert measures.measurement["agreement"] == "abc" != without.measurement["agreement"]
    assert measures.measurement["reference"] == "synthetic, train split"


def test_of_points_of_a_density_the_floor_and_the_prior_are_known(tmp_path):
    points = density_dataset("gmm9")
    few = points._replace(train=Split(*(part[:1000] for part in points.train)), test=None)
    known = load_measures(
        small_config("dis", **{"evaluate.features": "points"}).evaluate,
        few,
        space=density_space("gmm9"),
        num_classes=0,
        samples=400,
        labels="none",
        root=tmp_path,
        mesh=make_mesh(),
    ).known
    assert known["prior"]["wasserstein_1"] > 2 * known["real"]["wasserstein_1"]


def test_every_field_reaches_the_function_that_needs_it(monkeypatch, tmp_path):
    """Recorders replace the functions that make the measures; no two arguments are equal."""
    given, mesh = {}, make_mesh()

    def note(name, result=None):
        made = inspect.signature(getattr(module, name))

        def noted(*arguments, **named):
            given.setdefault(name, []).append(made.bind(*arguments, **named).arguments)
            return result or f"{name} {len(given[name])}"

        monkeypatch.setattr(module, name, noted)

    features = NETWORK._replace(name="features")
    labelling = NETWORK._replace(name="labelling", weights="its weights")
    note("feature_network", features)
    note("classifier", (labelling, 0.9))
    for name in (
        "extractor",
        "reference_name",
        "reference_sha256",
        "measurement",
        "load_reference",
    ):
        note(name)
    fields = small_config(
        **{
            "evaluate.features": "features",
            "evaluate.weights": "file",
            "evaluate.reference": "test",
            "evaluate.agreement": True,
            "evaluate.batch_size": 24,
        }
    ).evaluate
    dataset, shape = Dataset("made", TRAIN, HELD_OUT, 10), (8, 8, 1)
    made = load_measures(
        fields,
        dataset,
        space=pixel_space(shape),
        num_classes=10,
        samples=70,
        labels="in words",
        root=tmp_path,
        mesh=mesh,
        read_only=tmp_path / "own",
    )
    kept = {"root": tmp_path, "read_only": tmp_path / "own"}
    of = {"reference": "test", "dataset": dataset}
    protocol = {
        "network": features,
        "rounding": ROUNDING,
        "reference": "reference_name 1",
        "reference_sha256": "reference_sha256 1",
        "samples": 70,
        "labels": "in words",
        "agreement": "its weights",
    }
    network = {"name": "features", "weights": "file", "dataset": dataset, "shape": shape}
    parts = {"network": features, "extract": "extractor 1", "measurement": "measurement 1"}
    assert given == {
        "feature_network": [network | kept],
        "classifier": [{"dataset": dataset, **kept}],
        "extractor": [
            {"network": own, "mesh": mesh, "batch_size": 24} for own in (features, labelling)
        ],
        "reference_name": [of],
        "reference_sha256": [of],
        "measurement": [protocol],
        "load_reference": [{**of, **parts, **kept}],
    }
    expected = Measures("extractor 1", "extractor 2", 0.9, "load_reference 1", "measurement 1")
    assert made == expected
