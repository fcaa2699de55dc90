"""CelebA-HQ at 256 x 256 in the latents of sd-vae-ft-mse (32 x 32 x 4), without labels.

    python main.py --mode=describe --config=configs/celebahq256.py:shortcut

The setting of Frans et al. 2024: DiT-B/2, 410,000 steps of 64 images (their README's command; their
answers to readers have 256, of a data set that is not named), a quarter of them bootstrapped (their
code has 1/8: --config.objective.bootstrap_fraction=0.125), EMA 0.999, AdamW 1e-4 with decay 0.1, on
a TPU v3-32. Their table 1, FID-50k at 128 / 4 / 1 steps: shortcut 6.9 / 13.8 / 20.5, flow matching
7.3 / 63.3 / 280.5.

The other methods keep their own papers' objectives and this network and optimizer; students name a
--config.teacher of the same config file, and lcm one of ddpm with --config.prediction.kind=v.

The pipeline of latents is not part of Fewstep yet: `describe` works, training says so.
"""

from ml_collections import ConfigDict

from fewstep.configs import methods


def get_config(method: str = "shortcut") -> ConfigDict:
    """The paper's unconditional setting."""
    config = methods.frans_2024(method)
    config.steps = 410_000
    config.batch_size = 64
    config.data.num_classes = 0
    if "label_dropout" in config.objective:
        config.objective.label_dropout = 0.0
    if method == "lcm":
        # Without classes there is nothing to guide: plain distillation on the same grid.
        config.objective.guidance_range = ()
        config.objective.guidance_scale = 1.0
    return config
