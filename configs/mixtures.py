"""Points of mixtures of Gaussians in the plane: every method trains in seconds, exactly measurable.

python main.py --config=configs/mixtures.py:flow_matching --workdir=runs/ring_flow_matching
python main.py --config=configs/mixtures.py:sim --workdir=runs/ring_sim \
    --config.teacher=runs/ring_flow_matching

Other mixtures by --config.data.name=mixture:NAME (data/mixtures.py). Samples are points, not
images: they are measured as they are (features `points`) and shown as scatter plots.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from fewstep.configs import base, methods, short_runs

SIGMA_DATA = 0.7  # deviation of a coordinate of the ring


def get_config(method: str = "flow_matching") -> ConfigDict:
    """20,000 points of eight modes on a ring, labelled by mode; a small perceptron."""
    config = methods.choose(base.config(), method)
    config.steps = 3000
    config.batch_size = 512
    config.data.name = "mixture:ring"
    base.use_network(config, "mlp")
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    config.checkpoint.every = 1000
    # Open, since a small step may be shorter than its dispatch (training/cost/choice.py).
    config.steps_per_dispatch = placeholder(int)
    config.evaluate.features = "points"
    config.evaluate.reference = "all"
    config.evaluate.num_samples = 2000
    config.evaluate.batch_size = 500
    short_runs.short_run(config, sigma_data=SIGMA_DATA)
    return config
