"""PyTorch transcriptions of EDM's U-Nets and sampler, with the names of its files.

They follow the papers: DDPM++ and NCSN++ (Song et al. 2021, arXiv:2011.13456), ADM (Dhariwal &
Nichol 2021, arXiv:2105.05233), and EDM's preconditioning and algorithm 1 (Karras et al. 2022,
arXiv:2206.00364). Images are [B, C, H, W], labels one-hot, and the null class zeros.
"""

import numpy as np

from tests.parity.transcription import nn, torch

F = torch.nn.functional


class Resampled(nn.Module):
    """A convolution of an image that is halved or doubled; of kernel 0, the image alone."""

    def __init__(self, inputs, outputs, kernel, change="", taps=(1, 1), late=False):
        super().__init__()
        self.change, self.late = change, late
        if kernel:
            self.weight = nn.Parameter(torch.zeros(outputs, inputs, kernel, kernel))
            self.bias = nn.Parameter(torch.zeros(outputs))
        if change:
            taps = torch.tensor(taps, dtype=torch.float32)
            self.register_buffer(
                "resample_filter", torch.outer(taps, taps)[None, None] / taps.sum() ** 2
            )

    def resample(self, x, pad):
        filters = self.resample_filter.to(x.dtype).expand(x.shape[1], 1, -1, -1)
        if self.change == "down":
            return F.conv2d(x, filters, stride=2, padding=pad, groups=x.shape[1])
        return F.conv_transpose2d(x, 4 * filters, stride=2, padding=pad, groups=x.shape[1])

    def forward(self, x):
        pad = self.resample_filter.shape[-1] // 2 - 1 if self.change else 0
        if self.change and not self.late:
            x = self.resample(x, pad)
        if not hasattr(self, "weight"):
            return x
        border = self.weight.shape[-1] // 2
        if not self.late:
            return F.conv2d(x, self.weight, self.bias, padding=border)
        return self.resample(F.conv2d(x, self.weight, self.bias, padding=border + pad), 0)


