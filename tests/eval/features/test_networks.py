import hashlib

import numpy as np
import pytest

from fewstep.data import Dataset
from fewstep.eval.features import networks as module
from fewstep.eval.features.classifier import Classifier
from fewstep.eval.features.networks import NETWORKS, check_feature_network, feature_network
from tests.training.runs import synthetic_split

DATASET = Dataset("synthetic", synthetic_split(), None, 10)
GIVEN = {"dataset": DATASET, "shape": (8, 8, 1)}


@pytest.fixture(autouse=True)
def no_weights(monkeypatch):
    for entry in NETWORKS.values():
        if entry.weights:
            monkeypatch.delenv(entry.weights.variable, raising=False)


def test_pixels_and_the_classifier_need_no_file(tmp_path, monkeypatch):
    assert feature_network("pixels", "", root=tmp_path, **GIVEN).dimension == 64
    asked = []
    trained = Classifier(module.pixel_features((8, 8, 1)), 0.9)
    monkeypatch.setattr(module, "classifier", lambda *given: asked.append(given) or trained)
    feature_network("classifier", "", root=tmp_path, **GIVEN)
    assert asked == [(DATASET, tmp_path, None)]


@pytest.mark.parametrize("name", ["inception", "dinov2"])
def test_weights_are_named_by_the_config_or_the_environment(tmp_path, monkeypatch, name):
    variable = NETWORKS[name].weights.variable
    instead = "use evaluate.features=classifier or pixels, or none"
    message = rf"{name} needs weights: get .*pth.*\${variable}.*{instead}"
    with pytest.raises(ValueError, match=message):
        check_feature_network(name, "")
    with pytest.raises(FileNotFoundError, match="no file /no/where, named by evaluate.weights"):
        check_feature_network(name, "/no/where")
    monkeypatch.setenv(variable, "/no/where")
    with pytest.raises(FileNotFoundError, match=rf"named by \${variable}. It should be"):
        check_feature_network(name, "")
    (tmp_path / "w.pth").write_bytes(b"weights")
    check_feature_network(name, str(tmp_path / "w.pth"))
    monkeypatch.setenv(variable, str(tmp_path / "w.pth"))
    check_feature_network(name, "")


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [("clip", "", "'clip' is not one of"), ("pixels", "w.pth", "does not use evaluate.weights")],
)
def test_what_does_not_exist_or_is_not_used_is_refused(name, weights, message):
    with pytest.raises(ValueError, match=message):
        check_feature_network(name, weights)


@pytest.mark.parametrize("name", ["inception", "dinov2"])
def test_a_file_is_known_by_its_hash(tmp_path, monkeypatch, name):
    path = tmp_path / "w.pth"
    path.write_bytes(b"weights")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    monkeypatch.setattr(module, "inception_params", lambda path: {})
    token = np.zeros(384)
    params = module.dinov2.Params(None, token, None, None, None)
    monkeypatch.setattr(module, "dinov2_params", lambda path: params)
    network = feature_network(name, str(path), root=tmp_path, **GIVEN)
    assert (network.name, network.weights, network.published) == (name, sha256, False)
    monkeypatch.setattr(module, "WEIGHTS_SHA256", sha256)
    monkeypatch.setitem(module.SIZES, 384, module.SIZES[384]._replace(sha256=sha256))
    assert feature_network(name, str(path), root=tmp_path, **GIVEN).published


def test_the_inception_score_is_of_logits_without_the_bias(tmp_path, monkeypatch):
    (tmp_path / "w.pth").write_bytes(b"")
    monkeypatch.setattr(module, "inception_params", lambda path: {})
    outputs = module.inception.InceptionOutputs("features", "logits", "without the bias")
    monkeypatch.setattr(module.inception, "apply", lambda params, images: outputs)
    network = feature_network("inception", str(tmp_path / "w.pth"), root=tmp_path, **GIVEN)
    assert network.apply({}, None) == ("features", "without the bias")


def test_an_entry_says_of_how_many_dimensions_its_features_are(tmp_path, monkeypatch):
    path = tmp_path / "w.pth"
    path.write_bytes(b"weights")
    monkeypatch.setattr(module, "inception_params", lambda path: {})
    made = {
        name: feature_network(
            name, str(path) if NETWORKS[name].weights else "", root=tmp_path, **GIVEN
        )
        for name in ("pixels", "inception")
    }
    for name, network in made.items():
        assert NETWORKS[name].dimension(GIVEN["shape"]) == network.dimension
    assert NETWORKS["dinov2"].dimension is None


def test_a_new_entry_is_made_of_what_it_needs(tmp_path, monkeypatch):
    path, given = tmp_path / "w.npz", []
    path.write_bytes(b"weights")
    entry = module.NetworkEntry(
        given.append, None, module.Weights("w.npz of its authors", "NEW_WEIGHTS")
    )
    monkeypatch.setitem(NETWORKS, "new", entry)
    monkeypatch.setenv("NEW_WEIGHTS", str(path))
    feature_network("new", "", root=tmp_path, **GIVEN)
    assert given == [(DATASET, (8, 8, 1), tmp_path, None, path)]
    monkeypatch.delenv("NEW_WEIGHTS")
    with pytest.raises(ValueError, match="get w.npz of its authors, .* or .NEW_WEIGHTS"):
        check_feature_network("new", "")
