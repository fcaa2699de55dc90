"""A PyTorch transcription of the published DiT, with the names of its published files.

It follows Peebles & Xie 2023 (arXiv:2212.09748) and the layers of timm that it builds on: a strided
convolution for the patches, images [B, C, H, W], integer-like times up to 1000, and the null class
as label `classes`. SiT has the same network, called at times in [0, 1].
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is installed by `make parity`")
nn = torch.nn


def modulate(x, shift, scale):
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def modulation(width, count):
    return nn.Sequential(nn.SiLU(), nn.Linear(width, count * width))


class PatchEmbed(nn.Module):
    def __init__(self, channels, patch, width):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class TimestepEmbedder(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time):
        exponent = -torch.arange(128, dtype=time.dtype) / 128
        angles = torch.outer(time, torch.exp(exponent * np.log(10000.0)))
        return self.mlp(torch.cat([torch.cos(angles), torch.sin(angles)], dim=1))


class LabelEmbedder(nn.Module):
    def __init__(self, classes, width):
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, label):
        return self.embedding_table(label)


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


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.act = nn.GELU(approximate="tanh")

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class DiTBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, heads)
        self.mlp = Mlp(width)
        self.adaLN_modulation = modulation(width, 6)

    def forward(self, x, c):
        ada = self.adaLN_modulation(c).chunk(6, dim=1)
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = ada
        h = self.attn(modulate(self.norm(x), shift_attn, scale_attn))
        x = x + gate_attn.unsqueeze(1) * h
        h = self.mlp(modulate(self.norm(x), shift_mlp, scale_mlp))
        return x + gate_mlp.unsqueeze(1) * h


class FinalLayer(nn.Module):
    def __init__(self, width, outputs):
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = modulation(width, 2)

    def forward(self, x, c):
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class DiT(nn.Module):
    """variance: whether the output has as many channels more, which the published file predicts."""

    def __init__(self, side, channels, classes, patch, size, variance=False):
        super().__init__()
        self.patch, self.side, self.channels = patch, side // patch, channels
        self.outputs = 2 * channels if variance else channels
        width = size.width
        self.x_embedder = PatchEmbed(channels, patch, width)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(classes, width)
        self.pos_embed = nn.Parameter(self.positions(width)[None], requires_grad=False)
        self.blocks = nn.ModuleList([DiTBlock(width, size.heads) for _ in range(size.depth)])
        self.final_layer = FinalLayer(width, patch * patch * self.outputs)

    def positions(self, width):
        """The grid has the width first, so the first half of a position is its column."""
        axis = np.arange(self.side, dtype=np.float64)
        grid_w, grid_h = np.meshgrid(axis, axis)
        half = []
        for grid in (grid_w, grid_h):
            omega = 1.0 / 10000 ** (np.arange(width // 4) / (width / 4.0))
            out = np.einsum("m,d->md", grid.reshape(-1), omega)
            half.append(np.concatenate([np.sin(out), np.cos(out)], axis=1))
        return torch.from_numpy(np.concatenate(half, axis=1)).float()

    def forward(self, x, time, label):
        tokens = self.x_embedder(x) + self.pos_embed
        c = self.t_embedder(time) + self.y_embedder(label)
        for block in self.blocks:
            tokens = block(tokens, c)
        out = self.final_layer(tokens, c)
        out = out.view(-1, self.side, self.side, self.patch, self.patch, self.outputs)
        out = torch.einsum("nhwpqc->nchpwq", out)
        out = out.reshape(-1, self.outputs, self.side * self.patch, self.side * self.patch)
        return out[:, : self.channels]


def randomize(model, seed):
    """Draws normal weights over the root of their fan-in, and biases of deviation 0.3."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                fan_in = parameter[0].numel() if parameter.ndim > 1 else 1.0 / 0.3**2
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    return model


def to_torch(x, dtype=torch.float32):
    """Images [B, H, W, C] as a tensor [B, C, H, W]."""
    return torch.from_numpy(np.asarray(x)).permute(0, 3, 1, 2).to(dtype)


def from_torch(x):
    """A tensor [B, C, H, W] as float32 images [B, H, W, C]."""
    return x.detach().permute(0, 2, 3, 1).to(torch.float32).numpy()
