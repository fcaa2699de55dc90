"""Fashion-MNIST: 60,000 training images of clothes, 28 x 28, 10 classes.

python main.py --mode=prepare --config=configs/fashion_mnist.py
python main.py --config=configs/fashion_mnist.py:shortcut --workdir=runs/fashion_shortcut

A teacher, then its student. edm and flow_matching teach cd, progressive and lcm, and sim, sid,
diff_instruct and dmd, which read no images; trigflow teaches scd too, and ect may start from any.
A student takes path, prediction, data and network from its teacher. ct, ict and sct need none:

python main.py --config=configs/fashion_mnist.py:edm --workdir=runs/fashion_edm
python main.py --config=configs/fashion_mnist.py:cd --config.teacher=runs/fashion_edm \
    --workdir=runs/fashion_cd

A run takes about 40 minutes of one CPU core. Distances of shortcut on a classifier's features
(1,000 samples; as many real images: 3.3) in 1 / 4 / 128 sampling steps: 96.8 / 83.6 / 81.2
(docs/figures.md).
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from fewstep.configs import base, methods, short_runs

# Standard deviation of the training pixels in [-1, 1].
SIGMA_DATA = 0.71
# log(SIGMA_DATA / 0.5): published noise levels assume data of standard deviation 0.5.
LOG_LEVEL_SHIFT = 0.35


def get_config(method: str = "shortcut") -> ConfigDict:
    """A DiT of 1.3 M parameters on 49 tokens, sized for a CPU."""
    return configure(method, SIGMA_DATA, LOG_LEVEL_SHIFT)


def configure(method: str, sigma_data: float, log_level_shift: float) -> ConfigDict:
    """The config for data of that deviation, with log-normal noise levels shifted by so much."""
    config = methods.choose(base.config(), method)
    config.steps = 4000
    config.batch_size = 64
    config.data.name = "fashion_mnist"
    config.data.flip = True
    methods.network(config, size="mini", patch_size=4)
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    config.checkpoint.every = 1000
    # Open, since a small step may be shorter than its dispatch (training/cost/choice.py).
    config.steps_per_dispatch, config.data.on_device = placeholder(int), placeholder(bool)
    config.evaluate.features, config.evaluate.agreement = "classifier", True
    short_runs.short_run(config, sigma_data)
    for sampler in short_runs.log_normal_samplers(config):
        sampler.mean += log_level_shift
    return config
