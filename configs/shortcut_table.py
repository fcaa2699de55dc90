"""The rows of table 1 of Frans et al. 2024 (shortcut models), on digits by one command:

    python main.py --mode=compare --config=configs/shortcut_table.py --seeds=0,1 \
        --methods=ddpm,flow_matching,progressive,cd_flow,reflow,ct_flow,live_reflow,shortcut \
        --workdir=runs/shortcut_table

configs/shortcut_table_fashion_mnist.py, _celebahq256.py and _imagenet256.py have the same rows on
other data; the last two need --config.data.name=folder:PATH and --config.codec.weights=FILE beside
their name, and Inception's file (docs/evaluation.md). The rules are those of the paper: one
network, optimizer and number of gradient steps for all rows, squared L2 in every loss, and 128, 4
and 1 sampling steps. Two-phase methods train as many steps again after their teacher, the
flow-matching row.

    row                        METHOD          settings beside those of the data's own config
    diffusion                  ddpm            predicts v, which has a one-step sample
    flow matching              flow_matching
    progressive distillation   progressive     from 128 steps, stages of 64, 32, ..., 1; samples
                                               in 1 step, and after its stage in 4
    consistency distillation   cd_flow         128 equal cells, Euler's steps of the teacher
    reflow                     reflow          pairs of the teacher in 128 steps
    consistency training       ct_flow         1, 2, 4, ..., 128 equal cells
    live reflow                live_reflow
    shortcut                   shortcut

Their consistency baselines weigh the distance of two ends by 1 / t^2, as that of velocities, and
have an EMA of 0.999 for the target; here the weight is 1 (theirs:
--config.objective.weighting=velocity) and the target an average that keeps up, as in the methods'
own papers. Their code has 1/8 of bootstrap rows (objective.bootstrap_fraction), their paper 1/4, as
here. Any other METHOD is that of the data's own config.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from fewstep.configs import digits

# As other configs, from few on: a debug run evaluates the first two.
STEPS = (1, 4, 128)


def get_config(method: str = "shortcut") -> ConfigDict:
    """A row on digits."""
    return table_config(digits.get_config, method)


def table_config(data_config: Callable[[str], ConfigDict], method: str) -> ConfigDict:
    """A row of the table. data_config: METHOD -> the config of a data set."""
    config = data_config(method)
    if method in ROWS:
        config.evaluate.steps = STEPS
        ROWS[method](config)
    return config


def same(config: ConfigDict) -> None:
    """A row without settings of its own."""


def ddpm(config: ConfigDict) -> None:
    """Diffusion. A prediction of eps has no one-step sample, since alpha is 0.007 at t = 1."""
    config.prediction.kind = "v"


def progressive(config: ConfigDict) -> None:
    """Progressive distillation on the flow path, as in their code."""
    config.objective.max_steps, config.evaluate.steps = 64, (1, 4)
    config.objective.weighting = "velocity"
    keep_guidance(config)


def cd_flow(config: ConfigDict) -> None:
    """Consistency distillation on the grid of 128 steps. Without guidance, as in their code."""
    config.objective.curriculum.update(name="constant", points=129)
    config.objective.spacing.name = "uniform"
    config.objective.teacher_solver = "euler"


def reflow(config: ConfigDict) -> None:
    """Reflow, once, on pairs of the teacher's 128 steps."""
    config.pairs.steps = 128
    keep_guidance(config)


def keep_guidance(config: ConfigDict) -> None:
    """Guide the teacher at the scale of the guided rows: 1.5 on ImageNet."""
    if config.data.num_classes == IMAGENET_CLASSES:
        config.objective.guidance_scale = IMAGENET_SCALE


IMAGENET_CLASSES, IMAGENET_SCALE = 1000, 1.5
ROWS: dict[str, Callable[[ConfigDict], None]] = {
    "ddpm": ddpm,
    "flow_matching": same,
    "progressive": progressive,
    "cd_flow": cd_flow,
    "reflow": reflow,
    "ct_flow": same,
    "live_reflow": same,
    "shortcut": same,
}
