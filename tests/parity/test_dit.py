"""Our DiT against an independent PyTorch transcription of the published architecture.

The reference follows Peebles & Xie 2023 (arXiv:2212.09748) and the layers of timm that it builds
on: a strided convolution for the patches, images [B, C, H, W], integer-like times up to 1000, and
the null class as label `num_classes`. Every weight and bias is random, so that no zero hides one.
Both sides leave out the variance channels.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.models.dit import SIZES, dit

torch = pytest.importorskip("torch", reason="PyTorch is installed by `make parity`")
nn = torch.nn

pytestmark = pytest.mark.parity

CHANNELS, CLASSES, BATCH = 4, 10, 4
CASES = [("nano", 8, 2), ("micro", 16, 4), ("S", 8, 2)]


def modulate(x, shift, scale):
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class TimestepEmbedder(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time):
        exponent = -torch.arange(128, dtype=time.dtype) / 128
        angles = torch.outer(time, torch.exp(exponent * np.log(10000.0)))
        return self.mlp(torch.cat([torch.cos(angles), torch.sin(angles)], dim=1))


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        weights = ((q @ k.transpose(-2, -1)) / (width // self.heads) ** 0.5).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class DiTBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, heads)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.act = nn.GELU(approximate="tanh")
        self.ada = nn.Linear(width, 6 * width)

    def forward(self, x, c):
        ada = self.ada(nn.functional.silu(c)).chunk(6, dim=1)
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = ada
        h = self.attn(modulate(self.norm(x), shift_attn, scale_attn))
        x = x + gate_attn.unsqueeze(1) * h
        h = self.fc2(self.act(self.fc1(modulate(self.norm(x), shift_mlp, scale_mlp))))
        return x + gate_mlp.unsqueeze(1) * h


class DiT(nn.Module):
    def __init__(self, image_size, patch, size):
        super().__init__()
        width = size.width
        self.patch, self.side, self.width = patch, image_size // patch, width
        self.x_embedder = nn.Conv2d(CHANNELS, width, kernel_size=patch, stride=patch)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = nn.Embedding(CLASSES + 1, width)
        self.blocks = nn.ModuleList([DiTBlock(width, size.heads) for _ in range(size.depth)])
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.ada = nn.Linear(width, 2 * width)
        self.linear = nn.Linear(width, patch * patch * CHANNELS)

    def positions(self, dtype):
        """The grid has the width first, so the first half of a position is its column."""
        axis = np.arange(self.side, dtype=np.float64)
        grid_w, grid_h = np.meshgrid(axis, axis)
        half = []
        for grid in (grid_w, grid_h):
            omega = 1.0 / 10000 ** (np.arange(self.width // 4) / (self.width / 4.0))
            out = np.einsum("m,d->md", grid.reshape(-1), omega)
            half.append(np.concatenate([np.sin(out), np.cos(out)], axis=1))
        return torch.from_numpy(np.concatenate(half, axis=1)).to(dtype)

    def forward(self, x, time, label):
        tokens = self.x_embedder(x).flatten(2).transpose(1, 2) + self.positions(x.dtype)
        c = self.t_embedder(time) + self.y_embedder(label)
        for block in self.blocks:
            tokens = block(tokens, c)
        shift, scale = self.ada(nn.functional.silu(c)).chunk(2, dim=1)
        out = self.linear(modulate(self.norm(tokens), shift, scale))
        out = out.view(-1, self.side, self.side, self.patch, self.patch, CHANNELS)
        out = torch.einsum("nhwpqc->nchpwq", out)
        return out.reshape(-1, CHANNELS, self.side * self.patch, self.side * self.patch)


def randomize(model, seed):
    """Draws normal weights over the root of their fan-in, and biases of deviation 0.3."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1.0 / 0.3**2
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    assert all(bool(torch.any(parameter != 0)) for parameter in model.parameters())


def array(tensor):
    return tensor.detach().to(torch.float32).numpy()


def affine(layer):
    return {"kernel": array(layer.weight).T, "bias": array(layer.bias)}


def convert(model):
    """The parameters of the reference as a tree of ours."""
    conv = array(model.x_embedder.weight).transpose(2, 3, 1, 0)
    blocks = {
        f"block_{index}": {
            "modulation": affine(block.ada),
            "attention": {"qkv": affine(block.attn.qkv), "projection": affine(block.attn.proj)},
            "mlp": {"expand": affine(block.fc1), "contract": affine(block.fc2)},
        }
        for index, block in enumerate(model.blocks)
    }
    return blocks | {
        "patch_embedding": {
            "kernel": conv.reshape(-1, model.width),
            "bias": array(model.x_embedder.bias),
        },
        "conditioning": {
            "time_embedder": {
                "hidden": affine(model.t_embedder.mlp[0]),
                "output": affine(model.t_embedder.mlp[2]),
            },
            "label_table": array(model.y_embedder.weight),
        },
        "final": {"modulation": affine(model.ada), "output": affine(model.linear)},
    }


@pytest.mark.parametrize(("size", "image_size", "patch"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_equal_to_the_published_architecture(size, image_size, patch, dtype):
    model = DiT(image_size, patch, SIZES[size]).to(dtype)
    randomize(model, seed=0)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((BATCH, image_size, image_size, CHANNELS)).astype(np.float32)
    t = np.array([0.0, 0.137, 0.5, 0.999], np.float32)
    label = np.array([0, 7, CLASSES - 1, -1], np.int32)

    network = dit((image_size, image_size, CHANNELS), CLASSES, size=size, patch_size=patch)
    params = convert(model)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
    ours = jax.jit(network.apply)(params, x, t, t, {"label": jnp.asarray(label)})

    with torch.no_grad():
        reference = model(
            torch.from_numpy(x).permute(0, 3, 1, 2).to(dtype),
            torch.from_numpy(t * np.float32(1000.0)).to(dtype),
            torch.from_numpy(np.where(label < 0, CLASSES, label)).long(),
        )
    reference = array(reference.permute(0, 2, 3, 1))
    difference = np.abs(ours - reference).max()
    print(f"max abs difference {difference:.1e}, output std {reference.std():.2f}")
    assert reference.std() > 0.5
    assert difference < 1e-4
