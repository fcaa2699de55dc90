"""CIFAR-10, 32 x 32, class-conditional, in pixels, on one GPU or more.

    python main.py --mode=prepare --config=configs/cifar10.py
    python main.py --config=configs/cifar10.py:shortcut --workdir=runs/cifar10_shortcut

A teacher, then its students, which take path, prediction, data and network from it: edm and
flow_matching teach cd, progressive and lcm and start ect, trigflow teaches scd too; ct, ict and sct
need none. A ddpm teacher of lcm, as in its paper, predicts v:

    python main.py --config=configs/cifar10.py:edm --workdir=runs/cifar10_edm
    python main.py --config=configs/cifar10.py:cd --config.teacher=runs/cifar10_edm \
        --workdir=runs/cifar10_cd
    python main.py --config=configs/cifar10.py:ddpm --config.prediction.kind=v \
        --workdir=runs/cifar10_ddpm
    python main.py --config=configs/cifar10.py:lcm --config.teacher=runs/cifar10_ddpm \
        --workdir=runs/cifar10_lcm

Runs are measured by Inception's features: name its file by --config.evaluate.weights=FILE or
$FEWSTEP_INCEPTION, or train without measuring by --config.evaluate.features=none.

One-step generators, of any of these teachers, read no images:

    python main.py --config=configs/cifar10.py:sim --config.teacher=runs/cifar10_edm \
        --workdir=runs/cifar10_sim

EDM's published network needs no training (docs/weights.md). To train one with the papers' U-Net,
DDPM++ (56 M parameters):

    python main.py --config=configs/cifar10.py:edm --config.model.name=song_unet \
        --config.model.dropout=0.13 --config.model.dtype=bfloat16 --workdir=runs/cifar10_unet

Else DiT-S/2 (33 M parameters, 256 tokens), bfloat16. The settings in PUBLISHED belong to the
papers' U-Nets; nobody has published settings for this network. They and the figures below are
second-hand, so read the paper before you cite one. The other methods have rates, warm-up, clipping
and lengths of our own. The papers' FID in 1 / 2 steps, unconditional: progressive 9.12 / 4.51, CD
3.55 / 2.93 and CT 8.70 / 5.83 (both with LPIPS), TRACT 3.78 / 3.32, iCT 2.83 / 2.46, ECT 3.60 /
2.11, sCT 2.85 / 2.06, sCD 3.66 / 2.52; in one step SIM 2.17 (conditional 1.96), SiD 1.92,
Diff-Instruct 4.53; EDM 1.97 in 35 evaluations. SIM's abstract reports 2.06, not 2.17: the minimum
of one run that continued from a SiD generator of 2.8 at a learning rate of 1e-6
(--config.optimizer.learning_rate=1e-6). The shortcut paper does not train on CIFAR-10. To train on
a folder of images instead, set --config.data.name=folder:PATH --config.data.num_classes=-1.
"""

from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict

from fewstep.configs import base, methods


class Published(NamedTuple):
    """How a paper trained on CIFAR-10."""

    steps: int
    batch_size: int
    optimizer: str
    learning_rate: float
    dropout: float
    ema: float
    warmup_steps: int = 0
    clip_norm: float = 0.0


PUBLISHED = {
    # Ho et al. 2020, appendix B.
    "ddpm": Published(800_000, 128, "adam", 2e-4, 0.1, 0.9999, 5000, 1.0),
    # Karras et al. 2022, table 7: 200 M images, of which 10 M warm up, an EMA with a half-life of
    # 0.5 M images. Their augmentation is left out.
    "edm": Published(390_000, 512, "adam", 1e-3, 0.13, 0.9993, 19_531),
    # Song et al. 2023, table 3.
    **dict.fromkeys(("cd", "cd_flow", "ct"), Published(800_000, 512, "radam", 4e-4, 0.0, 0.9999)),
    # Berthelot et al. 2023, their repository's command: 96 M images in two stages.
    "tract": Published(375_000, 256, "adam", 2e-4, 0.0, 0.99996, 0, 1.0),
    # Kim et al. 2024, their repository for CIFAR-10: 10,000 to 50,000 steps without GAN.
    "ctm": Published(50_000, 256, "radam", 4e-4, 0.0, 0.999),
    # Song & Dhariwal 2023, appendix A.
    "ict": Published(400_000, 1024, "radam", 1e-4, 0.3, 0.99993),
    # Geng et al. 2024, their repository's run of 400,000 steps.
    "ect": Published(400_000, 128, "radam", 1e-4, 0.2, 0.9999),
}


def cd(config: ConfigDict) -> None:
    """Song et al. 2023, table 3: mu = 0 on CIFAR-10, 0.95 elsewhere."""
    config.objective.target_decay = 0.0


def second_time(time: float) -> Callable[[ConfigDict], None]:
    """Set the time of the second of two sampling steps."""

    def setting(config: ConfigDict) -> None:
        config.objective.sample_times = (time,)

    return setting


