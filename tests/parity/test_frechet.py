"""Our Fréchet distance on Inception features against torch-fidelity's network, with random weights.

Its network is another program's, from bytes to features: resize, layers, pooling. The distance is
computed here from the features themselves, by another formula than ours: for centred features A
[n, D] and B [m, D], tr (S_A S_B)^(1/2) is the sum of the singular values of
A B^T / sqrt((n - 1) (m - 1)).
"""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import fewstep
from tests.parity.test_inception import reference, torch, weights

pytestmark = pytest.mark.parity
__all__ = ["reference", "weights"]  # fixtures
FIDELITY = Path(sys.prefix) / "fidelity" / "torch_fidelity"  # where the Makefile puts it


@pytest.fixture
def inception(monkeypatch, weights):
    """torch-fidelity's Inception; its package would import torchvision."""
    if not FIDELITY.is_dir():
        pytest.skip("torch-fidelity is installed by `make parity`")
    package = ModuleType("torch_fidelity")
    package.__path__ = [str(FIDELITY)]
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    module = import_module("torch_fidelity.feature_extractor_inceptionv3")
    return module.FeatureExtractorInceptionV3("inception", ["2048"], str(weights))


def images(seed, low, high):
    """uint8 [40, 32, 32, 3], in blocks of 4 x 4 pixels, so that they are not noise alone."""
    coarse = np.random.default_rng(seed).integers(low, high, (40, 8, 8, 3), np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


def distance(a, b):
    """The squared Fréchet distance between normal distributions with the moments of a and b."""
    means = a.mean(0) - b.mean(0)
    a, b = (each - each.mean(0) for each in (a, b))
    n, m = len(a) - 1, len(b) - 1
    shared = np.linalg.svd(a @ b.T / np.sqrt(n * m), compute_uv=False).sum()
    return means @ means + (a**2).sum() / n + (b**2).sum() / m - 2 * shared


def test_the_distance_is_that_of_torch_fidelity_s_features(inception, weights, tmp_path):
    first, second = images(0, 0, 256), images(1, 60, 200)
    np.savez(tmp_path / "second.npz", arr_0=second)
    found = fewstep.evaluate(first, tmp_path / "second.npz", features="inception", weights=weights)
    assert found["metric"] == "fd-inception-40"  # not fid: other weights
    with torch.no_grad():
        features = [
            inception(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))[0].double().numpy()
            for x in (first, second)
        ]
    assert found["metrics"]["frechet"] == pytest.approx(distance(*features), rel=1e-3)
