"""Samplers of unnormalised densities, without data: minutes on two cores (docs/densities.md).

python main.py --config=configs/density.py:dis --workdir=runs/gmm9_dis
python main.py --config=configs/density.py:consistency_sampler --workdir=runs/gmm9_cs \
    --config.teacher=runs/gmm9_dis

Other densities by --config.data.name=density:NAME (densities/table.py), also a file of your own.
Other methods learn from exact samples of the density, as from data.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from fewstep.configs import base, methods, objectives, short_runs

PATH_STEPS, JUMPS, CELLS = 128, 64, 4
SIGMA_DATA = 1.0  # networks see points in units of the density's scale


def get_config(method: str = "dis") -> ConfigDict:
    """The mixture of nine Gaussians, in the plane; a small perceptron."""
    config = methods.choose(base.config(), method)
    if config.model.name != "mlp":
        base.use_network(config, "mlp")
    config.model.width, config.model.depth = 64, 2
    config.steps = 1000
    config.batch_size = 256
    config.data.name = "density:gmm9"
    config.data.num_classes = 0
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50
    config.optimizer.clip_norm = 1.0
    if config.ema.decays:
        config.ema.decays = (0.99,)
    config.checkpoint.every = 500
    # Open, since a small step may be shorter than its dispatch (training/cost/choice.py).
    config.steps_per_dispatch = placeholder(int)
    config.evaluate.features = "points"
    config.evaluate.reference = "all"
    config.evaluate.num_samples = 2000
    config.evaluate.batch_size = 500
    short_runs.short_run(config, sigma_data=SIGMA_DATA)
    if method == "consistency_sampler":
        config.steps = 8000
        config.batch_size = 128 * CELLS  # each trajectory gives a row for every cell
        config.optimizer.learning_rate = 4e-3
        # The target is learned backwards, cell by cell: few of them, of several solver steps each.
        config.objective.curriculum.points = CELLS + 1
        config.objective.source = objectives.pair_source("trajectories")
        config.objective.source.substeps = 6
        config.ema.decays = (0.999,)
    if method == "scds":
        config.steps = 4000
        config.objective.max_steps = JUMPS
        # A larger weight disturbs the paths, from whose points the second loss learns.
        config.objective.bootstrap_weight = 3.0
        config.evaluate.steps = (1, 2, 4, JUMPS)
    if method in SAMPLERS:
        config.steps = 4000
        config.objective.path_steps = PATH_STEPS
        # Modes are narrow beside the scale, so the last steps are the hard ones.
        config.objective.spacing.name = "quadratic"
        config.optimizer.learning_rate = 5e-3
        config.evaluate.steps = (1, 4, 16, PATH_STEPS)
    return config


SAMPLERS = ("dis", "dds")
