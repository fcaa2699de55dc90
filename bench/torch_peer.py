"""Flow matching with the same DiT in PyTorch, optimized for speed.

    python -m bench.torch_peer '{"kind": "train", "size": "B", "batch_size": 256, "seconds": 5}'

Uses torch.compile, scaled_dot_product_attention, bfloat16 autocast over float32 weights, fused
AdamW and an EMA of the weights. Prints one line of JSON, like bench.measure.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.cases import CHANNELS, CLASSES, IMAGE_SIZE
from fewstep.models.dit import SIZES, DiTSize
from fewstep.models.layers import position_table

PATCH = 2
EMA_DECAY = 0.999
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1.0 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.ada = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.ada(functional.silu(c)).chunk(
            6, 1
        )
        qkv = self.qkv(modulate(self.norm(x), shift_1, scale_1))
        q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + gate_1[:, None] * self.proj(mixed)
        hidden = functional.gelu(
            self.fc1(modulate(self.norm(x), shift_2, scale_2)), approximate="tanh"
        )
        return x + gate_2[:, None] * self.fc2(hidden)


class DiT(nn.Module):
    """x: [B, C, H, W]. t: [B], in [0, 1]. label: [B]; `classes` is the null class."""

    def __init__(
        self,
        size: DiTSize,
        side: int = IMAGE_SIZE,
        channels: int = CHANNELS,
        classes: int = CLASSES,
    ):
        super().__init__()
        width = size.width
        self.shape, self.classes = (channels, side, side), classes
        self.side = side // PATCH
        self.x_embedder = nn.Conv2d(channels, width, kernel_size=PATCH, stride=PATCH)
        self.t_embedder = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.y_embedder = nn.Embedding(classes + 1, width)
        self.blocks = nn.ModuleList([Block(width, size.heads) for _ in range(size.depth)])
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.ada, self.linear = nn.Linear(width, 2 * width), nn.Linear(width, PATCH**2 * channels)
        table = torch.from_numpy(position_table(self.side, self.side, width))
        self.register_buffer("positions", table, persistent=False)
        frequencies = 10000.0 ** (-torch.arange(128, dtype=torch.float64) / 128)
        self.register_buffer("frequencies", frequencies.float(), persistent=False)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        tokens = self.x_embedder(x).flatten(2).transpose(1, 2) + self.positions
        angles = torch.outer(1000.0 * t, self.frequencies)
        features = torch.cat([torch.cos(angles), torch.sin(angles)], 1)
        c = self.t_embedder(features) + self.y_embedder(label)
        for block in self.blocks:
            tokens = block(tokens, c)
        shift, scale = self.ada(functional.silu(c)).chunk(2, 1)
        out = self.linear(modulate(self.norm(tokens), shift, scale)).float()
        out = out.view(-1, self.side, self.side, PATCH, PATCH, self.shape[0])
        return out.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def autocast(dtype: str) -> Any:
    return torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=dtype == "bfloat16")


def training_step(
    network: DiT, batch_size: int, dtype: str = "bfloat16", compiled: bool = True
) -> Callable[[], None]:
    """A function that makes a training step of flow matching, on one batch of random data."""
    average = [parameter.detach().clone() for parameter in network.parameters()]
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    data = torch.randn(batch_size, *network.shape, device=DEVICE)
    labels = torch.randint(network.classes, (batch_size,), device=DEVICE)

    def loss(x_0: Tensor, eps: Tensor, t: Tensor, label: Tensor) -> Tensor:
        with autocast(dtype):
            velocity = network(torch.lerp(x_0, eps, t[:, None, None, None]), t, label)
        return (velocity - (eps - x_0)).square().mean()

    loss_of = torch.compile(loss) if compiled else loss

    def step() -> None:
        dropped = torch.rand(batch_size, device=DEVICE) < 0.1
        label = torch.where(dropped, network.classes, labels)
        t = torch.rand(batch_size, device=DEVICE)
        loss_of(data, torch.randn_like(data), t, label).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch._foreach_lerp_(average, list(network.parameters()), 1.0 - EMA_DECAY)

    return step


def sampler(
    network: DiT, batch_size: int, steps: int, dtype: str = "bfloat16", compiled: bool = True
) -> Callable[[], Tensor]:
    """A function that draws a batch by Euler's method."""
    velocity = torch.compile(network.eval()) if compiled else network.eval()
    labels = torch.randint(network.classes, (batch_size,), device=DEVICE)

    @torch.inference_mode()
    def draw() -> Tensor:
        x = torch.randn(batch_size, *network.shape, device=DEVICE)
        for t in torch.linspace(1.0, 1.0 / steps, steps, device=DEVICE):
            with autocast(dtype):
                x = x - velocity(x, t.expand(batch_size), labels) / steps
        return x

    return draw


def train_in_torch(size: str, batch_size: int, seconds: float) -> dict[str, float]:
    """Speed and peak memory of a training step."""
    step = training_step(DiT(SIZES[size]).to(DEVICE), batch_size)
    return {**speed_and_memory(step, batch_size, seconds), "batch_size": batch_size}


def sample_in_torch(size: str, batch_size: int, seconds: float, steps: int) -> dict[str, float]:
    """Speed and peak memory of sampling by Euler's method."""
    draw = sampler(DiT(SIZES[size]).to(DEVICE), batch_size, steps)
    return {**speed_and_memory(draw, batch_size, seconds), "batch_size": batch_size}


def speed_and_memory(run: Callable[[], Any], batch_size: int, seconds: float) -> dict[str, float]:
    """Images per second over about `seconds`, after three warm-up runs; peak bytes of memory."""
    wait = torch.cuda.synchronize if DEVICE == "cuda" else lambda: None
    for _ in range(3):
        since = time.perf_counter()
        run()
        wait()
    count = max(1, int(seconds / (time.perf_counter() - since)))
    since = time.perf_counter()
    for _ in range(count):
        run()
    wait()
    speed = count * batch_size / (time.perf_counter() - since)
    peak = torch.cuda.max_memory_allocated() if DEVICE == "cuda" else 0
    return {"images_per_second": speed, "peak_bytes": peak}


if __name__ == "__main__":
    fields = json.loads(sys.argv[1])
    print(
        json.dumps(
            {"train": train_in_torch, "sample": sample_in_torch}[fields.pop("kind")](**fields)
        )
    )
