"""Our DINOv2 against a transcription of the published architecture in plain PyTorch.

The reference follows Oquab et al. 2023 (arXiv:2304.07193) and the layers of ViT, in float64: a
strided convolution for the patches, positions taken from 37 x 37 to 16 x 16 by PyTorch's own
bicubic interpolation at the published scale factor of (16 + 0.1) / 37. Weights are random, in the
published names and shapes; images are resized by Pillow, and our resize also meets PyTorch's.
"""

import chex
import jax
import numpy as np
import pytest
from PIL import Image

from fewstep.eval.features.dinov2 import apply, resize_bicubic
from fewstep.eval.features.dinov2_weights import dinov2_params

torch = pytest.importorskip("torch", reason="PyTorch is installed by `make parity`")
nn, functional = torch.nn, torch.nn.functional

pytestmark = pytest.mark.parity

WIDTH, DEPTH, HEADS = 384, 12, 6  # ViT-S
TOLERANCE = 5e-5  # of the standard deviation of the reference


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        parts = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        x = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(2))


class LayerScale(nn.Module):
    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        return x * self.gamma


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, 4 * WIDTH)
        self.fc2 = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        return self.fc2(functional.gelu(self.fc1(x)))


class TransformerBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6), nn.LayerNorm(WIDTH, eps=1e-6)
        self.attn, self.mlp = Attention(), MLP()
        self.ls1, self.ls2 = LayerScale(), LayerScale()

    def forward(self, x):
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Conv2d(3, WIDTH, kernel_size=14, stride=14)


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + 37 * 37, WIDTH))
        self.mask_token = nn.Parameter(torch.zeros(1, WIDTH))
        self.patch_embed = PatchEmbedding()
        self.blocks = nn.ModuleList([TransformerBlock() for _ in range(DEPTH)])
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def positions(self):
        table = self.pos_embed[:, 1:].unflatten(1, (37, 37)).permute(0, 3, 1, 2)
        scale = (16 + 0.1) / 37
        table = functional.interpolate(table, scale_factor=(scale, scale), mode="bicubic")
        assert table.shape[2:] == (16, 16)
        return torch.cat([self.pos_embed[:, :1], table.flatten(2).transpose(1, 2)], dim=1)

    def forward(self, x):
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], dtype=x.dtype)
        x = (x / 255 - mean[:, None, None]) / std[:, None, None]
        patches = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), patches], dim=1) + self.positions()
        for layer in self.blocks:
            x = layer(x)
        return self.norm(x)[:, 0]


def randomize(model, seed):
    """Weights over the root of their fan-in, attention sharp enough to choose, no term hidden."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("gamma"):
                noise = 0.6 + 0.3 * noise
            elif parameter.ndim == 1 and "norm" in name and name.endswith("weight"):
                noise = 1.0 + 0.3 * noise
            elif parameter.ndim in (2, 4):
                noise = noise / parameter[0].numel() ** 0.5
            else:
                noise = 0.3 * noise
            parameter.copy_(2.0 * noise if "qkv" in name else noise)
    return model.eval()


@pytest.fixture(scope="module")
def reference():
    return randomize(Reference(), seed=0)


@pytest.fixture(scope="module")
def weights(reference, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "dinov2.pth"
    torch.save(reference.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def params(weights):
    return dinov2_params(weights)


def random_images(size, seed):
    """Three images: noise, blocks of random colours, and a ramp with a little noise."""
    rng = np.random.default_rng(seed)
    rows, columns = (np.arange(side) * 8 // side for side in size)
    blocks = rng.integers(0, 256, (8, 8, 3))[rows][:, columns]
    ramp = np.linspace(40, 200, size[0])[:, None, None] + rng.integers(-20, 21, (*size, 3))
    return np.stack([rng.integers(0, 256, (*size, 3)), blocks, ramp.round()]).astype(np.uint8)


def pillow(images):
    """Bicubic on bytes, as the published evaluation: [N, H, W, 3] -> [N, 3, 224, 224]."""
    resized = [Image.fromarray(x).resize((224, 224), Image.Resampling.BICUBIC) for x in images]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)


def interpolate(images):
    """PyTorch's antialiased bicubic, left in floating point: [N, H, W, 3] -> [N, 3, 224, 224]."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).double()
    return functional.interpolate(x, size=(224, 224), mode="bicubic", antialias=True)


def evaluate(reference, resized):
    with torch.no_grad():
        features = reference.double()(resized.double())
    reference.float()
    return features.numpy()


def error(actual, expected):
    return np.abs(actual - expected).max() / expected.std()


@pytest.mark.parametrize("size", [(32, 32), (224, 224), (256, 320)])
def test_equal_to_the_published_architecture(size, reference, params):
    images = random_images(size, seed=1)
    ours = np.asarray(jax.jit(apply)(params, images))
    expected = evaluate(reference, pillow(images))
    floats = evaluate(reference, interpolate(images))
    contrast = np.abs(expected[0] - expected[1]).mean() / expected.std()
    print(
        f"error {error(ours, expected):.1e}, of a resize on floats {error(floats, expected):.1e}; "
        f"deviation {expected.std():.2f}, contrast {contrast:.2f}"
    )
    assert 0.1 < expected.std() < 10.0
    assert contrast > 0.1
    assert ours.shape == (3, WIDTH) and ours.dtype == np.float32
    assert error(ours, expected) < TOLERANCE


@pytest.mark.parametrize("size", [(28, 28), (64, 48), (256, 320), (640, 480)])
def test_resized_as_pytorch_but_for_rounding(size):
    """Noise of little contrast, so that nothing is cut: one half, and one half through weights.

    The absolute weights of a cubic convolution sum to 1.25 at most.
    """
    images = np.random.default_rng(3).integers(80, 176, (2, *size, 3), np.uint8)
    ours = torch.from_numpy(np.array(resize_bicubic(images))).permute(0, 3, 1, 2)
    difference = (ours - interpolate(images)).abs().max().item()
    print(f"largest difference {difference:.3f} of 255")
    assert difference < 0.5 + 0.5 * 1.25 + 1e-3


def test_positions_as_pytorch_interpolates_them(reference, params):
    with torch.no_grad():
        expected = reference.double().positions()[0].numpy()
    reference.float()
    print(f"positions differ by {error(params.positions, expected):.1e} of their deviation")
    assert error(params.positions, expected) < 1e-6


def test_the_older_format_gives_the_same_parameters(reference, params, tmp_path):
    path = tmp_path / "older.pth"
    torch.save(reference.state_dict(), path, _use_new_zipfile_serialization=False)
    chex.assert_trees_all_equal(dinov2_params(path), params)