def one_step(config: ConfigDict) -> None:
    """SiD on CIFAR-10 (Zhou et al. 2024): learning rate, and an EMA of half-life 0.5 M images.

    Without dropout; the codes of SiD and Diff-Instruct leave it at the teacher's 0.13.

    Stop when the distance no longer falls. `dmd` has DMD2's noise levels, start and updates, which
    are published for larger images only.
    """
    config.optimizer.learning_rate = 1e-5
    config.optimizer.warmup_steps, config.optimizer.clip_norm = 0, 0.0
    config.model.dropout = 0.0
    config.ema.decays = (0.9996,)


def sim(config: ConfigDict) -> None:
    """SIM's paper: SiD's noise levels and weight, and batches of 128 (SiD's code: 256)."""
    one_step(config)
    methods.sid_weighting(config)
    config.batch_size = 128
    config.ema.decays = (0.9998,)  # a half-life of 0.5 M images too


def diff_instruct(config: ConfigDict) -> None:
    """Noise level and batch size of Diff-Instruct's README."""
    one_step(config)
    config.objective.sigma_init, config.batch_size = 1.0, 128
    config.ema.decays = (0.9998,)  # a half-life of 0.5 M images too


def progressive(config: ConfigDict) -> None:
    """Salimans & Ho 2022 (config/cifar_distill.py of their code): from a teacher of 8,192 steps,
    50,000 updates in each of 13 stages.
    """
    config.steps, config.batch_size = 13 * 50_000, 128
    config.objective.max_steps = 4096
    config.optimizer.name, config.optimizer.learning_rate = "adam", 5e-5
    config.optimizer.warmup_steps = 0
    config.model.dropout = 0.0
    config.ema.decays = ()


def edm(config: ConfigDict) -> None:
    """The end of EDM's sampling grid."""
    config.objective.ends_at = "data"


def mean_flow(config: ConfigDict) -> None:
    """Geng et al. 2025, the command for CIFAR-10 of their PyTorch code (py-meanflow).

    There 3/4 of the rows have s < t; a share here is 1 / n, at most half of them.
    """
    config.steps, config.batch_size = 800_000, 1024
    config.optimizer.learning_rate, config.model.dropout = 6e-4, 0.2
    config.objective.time_sampler.update(mean=-2.0, std=2.0)
    config.objective.interval_fraction = 0.5
    config.objective.weight_power, config.objective.weight_offset = 0.75, 1e-3
    config.ema.decays = (0.99995,)


def million_pairs(config: ConfigDict) -> None:
    """Luhman & Luhman 2021: about a million pairs, 25 GB of memory on each host."""
    config.pairs.count = 1_000_000


def direct(config: ConfigDict) -> None:
    """Their pairs, of 100 steps."""
    million_pairs(config)
    config.pairs.steps = 100


# The papers' other settings for CIFAR-10 are the methods' defaults: N = 18 in Karras spacing for
# cd; s_0 = 2, s_1 = 150, mu_0 = 0.9 for ct; sigma_data = 0.5 for all. Distances are those of the
# methods: the papers of cd, ct and ctm also report LPIPS (objective.distance.name=lpips).
SETTINGS: dict[str, Callable[[ConfigDict], None]] = {
    **{method.__name__: one_step for method in methods.ONE_STEP},
    **dict.fromkeys(("sim", "sim_flow"), sim),
    **dict.fromkeys(("diff_instruct", "diff_instruct_flow"), diff_instruct),
    **dict.fromkeys(("cd", "cd_flow"), cd),
    "progressive": progressive,
    "edm": edm,
    "mean_flow": mean_flow,
    **dict.fromkeys(("direct", "reflow"), direct),  # the pairs of reflow are ours
    "reflow_distill": million_pairs,
    **dict.fromkeys(("ict", "ect"), second_time(0.821)),  # a noise level; Geng et al. 2024
    **dict.fromkeys(("sct", "scd"), second_time(1.1)),  # an angle; Lu & Song 2025
}


def get_config(method: str = "shortcut") -> ConfigDict:
    """200,000 steps of 256 images, or the length and batch size of the method's paper."""
    config = methods.choose(base.config(), method)
    config.steps = 200_000
    config.batch_size = 256
    config.data.name = "cifar10"
    config.data.image_size = 32
    config.data.channels = 3
    config.data.num_classes = 10
    config.data.flip = True
    methods.network(config, size="S", patch_size=2, dtype="bfloat16", dropout=0.1)
    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup_steps = 5000
    config.optimizer.clip_norm = 1.0
    config.ema.decays = (0.9999,)
    config.checkpoint.every = 10_000
    config.evaluate.every = 20_000
    config.evaluate.num_samples, config.evaluate.final_samples = 4096, 50_000
    if method in PUBLISHED:
        paper = PUBLISHED[method]
        config.steps, config.batch_size = paper.steps, paper.batch_size
        config.optimizer.name = paper.optimizer
        config.optimizer.learning_rate = paper.learning_rate
        config.optimizer.warmup_steps = paper.warmup_steps
        config.optimizer.clip_norm = paper.clip_norm
        config.model.dropout = paper.dropout
        config.ema.decays = (paper.ema,)
    if method in SETTINGS:
        SETTINGS[method](config)
    return config
