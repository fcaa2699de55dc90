import pytest

from fewstep.eval.features.feature_network import FeatureNetwork
from fewstep.eval.metrics.protocol import Protocol, check_comparable, measurement, short_count

INCEPTION = FeatureNetwork("inception", None, None, 2048, "6726", "resized", published=True)


def protocol(network=INCEPTION, samples=50_000, labels="none", **sampling):
    measured = measurement(
        network,
        rounding="to bytes",
        reference="digits, train split",
        reference_sha256="ab",
        samples=samples,
        labels=labels,
    )
    return Protocol(measured, {"steps": 1, "seed": 0, **sampling})


def test_only_published_inception_on_enough_samples_is_called_fid():
    assert protocol().metric == "fid-50k"
    assert protocol(samples=5000).metric == "fd-inception-5k"
    assert protocol(INCEPTION._replace(published=False)).metric == "fd-inception-50k"
    assert protocol(INCEPTION._replace(name="classifier")).metric == "fd-classifier-50k"
    assert Protocol({}, {}).metric == "samples"


def test_counts_are_short_where_that_is_exact():
    assert [short_count(n) for n in (24, 1000, 1500, 50_000)] == ["24", "1k", "1500", "50k"]


def test_the_id_changes_with_every_field():
    ids = {
        protocol().id,
        protocol(samples=50_001).id,
        protocol(labels="every class in turn").id,
        protocol(INCEPTION._replace(weights="6727")).id,
        protocol(INCEPTION._replace(preprocessing="cropped")).id,
        protocol(steps=2).id,
        protocol(seed=1).id,
        protocol(training_data="ab").id,
        protocol(training_data="cd").id,
    }
    assert len(ids) == 9
    assert protocol().id == protocol().id
    assert protocol().id.startswith("fid-50k-")


def test_the_order_of_fields_does_not_matter():
    a = protocol()
    turned = Protocol(dict(reversed(a.measurement.items())), dict(reversed(a.sampling.items())))
    assert turned.id == a.id


def test_measurements_that_differ_are_not_compared():
    ours, theirs = protocol(), protocol(INCEPTION._replace(weights="6727"), samples=5000)
    check_comparable({"a": ours.measurement, "b": protocol(steps=4, seed=3).measurement})
    with pytest.raises(ValueError, match="a and b were not measured alike") as error:
        check_comparable({"a": ours.measurement, "c": ours.measurement, "b": theirs.measurement})
    message = str(error.value)
    assert "weights (6726 / 6727)" in message and "samples (50000 / 5000)" in message
    assert "reference" not in message


def test_the_edges_of_names():
    assert protocol(samples=49_999).metric == "fd-inception-49999"
    assert [short_count(n) for n in (0, 999, 1001, 2000)] == ["0", "999", "1001", "2k"]