def group_norm(channels, epsilon):
    return nn.GroupNorm(min(32, channels // 4), channels, eps=epsilon)


class Block(nn.Module):
    def __init__(self, inputs, outputs, embedding, kind, attention=False, change=""):
        super().__init__()
        self.adm = kind == "adm"
        epsilon, self.scale = (1e-5, 1.0) if self.adm else (1e-6, 0.5**0.5)
        taps = (1, 3, 3, 1) if kind == "ncsnpp" else (1, 1)
        self.inputs, self.outputs = inputs, outputs
        self.norm0 = group_norm(inputs, epsilon)
        self.conv0 = Resampled(inputs, outputs, 3, change, taps)
        self.affine = nn.Linear(embedding, 2 * outputs if self.adm else outputs)
        self.norm1 = group_norm(outputs, epsilon)
        self.conv1 = Resampled(outputs, outputs, 3)
        if inputs != outputs or change:
            kernel = 1 if inputs != outputs or not self.adm else 0
            self.skip = Resampled(inputs, outputs, kernel, change, taps)
        self.heads = 0
        if attention:
            self.heads = max(1, outputs // 64) if self.adm else 1
            self.norm2 = group_norm(outputs, epsilon)
            self.qkv = Resampled(outputs, 3 * outputs, 1)
            self.proj = Resampled(outputs, outputs, 1)

    def forward(self, x, c):
        h = self.conv0(F.silu(self.norm0(x)))
        shift = self.affine(c)[:, :, None, None]
        if self.adm:
            scale, shift = shift.chunk(2, dim=1)
            h = self.norm1(h) * (1 + scale) + shift
        else:
            h = self.norm1(h + shift)
        h = self.conv1(F.silu(h))
        x = (h + (self.skip(x) if hasattr(self, "skip") else x)) * self.scale
        return (x + self.attend(x)) * self.scale if self.heads else x

    def attend(self, x):
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm2(x)).view(batch, self.heads, channels // self.heads, 3, -1)
        q, k, v = qkv.unbind(3)
        weights = (q.transpose(-2, -1) @ k / (channels // self.heads) ** 0.5).softmax(-1)
        return self.proj((v @ weights.transpose(-2, -1)).reshape(batch, channels, height, width))


class Frequencies(nn.Module):
    def __init__(self, count):
        super().__init__()
        self.register_buffer("freqs", torch.from_numpy(random_frequencies(count)))


def random_frequencies(count):
    return (16 * np.random.default_rng(2).standard_normal(count)).astype(np.float32)


class UNet(nn.Module):
    """kind: "ddpmpp", "ncsnpp" or "adm"."""

    def __init__(self, kind, side, channels, classes, width, multipliers, depth, attention_sides):
        super().__init__()
        self.kind, self.side, self.width = kind, side, width
        adm, embedding = kind == "adm", 4 * width
        features = 2 * width if kind == "ncsnpp" else width
        if kind == "ncsnpp":
            self.map_noise = Frequencies(width)
        if classes:
            outputs = embedding if adm else features
            self.map_label = nn.Linear(classes, outputs, bias=not adm)
        self.map_augment = nn.Linear(9, features, bias=False)
        self.map_layer0, self.map_layer1 = (
            nn.Linear(features, embedding),
            nn.Linear(embedding, embedding),
        )

        def block(inputs, outputs, attention=False, change=""):
            return Block(inputs, outputs, embedding, kind, attention, change)

        enc, dec, now = {}, {}, width * multipliers[0] if adm else width
        enc[f"{side}x{side}_conv"] = Resampled(channels, now, 3)
        skips, rest = [now], channels
        for level, times in enumerate(multipliers):
            at, attends = f"{side >> level}x{side >> level}", side >> level in attention_sides
            if level:
                enc[f"{at}_down"] = block(now, now, change="down")
                if kind == "ncsnpp":
                    smooth = {"change": "down", "taps": (1, 3, 3, 1), "late": True}
                    enc[f"{at}_aux_residual"] = Resampled(rest, now, 3, **smooth)
                    rest = now
                skips.append(now)
            for index in range(depth):
                enc[f"{at}_block{index}"] = block(now, width * times, attends)
                skips.append(now := width * times)
        for level, times in reversed([*enumerate(multipliers)]):
            at, attends = f"{side >> level}x{side >> level}", side >> level in attention_sides
            if level == len(multipliers) - 1:
                dec[f"{at}_in0"], dec[f"{at}_in1"] = block(now, now, True), block(now, now)
            else:
                dec[f"{at}_up"] = block(now, now, change="up")
            for index in range(depth + 1):
                own = attends and (adm or index == depth)
                dec[f"{at}_block{index}"] = block(now + skips.pop(), width * times, own)
                now = width * times
        if adm:
            self.out_norm, self.out_conv = group_norm(now, 1e-5), Resampled(now, channels, 3)
        else:
            dec[f"{at}_aux_norm"] = group_norm(now, 1e-6)
            dec[f"{at}_aux_conv"] = Resampled(now, channels, 3)
        self.enc, self.dec = nn.ModuleDict(enc), nn.ModuleDict(dec)

    def embedding(self, time, labels):
        half = self.width if self.kind == "ncsnpp" else self.width // 2
        if self.kind == "ncsnpp":
            angles = torch.outer(time, 2 * np.pi * self.map_noise.freqs.to(time.dtype))
        else:
            last = half if self.kind == "adm" else half - 1
            exponent = -torch.arange(half, dtype=time.dtype) / last
            angles = torch.outer(time, 10000.0**exponent)
        sines = [angles.cos(), angles.sin()]
        c = torch.cat(sines if self.kind == "adm" else sines[::-1], dim=1)
        if self.kind != "adm" and labels is not None:
            c = c + self.map_label(labels * labels.shape[1] ** 0.5)
        c = self.map_layer1(F.silu(self.map_layer0(c)))
        if self.kind == "adm" and labels is not None:
            c = c + self.map_label(labels)
        return F.silu(c)

    def forward(self, x, time, labels):
        c, rest, skips = self.embedding(time, labels), x, []
        for name, part in self.enc.items():
            if name.endswith("aux_residual"):
                x = rest = skips[-1] = (x + part(rest)) / 2**0.5
            else:
                x = part(x, c) if isinstance(part, Block) else part(x)
                skips.append(x)
        for part in self.dec.values():
            if isinstance(part, Block):
                joined = part.inputs != x.shape[1]
                x = part(torch.cat([x, skips.pop()], dim=1) if joined else x, c)
        if self.kind == "adm":
            return self.out_conv(F.silu(self.out_norm(x)))
        *_, norm, last = self.dec.values()
        return last(F.silu(norm(x)))


class EDMPrecond(nn.Module):
    """D = c_skip x + c_out F(c_in x, log(sigma) / 4), Karras et al. 2022, table 1."""

    def __init__(self, model, sigma_data=0.5):
        super().__init__()
        self.model, self.sigma_data = model, sigma_data

    def forward(self, x, sigma, labels):
        level, data = sigma.view(-1, 1, 1, 1), self.sigma_data
        total = level**2 + data**2
        raw = self.model(x / total.sqrt(), sigma.log() / 4, labels)
        return data**2 / total * x + level * data / total.sqrt() * raw


def heun(denoise, noise, labels, steps, low=0.002, high=80.0, rho=7):
    """Algorithm 1 of Karras et al. 2022, with the noise levels of eq. 5 and then 0."""
    levels = torch.linspace(high ** (1 / rho), low ** (1 / rho), steps, dtype=noise.dtype) ** rho
    levels = [*levels, torch.zeros((), dtype=noise.dtype)]
    x = levels[0] * noise

    def slope(x, level):
        return (x - denoise(x, level.expand(len(x)), labels)) / level

    for now, then in zip(levels[:-1], levels[1:], strict=True):
        first = slope(x, now)
        ahead = x + (then - now) * first
        if then > 0:
            ahead = x + (then - now) * (first + slope(ahead, then)) / 2
        x = ahead
    return x
