"""CIFAR-10, 32 x 32, class-conditional, in pixels, on one GPU or more.

    python main.py --mode=prepare --config=configs/cifar10.py
    python main.py --config=configs/cifar10.py:shortcut --workdir=runs/cifar10_shortcut

DiT-S/2 (33 M parameters, 256 tokens), bfloat16. No published figure: the shortcut paper does not
train on CIFAR-10. A folder of images takes its place with --config.data.name=folder:PATH
--config.data.num_classes=-1.
"""

from ml_collections import ConfigDict

from configs import base, methods


def get_config(method: str = "shortcut") -> ConfigDict:
    """200,000 steps of 256 images."""
    config = methods.choose(base.config(), method)
    config.steps = 200_000
    config.batch_size = 256
    config.data.name = "cifar10"
    config.data.image_size = 32
    config.data.channels = 3
    config.data.num_classes = 10
    config.data.flip = True
    config.model.size = "S"
    config.model.patch_size = 2
    config.model.dtype = "bfloat16"
    config.model.dropout = 0.1
    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup_steps = 5000
    config.optimizer.clip_norm = 1.0
    config.ema.decays = (0.9999,)
    config.checkpoint.every = 10_000
    config.evaluate.every = 20_000
    return config
