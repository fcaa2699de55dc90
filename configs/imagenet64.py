"""ImageNet at 64 x 64, class-conditional, in pixels, by EDM's ADM U-Net (296 M parameters).

    python main.py --mode=describe --config=configs/imagenet64.py:edm
    python main.py --mode=plan --config=configs/imagenet64.py:edm --mesh=32,1 --accelerator=a100-80
    python main.py --mode=prepare --config=configs/imagenet64.py

The setting of Karras et al. 2022 (table 7, and the options in their README): 2,500 M images in
batches of 4,096, Adam 1e-4 with 10 M images of warm-up, dropout 0.1, an EMA of half-life 50 M
images, no flips; 32 A100 for 13 days. Their FID is 1.36 in 511 evaluations of the stochastic
sampler, --config.objective.solver.name=churned_heun with 256 steps. Labels are dropped for a tenth
of the rows, so that samples can be guided; there they are not.

A teacher need not be trained here: edm-imagenet-64x64-cond-adm.pkl becomes one by --mode=import
(docs/weights.md). Students take path, prediction and network from their teacher:

    python main.py --config=configs/imagenet64.py:cd --config.teacher=runs/imagenet64_edm \
        --workdir=runs/imagenet64_cd

cd has the settings of Song et al. 2023 (table 3). The other methods have EDM's network, batches and
optimizer, and one-step generators a rate of our own, so they are untried. The images are TFDS's, or
those of a folder: --config.data.name=folder:PATH.

Runs are measured by Inception's features: name its file by --config.evaluate.weights=FILE or
$FEWSTEP_INCEPTION, or train without measuring by --config.evaluate.features=none.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from fewstep.configs import base, methods

BATCH = 4096
HALF_LIFE = 50e6  # images, of the EMA
WARMUP = 10e6  # images


def edm(config: ConfigDict) -> None:
    """The end of EDM's sampling grid."""
    config.objective.ends_at = "data"


def cd(config: ConfigDict) -> None:
    """Song et al. 2023, table 3."""
    config.steps, config.batch_size = 600_000, 2048
    config.optimizer.name, config.optimizer.learning_rate = "radam", 8e-6
    config.optimizer.warmup_steps = 0
    config.objective.curriculum.points = 40
    config.model.dropout = 0.0
    config.ema.decays = (0.999943,)


def one_step(config: ConfigDict) -> None:
    """A small rate, without warm-up and dropout, as on CIFAR-10."""
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 1e-5, 0
    config.model.dropout = 0.0


SETTINGS: dict[str, Callable[[ConfigDict], None]] = {
    **{method.__name__: one_step for method in methods.ONE_STEP},
    **dict.fromkeys(("cd", "cd_flow"), cd),
    "edm": edm,
}


def get_config(method: str = "edm") -> ConfigDict:
    """EDM's setting, or what a method's paper has in its place."""
    config = methods.choose(base.config(), method)
    config.steps = round(2500e6 / BATCH)
    config.batch_size = BATCH
    config.data.name = "imagenet_resized/64x64"
    config.data.image_size = 64
    config.data.channels = 3
    config.data.num_classes = 1000
    if config.model.name == "dit":  # else the method has a network of its own
        base.use_network(config, "adm_unet")
        config.model.dtype, config.model.dropout = "bfloat16", 0.1
    config.optimizer.name, config.optimizer.learning_rate = "adam", 1e-4
    config.optimizer.warmup_steps = round(WARMUP / BATCH)
    if config.ema.decays:
        config.ema.decays = (0.5 ** (BATCH / HALF_LIFE),)
    config.checkpoint.every = 10_000
    config.evaluate.every = 50_000
    config.evaluate.num_samples, config.evaluate.final_samples = 4096, 50_000
    if method in SETTINGS:
        SETTINGS[method](config)
    return config
