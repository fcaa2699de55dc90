"""The Python code, in the card of a diffusers folder, that loads it and draws from it."""

from typing import NamedTuple

from fewstep.latents.scaling import Scaling


class DiffusersCode(NamedTuple):
    """What the code depends on.

    scheduler, codec: names of classes, "" without a codec. null_label: that of the null class.
    noise: deviation of the noise that sampling starts from. guidance: the run's own scale.
    """

    scheduler: str
    codec: str
    scaling: Scaling
    null_label: int
    noise: float
    guidance: float


TIMESTEPS = {
    "DDIMScheduler": "scheduler.set_timesteps(steps)  # a divisor of 1000",
    "FlowMatchEulerDiscreteScheduler": (
        "scheduler.set_timesteps(sigmas=[1 - k / steps for k in range(steps)])"
    ),
}
CODE = """\
import torch
from diffusers import {classes}

FOLDER = "."  # this folder
transformer = DiTTransformer2DModel.from_pretrained(FOLDER, subfolder="transformer").eval()
for block in transformer.transformer_blocks:
    # The network was trained with frequencies 10000^(-k/128); diffusers' own are 10000^(-k/127).
    block.norm1.emb.time_proj.downscale_freq_shift = 0
scheduler = {scheduler}.from_pretrained(FOLDER, subfolder="scheduler")
{load_codec}

@torch.no_grad()
def sample(noise, labels, steps, guidance={guidance:g}):
    # noise: normal, [B, C, H, W]. labels: int64 [B]. guidance: 1 is none.
    {timesteps}
    x = {noise!r} * noise
    for t in scheduler.timesteps:
        def predict(labels):
            return transformer(x, timestep=t.expand(len(x)), class_labels=labels).sample
        prediction = predict(labels)
        if guidance != 1:
            null = predict(torch.full_like(labels, {null_label}))
            prediction = null + guidance * (prediction - null)
        x = scheduler.step(prediction, t, x).prev_sample
    return {result}
"""


def diffusers_code(code: DiffusersCode) -> str:
    """How to load and sample, as Markdown."""
    classes = [name for name in (code.codec, code.scheduler, "DiTTransformer2DModel") if name]
    scale, shift = (list(values) for values in code.scaling)
    load_codec = ""
    if code.codec:
        load_codec = (
            f'vae = {code.codec}.from_pretrained(FOLDER, subfolder="vae").eval()\n'
            f"scale, shift = (torch.tensor(v).view(1, -1, 1, 1) for v in ({scale}, {shift}))\n"
        )
    text = CODE.format(
        classes=", ".join(sorted(classes)),
        scheduler=code.scheduler,
        load_codec=load_codec,
        guidance=code.guidance,
        timesteps=TIMESTEPS[code.scheduler],
        noise=code.noise,
        null_label=code.null_label,
        result="vae.decode(x / scale + shift).sample" if code.codec else "x",
    )
    return (
        "With diffusers. Load it by this code and by nothing shorter: without the line on "
        "frequencies, samples are others.\n\n```python\n" + text + "```"
    )
