"""LPIPS against the authors' network in PyTorch, transcribed, with the same random parameters.

Their package needs torchvision, whose builds do not load beside every build of PyTorch.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.models.lpips import convolutions, lpips_distance
from fewstep.weights.layouts.lpips import read_lpips

torch = pytest.importorskip("torch", reason="PyTorch is installed by `make parity`")

pytestmark = pytest.mark.parity

# torchvision's `features`: a number is the width of a convolution of 3 x 3, "pool" halves the side.
VGG = (64, 64, "pool", 128, 128, "pool", *(256,) * 3, "pool", *(512,) * 3, "pool", *(512,) * 3)
TAPS = {"vgg": (4, 9, 16, 23, 30), "alex": (2, 5, 8, 10, 12)}  # ends of the compared slices


def vgg_features():
    layers, inputs = [], 3
    for width in VGG:
        if width == "pool":
            layers.append(torch.nn.MaxPool2d(2, 2))
            continue
        layers += [torch.nn.Conv2d(inputs, width, 3, padding=1), torch.nn.ReLU()]
        inputs = width
    return torch.nn.Sequential(*layers)


def alex_features():
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 64, 11, stride=4, padding=2),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(3, 2),
        torch.nn.Conv2d(64, 192, 5, padding=2),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(3, 2),
        torch.nn.Conv2d(192, 384, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(384, 256, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(256, 256, 3, padding=1),
        torch.nn.ReLU(),
    )


def outputs(features, name, x):
    """The outputs of the slices, with channels of norm 1, of scaled images."""
    shift = torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[None, :, None, None]
    x, made = (x - shift) / scale, []
    for place, layer in enumerate(features, start=1):
        x = layer(x)
        if place in TAPS[name]:
            made.append(x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10))
    return made


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["vgg", "alex"])
def test_distances_are_those_of_the_authors_network(name, channels, tmp_path):
    torch.manual_seed(0)
    features = {"vgg": vgg_features, "alex": alex_features}[name]()
    a, b = np.random.default_rng(0).uniform(-1.0, 1.0, (2, 3, 40, 44, channels)).astype(np.float32)
    with torch.no_grad():
        pair = (torch.from_numpy(x).permute(0, 3, 1, 2).expand(-1, 3, -1, -1) for x in (a, b))
        one, other = (outputs(features, name, x) for x in pair)
        heads = [torch.rand(1, x.shape[1], 1, 1) for x in one]
        parts = zip(heads, one, other, strict=True)
        expected = sum((w * (x - y) ** 2).sum(1).mean((1, 2)) for w, x, y in parts).numpy()
    backbone, learned = tmp_path / "backbone.pth", tmp_path / "heads.pth"
    torch.save({f"features.{k}": v for k, v in features.state_dict().items()}, backbone)
    torch.save({f"lin{i}.model.1.weight": w for i, w in enumerate(heads)}, learned)
    params = read_lpips([backbone, learned], convolutions(name))
    given = lpips_distance(name, params, jnp.asarray(a), jnp.asarray(b))
    difference = np.abs(given - expected).max() / expected.max()
    print(f"{name}: relative difference {difference:.1e}")
    assert difference < 1e-5
